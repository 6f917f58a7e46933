// The operator's verbs on the record: list and verify. And the audit key, which `init` makes.
import { commitmentOf, generateDataKey } from '../crypto/data-key.js';
import { sealAudit, verifyChain, type DamageKind } from '../engine/audit-chain.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { StoredWrap } from '../keys/key-store.js';
import { matchRoots, type HeldRoots } from '../keys/open-keyring.js';
import type { RootKey } from '../keys/roots/root-key.js';
import {
  addAuditKeyWrap,
  auditIdentity,
  insertAuditKey,
  listAuditKeys,
  nextAuditKeyId,
  replaceAuditKey,
  type StoredAuditKey,
} from '../store/audit-keys.js';
import { listAudit, type AuditFilter } from '../store/audit.js';
import type { Queryable } from '../store/database.js';
import { isAuditKeyExposed, isSuspect } from '../store/suspect-roots.js';
import { getClusterId, listRootRecords, listRootUris } from '../store/keys.js';
import type { ControlContext } from './context.js';

export interface AuditListing {
  /** Position in the chain. */
  readonly record: number;
  readonly at: string;
  /** The database login. */
  readonly actor: string;
  readonly action: string;
  readonly object: string;
  readonly reason: string | null;
  readonly before: unknown;
  readonly after: unknown;
}

/** Newest first. Needs the database alone. */
export async function listRecords(context: ControlContext, filter: AuditFilter): Promise<readonly AuditListing[]> {
  return (await listAudit(context.database, filter)).map((record) => ({
    record: Number(record.n),
    at: record.at.toISOString(),
    actor: record.actor,
    action: record.action,
    object: record.object,
    reason: record.reason ?? null,
    before: record.before === undefined ? null : (JSON.parse(record.before) as unknown),
    after: record.after === undefined ? null : (JSON.parse(record.after) as unknown),
  }));
}

export interface AuditVerification {
  readonly intact: boolean;
  readonly records: number;
  /** The first thing that does not fit; `record` is null for one that was brought in past the chain. */
  readonly damage: { readonly kind: DamageKind; readonly record: number | null; readonly what: string } | null;
  /** What to keep outside the database, and to give back with --checkpoint; null for a damaged record. */
  readonly checkpoint: string | null;
  readonly seals: {
    readonly stored: number;
    /** Fewer than stored where no root key is at hand that opens the audit key. */
    readonly checked: number;
    readonly sealed_to: number | null;
    readonly sealed_at: string | null;
  };
}

/**
 * Recomputes the chain from the records, and compares the seals where a root key is at hand. `checkpoint` is what an earlier
 * call printed. Throws MASTER_KEY_MISMATCH for a root key that this cluster does not know.
 */
export async function verifyAudit(context: ControlContext, checkpoint: string | undefined): Promise<AuditVerification> {
  const { database } = context;
  const known = checkpoint === undefined ? undefined : parseCheckpoint(checkpoint);
  const { damage, end, seals } = await verifyChain(database, await openHeldRoots(context), known);
  return {
    intact: damage === undefined,
    records: Number(end.n),
    damage:
      damage === undefined
        ? null
        : { kind: damage.kind, record: damage.n === undefined ? null : Number(damage.n), what: damage.words },
    checkpoint: damage === undefined ? `${end.n}:${end.hash.toString('hex')}` : null,
    seals: {
      stored: seals.stored,
      checked: seals.checked,
      sealed_to: seals.last === undefined ? null : Number(seals.last.n),
      sealed_at: seals.last?.sealedAt.toISOString() ?? null,
    },
  };
}

function parseCheckpoint(text: string): { n: bigint; hash: Buffer } {
  const [, n, hash] = /^(\d{1,18}):([0-9a-f]{64})$/.exec(text) ?? [];
  if (n === undefined || hash === undefined)
    throw new KeyturnError(
      'USAGE',
      'a checkpoint is what keyturn audit verify printed earlier: a number, a colon and 64 hexadecimal characters',
    );
  return { n: BigInt(n), hash: Buffer.from(hash, 'hex') };
}

/** Root keys of the registry that are at hand here; those of other machines are left out. */
async function openHeldRoots(context: ControlContext): Promise<HeldRoots> {
  const { database } = context;
  const cluster = await getClusterId(database);
  const opened: RootKey[] = [];
  for (const uri of new Set([...(await listRootUris(database)).values()].flat())) {
    try {
      opened.push(...(await context.openRoots([uri], cluster)));
    } catch (error) {
      if (!isKeyturnError(error, 'ROOT_KEY_UNAVAILABLE')) throw error;
    }
  }
  const known = await listRootRecords(database);
  const held = matchRoots(opened, known);
  if (opened.length > 0 && held.size === 0)
    throw new KeyturnError(
      'MASTER_KEY_MISMATCH',
      `MasterKeyMismatch: this cluster does not know root key ${opened.map((root) => root.shortFingerprint).join(', ')}; give the right one, or none to verify without the seals`,
    );
  return held;
}

/**
 * Makes the audit key where there is none, wrapped under every root key at hand; wraps it for root keys that came since.
 * In the caller's transaction, under the lock that keeps a second `init` out.
 */
export async function ensureAuditKey(
  client: Queryable,
  given: { cluster: string; roots: readonly RootKey[] },
  reason: string | undefined,
): Promise<void> {
  const roots = matchRoots(given.roots, await listRootRecords(client));
  const [stored] = await listAuditKeys(client);
  if (roots.size === 0) return;
  if (stored === undefined) {
    await insertAuditKey(client, await makeAuditKey(client, given.cluster, roots), reason);
    return;
  }
  const opening = stored.wraps.find((wrap) => roots.has(wrap.rootId));
  if (opening === undefined) return;
  const { identity, commitment } = stored;
  const key = await roots.get(opening.rootId)?.unwrap(opening.rootId, identity, commitment, opening.blob);
  for (const [rootId, root] of roots) {
    if (key === undefined || stored.wraps.some((wrap) => wrap.rootId === rootId)) continue;
    await addAuditKeyWrap(
      client,
      identity.id,
      { rootId, blob: await root.wrap(rootId, identity, key.material) },
      reason,
    );
  }
}

async function makeAuditKey(client: Queryable, cluster: string, roots: HeldRoots): Promise<StoredAuditKey> {
  const identity = auditIdentity(await nextAuditKeyId(client), cluster);
  const material = generateDataKey();
  const wraps: StoredWrap[] = [];
  for (const [rootId, root] of roots) wraps.push({ rootId, blob: await root.wrap(rootId, identity, material) });
  return { identity, commitment: commitmentOf(identity, material), wraps };
}

/**
 * Replaces an audit key that was ever wrapped under a suspect root key: whoever holds that root can make its seals. The new
 * one is wrapped under the root keys at hand, of which none is suspect. Answers the id of the new one; undefined where the
 * present one is out of reach of them.
 */
export async function replaceExposedAuditKey(
  context: ControlContext,
  reason: string | undefined,
): Promise<number | undefined> {
  const { database } = context;
  if (!(await isAuditKeyExposed(database))) return undefined;
  const roots = await withoutSuspects(database, await openHeldRoots(context));
  const made = await database.transaction(async (client) => {
    await client.query('LOCK TABLE keyturn.cluster IN SHARE ROW EXCLUSIVE MODE');
    const [stored] = await listAuditKeys(client);
    if (stored === undefined || !(await isAuditKeyExposed(client))) return undefined;
    const key = await makeAuditKey(client, await getClusterId(client), roots);
    await replaceAuditKey(client, stored, key, reason);
    return key.identity.id;
  });
  await sealRecord(context, roots);
  return made;
}

async function withoutSuspects(database: Queryable, held: HeldRoots): Promise<HeldRoots> {
  const roots = new Map<number, RootKey>();
  for (const [id, root] of held) if (!(await isSuspect(database, root.fingerprint))) roots.set(id, root);
  if (roots.size > 0) return roots;
  throw new KeyturnError(
    'ROOT_KEY_UNAVAILABLE',
    'a new audit key needs a root key that others do not hold, and none is at hand; give the present root key and repeat the command',
  );
}

/**
 * After a key event: what was recorded is sealed by the process that caused it. A damaged record is said and never sealed,
 * but keys can be turned all the same: an emergency is when records get damaged.
 */
export async function sealRecord(context: ControlContext, roots: HeldRoots): Promise<void> {
  try {
    await sealAudit(context.database, roots);
  } catch (error) {
    if (!isKeyturnError(error, 'AUDIT_DAMAGED')) throw error;
    context.onProgress(error.message);
  }
}
