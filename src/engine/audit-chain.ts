// The chain over the audit record: read and compared link by link, sealed under the audit key by processes that hold a
// root key, and its seals compared. What each of them proves, and what not, is in docs/audit.md.
import { timingSafeEqual } from 'node:crypto';
import { chainStart, linkOf, sealOf } from '../crypto/audit-chain.js';
import type { ValueKey } from '../crypto/value-key.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { HeldRoots } from '../keys/open-keyring.js';
import { listAuditKeyEnds, listAuditKeys, type StoredAuditKey } from '../store/audit-keys.js';
import {
  databaseMicros,
  findHead,
  findLastSeal,
  findUnlinked,
  insertSeal,
  listSeals,
  readLinks,
  type ChainHead,
  type StoredSeal,
} from '../store/audit.js';
import { readOnlySnapshot, type Database, type Queryable } from '../store/database.js';

export type DamageKind = 'altered' | 'reordered' | 'missing' | 'inserted' | 'tail_cut' | 'rewritten' | 'false_seal';

/** The first thing that does not fit. */
export interface Damage {
  readonly kind: DamageKind;
  /** Position in the chain; undefined for a record that stands outside it. */
  readonly n: bigint | undefined;
  readonly words: string;
}

interface Chain {
  readonly damage: Damage | undefined;
  /** How far it fits. */
  readonly end: ChainHead;
  /** The links that were asked for, as they are. */
  readonly links: ReadonlyMap<bigint, Buffer>;
}

/** Follows the links from `from` to the head; remembers those at the positions of `wanted`. */
async function followChain(client: Queryable, from: ChainHead, wanted: ReadonlySet<bigint>): Promise<Chain> {
  let end = from;
  const links = new Map<bigint, Buffer>([[from.n, from.hash]]);
  const broken = (kind: DamageKind, n: bigint, words: string): Chain => ({ damage: { kind, n, words }, end, links });
  for await (const { n, hash, record } of readLinks(client, from.n)) {
    const next = end.n + 1n;
    if (n !== next) return broken('missing', next, `record ${next} is gone`);
    if (record === undefined) return broken('missing', n, `record ${n} is gone, its link is there`);
    if (!linkOf(n, end.hash, record).equals(hash)) {
      return (await isElsewhere(client, { n, previous: end.hash, hash }))
        ? broken('reordered', n, `the record that was number ${n} stands in another place`)
        : broken('altered', n, `record ${n} is not what was recorded`);
    }
    end = { n, hash };
    if (wanted.has(n)) links.set(n, hash);
  }
  const head = await findHead(client);
  if (head === undefined || head.n !== end.n || !head.hash.equals(end.hash)) {
    const missing = end.n + 1n;
    return broken('tail_cut', missing, `the chain ends at ${end.n}, its head says ${head?.n ?? 'nothing'}`);
  }
  return { damage: undefined, end, links };
}

/** Whether some other record is the one that a link was made of. */
async function isElsewhere(client: Queryable, link: { n: bigint; previous: Buffer; hash: Buffer }): Promise<boolean> {
  for await (const { record } of readLinks(client, 0n)) {
    if (record !== undefined && linkOf(link.n, link.previous, record).equals(link.hash)) return true;
  }
  return false;
}

async function openAuditKey(stored: StoredAuditKey, roots: HeldRoots): Promise<ValueKey | undefined> {
  for (const wrap of stored.wraps) {
    const root = roots.get(wrap.rootId);
    if (root !== undefined) return root.unwrap(wrap.rootId, stored.identity, stored.commitment, wrap.blob);
  }
  return undefined;
}

function isMadeBy(key: ValueKey, seal: StoredSeal): boolean {
  return timingSafeEqual(sealOf(key.material, seal), seal.mac);
}

/**
 * Seals the head of the chain where records came since the last seal, after following the chain from there: what was
 * altered in between is never sealed. Answers the number sealed; undefined where there was nothing to seal, or no audit
 * key under these roots. Throws AUDIT_DAMAGED.
 */
export async function sealAudit(database: Database, roots: HeldRoots): Promise<bigint | undefined> {
  const [stored] = await listAuditKeys(database);
  const key = stored && (await openAuditKey(stored, roots));
  if (stored === undefined || key === undefined) return undefined;
  const keyId = stored.identity.id;
  const sealed = await database.transaction(async (client) => {
    // Replaced meanwhile: seals under it end before the record that says so, and the next sealer has the new key.
    if ((await listAuditKeys(client))[0]?.identity.id !== keyId) return undefined;
    const found = await findLastSeal(client, keyId);
    if (found !== undefined && !isMadeBy(key, found))
      throw damaged({ kind: 'false_seal', n: found.n, words: `the seal at ${found.n} was not made by the audit key` });
    const from = found ?? { n: 0n, hash: chainStart };
    const [at] = found === undefined ? [] : await linksAt(client, found.n);
    if (found !== undefined && at?.equals(found.hash) !== true)
      throw damaged({ kind: 'rewritten', n: found.n, words: `record ${found.n} is not the one that was sealed` });
    const chain = await followChain(client, { n: from.n, hash: from.hash }, new Set());
    if (chain.damage !== undefined) throw damaged(chain.damage);
    return { end: chain.end, last: from.n };
  }, readOnlySnapshot);
  if (sealed === undefined || sealed.end.n === sealed.last) return undefined;
  const { end } = sealed;
  const sealedAtMicros = await databaseMicros(database);
  await insertSeal(database, { ...end, keyId, sealedAtMicros, mac: sealOf(key.material, { ...end, sealedAtMicros }) });
  return end.n;
}

async function linksAt(client: Queryable, n: bigint): Promise<readonly Buffer[]> {
  for await (const link of readLinks(client, n - 1n)) return link.n === n ? [link.hash] : [];
  return [];
}

function damaged(damage: Damage): KeyturnError {
  return new KeyturnError(
    'AUDIT_DAMAGED',
    `the audit record does not fit its chain: ${damage.words}; nothing was sealed; see: keyturn audit verify`,
    { damage: damage.kind, record: damage.n === undefined ? undefined : String(damage.n) },
  );
}

export interface ChainReport {
  readonly damage: Damage | undefined;
  /** How far the links fit: what to keep outside the database. */
  readonly end: ChainHead;
  readonly seals: {
    readonly stored: number;
    /** How many could be compared: those of audit keys that the given roots open. */
    readonly checked: number;
    /** The newest that fits. */
    readonly last: StoredSeal | undefined;
  };
}

/** Everything, in one snapshot. `checkpoint`: an end that was noted earlier and kept elsewhere. */
export async function verifyChain(
  database: Database,
  roots: HeldRoots,
  checkpoint: ChainHead | undefined,
): Promise<ChainReport> {
  return database.transaction(async (client) => {
    const seals = await listSeals(client);
    const wanted = new Set([...seals.map((seal) => seal.n), ...(checkpoint === undefined ? [] : [checkpoint.n])]);
    const chain = await followChain(client, { n: 0n, hash: chainStart }, wanted);
    const { damage: sealDamage, ...sealed } = await compareSeals(client, seals, roots, chain);
    const damages = [chain.damage, sealDamage, compareCheckpoint(chain, checkpoint), await findInserted(client)];
    const damage = firstOf(damages.filter((found) => found !== undefined));
    return { damage, end: chain.end, seals: { stored: seals.length, ...sealed } };
  }, readOnlySnapshot);
}

/** By position in the chain; what has none comes last. */
function firstOf(damages: readonly Damage[]): Damage | undefined {
  const numbered = damages.filter(({ n }) => n !== undefined);
  const [first, ...others] = numbered.length > 0 ? numbered : damages;
  return others.reduce((least, one) => ((one.n ?? 0n) < (least?.n ?? 0n) ? one : least), first);
}

async function compareSeals(
  client: Queryable,
  seals: readonly StoredSeal[],
  roots: HeldRoots,
  chain: Chain,
): Promise<{ checked: number; last: StoredSeal | undefined; damage: Damage | undefined }> {
  const keys = new Map<number, ValueKey>();
  for (const stored of await listAuditKeys(client)) {
    const key = await openAuditKey(stored, roots).catch(ignoreUnopened);
    if (key !== undefined) keys.set(stored.identity.id, key);
  }
  const ends = await listAuditKeyEnds(client);
  let checked = 0;
  let last: StoredSeal | undefined;
  for (const seal of seals) {
    const { n } = seal;
    const key = keys.get(seal.keyId);
    const damage = (kind: DamageKind, words: string, at = n) => ({ checked, last, damage: { kind, n: at, words } });
    const replacedAt = ends.get(seal.keyId);
    if (replacedAt !== undefined && n >= replacedAt)
      return damage('false_seal', `the seal at ${n} was made with an audit key that record ${replacedAt} replaced`);
    if (key !== undefined) {
      checked++;
      if (!isMadeBy(key, seal)) return damage('false_seal', `the seal at ${n} was not made by the audit key`);
    }
    const link = chain.links.get(n);
    if (link === undefined && n > chain.end.n)
      return damage('tail_cut', `the chain ends at ${chain.end.n}, a seal says that it reached ${n}`, chain.end.n + 1n);
    if (link?.equals(seal.hash) !== true) return damage('rewritten', `record ${n} is not the one that was sealed`);
    if (key !== undefined) last = seal;
  }
  return { checked, last, damage: undefined };
}

/** A wrap that does not open makes seals unchecked, which the report says; it is no damage of the record. */
function ignoreUnopened(error: unknown): undefined {
  if (!isKeyturnError(error, 'UNWRAP_FAILED')) throw error;
}

function compareCheckpoint(chain: Chain, checkpoint: ChainHead | undefined): Damage | undefined {
  if (checkpoint === undefined) return undefined;
  const { n } = checkpoint;
  if (n > chain.end.n)
    return { kind: 'tail_cut', n: chain.end.n + 1n, words: `the chain ends at ${chain.end.n}, the checkpoint is ${n}` };
  return chain.links.get(n)?.equals(checkpoint.hash) === true
    ? undefined
    : { kind: 'rewritten', n, words: `record ${n} is not the one of the checkpoint` };
}

async function findInserted(client: Queryable): Promise<Damage | undefined> {
  const id = await findUnlinked(client);
  return id === undefined
    ? undefined
    : { kind: 'inserted', n: undefined, words: `the record with id ${id} was brought in past the chain` };
}

export interface Sealer {
  /** Seals once more, then nothing runs. */
  stop(): Promise<void>;
}

const sealMs = 60_000;

/** Seals once a minute while the process runs. */
export function startSealing(options: {
  database: Database;
  roots: () => Promise<HeldRoots>;
  onTrouble: (error: unknown) => void;
}): Sealer {
  const seal = async (): Promise<void> => {
    await sealAudit(options.database, await options.roots());
  };
  let running: Promise<void> = Promise.resolve();
  const timer = setInterval(() => {
    running = running.then(seal).catch(options.onTrouble);
  }, sealMs);
  timer.unref();
  return {
    async stop() {
      clearInterval(timer);
      await running;
      await seal().catch(options.onTrouble);
    },
  };
}
