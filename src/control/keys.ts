// The operator's verbs on data keys: list, stage, activate, rotate, retire, restore. Each prepares what it needs, then makes
// one short transaction (I5, I10).
import { createValueKey, generateDataKey } from '../crypto/data-key.js';
import type { AlgorithmName } from '../crypto/algorithms.js';
import type { DataKeyIdentity, KeyId } from '../crypto/value-key.js';
import {
  convergeFences,
  holdFences,
  readFences,
  refuseIfTouched,
  refuseUnlessAble,
  refuseUnlessFenced,
} from '../engine/fence.js';
import { proveUnused, refuseWhileAtHand, type RetirementProof } from '../engine/retire.js';
import { waitForMembers } from '../engine/converge.js';
import { findExcused, isNamed, type Laggard, type Requirement } from '../rotation/convergence.js';
import { writeAudit } from '../store/audit.js';
import { listExpectedMembers, listMembers } from '../store/members.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKey, StoredKeyring, StoredWrap } from '../keys/key-store.js';
import { matchRoots, openKeyringOrRefuse, type HeldRoots } from '../keys/open-keyring.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { isLoaded } from '../keys/states.js';
import type { Queryable } from '../store/database.js';
import { markFenced } from '../store/fences.js';
import {
  activateKey,
  getClusterId,
  getKeyring,
  discardStagedKey,
  findStagedOrder,
  insertStagedKey,
  listKeyringNames,
  listRootRecords,
  listRootUris,
  lockKeyring,
  nextKeyId,
  orderStagedKey,
  restoreKey,
  retireKey,
} from '../store/keys.js';
import { listTargets } from '../store/registry.js';
import { listExposedKeys } from '../store/suspect-roots.js';
import { sealRecord } from './audit.js';
import { patienceOf, type ControlContext } from './context.js';
import { demandBackups, findUnbacked } from './backup-policy.js';

/** The keyring named, or the only one. Throws KEYRING_NOT_FOUND, or CONFIG_INVALID when there are several. */
export async function chooseKeyring(database: Queryable, name: string | undefined): Promise<StoredKeyring> {
  if (name !== undefined) return getKeyring(database, name);
  const names = await listKeyringNames(database);
  const [only, ...others] = names;
  if (only === undefined) throw new KeyturnError('NOT_INITIALIZED', 'there is no keyring yet; run: keyturn init');
  if (others.length > 0)
    throw new KeyturnError('USAGE', `there are several keyrings (${names.join(', ')}); say which with --keyring`);
  return getKeyring(database, only);
}

/** `17`, `v3`, or `customers v3 (id 17)`. */
export function findKey(keyring: StoredKeyring, name: string): StoredKey {
  const id = /^(?:.*\(id (\d+)\)|(\d+))$/.exec(name.trim());
  const version = /^v(\d+)$/.exec(name.trim());
  const wantedId = Number(id?.[1] ?? id?.[2]);
  const found = keyring.keys.find((key) =>
    version === null ? key.id === wantedId : key.version === Number(version[1]),
  );
  if (found !== undefined) return found;
  throw new KeyturnError(
    'KEY_NOT_FOUND',
    `keyring ${keyring.name} has no key "${name}"; expected an id (17) or a version (v3); see: keyturn key list`,
    { keyring: keyring.name },
  );
}

export interface KeyringListing {
  readonly keyring: string;
  readonly generation: number;
  readonly algorithm: AlgorithmName;
  readonly keys: readonly KeyListing[];
}

export interface KeyListing {
  readonly id: number;
  readonly version: number;
  readonly title: string;
  readonly state: string;
  readonly compromised: boolean;
  readonly algorithm: AlgorithmName;
  readonly createdAt: string;
  readonly activatedAt: string | undefined;
  readonly retiredAt: string | undefined;
  /** First 8 bytes of the key's commitment. */
  readonly fingerprint: string;
  readonly wraps: number;
}

export async function listKeys(
  context: ControlContext,
  keyring: string | undefined,
): Promise<readonly KeyringListing[]> {
  const names = keyring === undefined ? await listKeyringNames(context.database) : [keyring];
  const listings: KeyringListing[] = [];
  for (const name of names) {
    const stored = await getKeyring(context.database, name);
    listings.push({
      keyring: name,
      generation: stored.generation,
      algorithm: stored.algorithm,
      keys: stored.keys.map((key) => listingOf(stored, key)),
    });
  }
  return listings;
}

export function listingOf(keyring: StoredKeyring, key: StoredKey): KeyListing {
  return {
    id: Number(key.id),
    version: key.version,
    title: keyTitle(keyring.name, key),
    state: key.state,
    compromised: key.isCompromised,
    algorithm: key.algorithm,
    createdAt: key.createdAt.toISOString(),
    activatedAt: key.activatedAt?.toISOString(),
    retiredAt: key.retiredAt?.toISOString(),
    fingerprint: key.commitment.toString('hex', 0, 8),
    wraps: key.wraps.length,
  };
}

/** Root keys that open this keyring; throws MASTER_KEY_MISMATCH before anything is written. */
export async function openRootsOf(context: ControlContext, keyring: StoredKeyring): Promise<HeldRoots> {
  const uris = (await listRootUris(context.database)).get(keyring.name) ?? [];
  const given = await context.openRoots(uris, keyring.cluster);
  const known = await listRootRecords(context.database);
  if (keyring.keys.length === 0) return matchRoots(given, known);
  return (await openKeyringOrRefuse(keyring, given, known)).roots;
}

/** What every verb that makes or activates a key answers. */
interface TurnedKey {
  readonly keyring: string;
  readonly key: KeyListing;
  /** Keys of the keyring that no backup covers, new ones included. */
  readonly unbackedKeys: readonly number[];
}

export interface Staging {
  /** A rotation takes the staged key up; without it the key is a standby. */
  readonly isOrdered?: boolean;
  /** Nothing is made and nothing taken up when another command has activated a key since. */
  readonly unlessActivatedSince?: Date;
  /** The same, as a refusal, once another key than this one is active. */
  readonly replacing?: KeyId | undefined;
  /** Only a key that was made in this compromised key's stead will do. */
  readonly insteadOf?: number | undefined;
}

/**
 * Makes a data key and stages it: persisted, committed, read back on another connection, unwrapped and compared. A staged
 * key decrypts and never encrypts. When one is staged already, that one is returned: there is never a second. One of an
 * algorithm that the keyring has left is discarded for a new one. Throws KEY_STATE_REFUSED when none is staged after all.
 */
export async function stageKey(
  context: ControlContext,
  keyringName: string | undefined,
  reason: string | undefined,
  staging: Staging = {},
): Promise<TurnedKey & { isNew: boolean }> {
  const keyring = await chooseKeyring(context.database, keyringName);
  await demandBackups(context, keyring);
  return stageIn(context, keyring, reason, staging);
}

/** The same whatever the policy on backups: a standby encrypts nothing yet, and an emergency does not wait for a backup. */
export async function stageIn(
  context: ControlContext,
  before: StoredKeyring,
  reason: string | undefined,
  staging: Staging = {},
): Promise<TurnedKey & { isNew: boolean }> {
  const roots = await openRootsOf(context, before);
  const inserted = await context.database.transaction(async (client) => {
    const keyring = await lockKeyring(client, before.name);
    const { unlessActivatedSince: since, insteadOf } = staging;
    refuseIfReplaced(keyring, staging.replacing);
    if (since !== undefined && activeSince(keyring, since) !== undefined) return false;
    const isNew = !(await keepsFit(client, keyring, insteadOf, reason));
    if (isNew)
      await insertNewKey(client, await getKeyring(client, keyring.name), roots, {
        reason: reason ?? standby,
        insteadOf,
      });
    if (staging.isOrdered === true) await orderStagedKey(client, keyring, reason);
    return isNew;
  });
  if (inserted) await context.reachPoint?.('rot.after_key_insert');
  const after = await getKeyring(context.database, before.name);
  const staged = after.keys.find((key) => key.state === 'staged');
  if (staged === undefined)
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `the staged key of ${before.name} was activated or discarded by another command meanwhile; see: keyturn key list`,
    );
  await proveReadable(context, after, staged, roots);
  await sealRecord(context, roots);
  return {
    keyring: after.name,
    key: listingOf(after, staged),
    isNew: inserted,
    unbackedKeys: await findUnbacked(context, after),
  };
}

/** The reason on record where the operator gave none. */
const standby = 'kept ready for the next rotation';

/** Under the locked keyring: whether a staged key is there that may be activated. One that may not is discarded. */
async function keepsFit(
  client: Queryable,
  keyring: StoredKeyring,
  insteadOf: number | undefined,
  reason: string | undefined,
): Promise<boolean> {
  const staged = keyring.keys.find((key) => key.state === 'staged');
  if (staged === undefined) return false;
  if (await isFit(client, keyring, staged, insteadOf)) return true;
  const why =
    staged.algorithm === keyring.algorithm ? 'others may hold its root key' : `new keys are ${keyring.algorithm}`;
  await discardStagedKey(client, keyring, staged, reason ?? why);
  return false;
}

/**
 * Whether a staged key may be activated: it has the keyring's algorithm, it was made in the stead of the key that is to be
 * replaced where that is asked for, and nobody who holds a suspect root key has it.
 */
export async function isFit(
  client: Queryable,
  keyring: StoredKeyring,
  staged: StoredKey,
  insteadOf: number | undefined,
): Promise<boolean> {
  if (staged.algorithm !== keyring.algorithm) return false;
  if (insteadOf !== undefined && (await findStagedOrder(client, keyring.id))?.insteadOf !== insteadOf) return false;
  return !(await isExposed(client, keyring, staged));
}

/** Whether it was ever wrapped under a suspect root key, and another key would be better. */
async function isExposed(client: Queryable, keyring: StoredKeyring, key: StoredKey): Promise<boolean> {
  return (await listExposedKeys(client, keyring.id)).some(({ id, isReplaceable }) => id === key.id && isReplaceable);
}

/** The active key, if it was activated at that time or later. */
export function activeSince(keyring: StoredKeyring, time: Date): StoredKey | undefined {
  return keyring.keys.find((key) => key.state === 'active' && key.activatedAt !== undefined && key.activatedAt >= time);
}

/** Under the locked keyring. A key that was active when a rotation was found due and is no longer has been rotated away from. */
function refuseIfReplaced(keyring: StoredKeyring, replacing: KeyId | undefined): void {
  const active = keyring.keys.find((key) => key.state === 'active');
  if (replacing === undefined || active?.id === replacing) return;
  throw new KeyturnError(
    'KEY_STATE_REFUSED',
    `keyring ${keyring.name} was rotated by another command meanwhile; see: keyturn key list`,
    { keyring: keyring.name },
  );
}

/**
 * Under the locked keyring: random material, wrapped under every root key that opens the keyring's other keys, inserted as
 * staged. During a root change these are two, so that members with either can open the new key.
 */
export async function insertNewKey(
  client: Queryable,
  keyring: StoredKeyring,
  roots: HeldRoots,
  order: { readonly reason: string | undefined; readonly insteadOf?: number | undefined },
): Promise<void> {
  const identity: DataKeyIdentity = {
    id: await nextKeyId(client),
    algorithm: keyring.algorithm,
    purpose: 1,
    cluster: keyring.cluster,
    scope: keyring.id,
  };
  const key = createValueKey(identity, generateDataKey());
  const wraps: StoredWrap[] = [];
  for (const [rootId, root] of rootsForNewKey(keyring, roots))
    wraps.push({ rootId, blob: await root.wrap(rootId, identity, key.material) });
  await insertStagedKey(client, keyring, { identity, commitment: key.commitment, wraps, ...order });
}

/** Never a root key that no other key of the keyring is under: it may have been replaced a moment ago. */
function rootsForNewKey(keyring: StoredKeyring, held: HeldRoots): readonly (readonly [number, RootKey])[] {
  const current = new Set(
    keyring.keys.filter(({ state }) => isLoaded(state)).flatMap(({ wraps }) => wraps.map(({ rootId }) => rootId)),
  );
  const wanted = current.size === 0 ? [...held.keys()] : [...current];
  return wanted.map((rootId) => {
    const root = held.get(rootId);
    if (root !== undefined) return [rootId, root];
    throw new KeyturnError(
      'ROOT_KEY_UNAVAILABLE',
      `a new data key of keyring ${keyring.name} must be wrapped under root key ${rootId}, which this process does not hold; give it as well (keyturn root status says where it is) and repeat the command`,
      { keyring: keyring.name, rootId },
    );
  });
}

/** A key is used only after its row was read back, unwrapped and compared (the unwrap compares the commitment). */
export async function proveReadable(
  context: ControlContext,
  keyring: StoredKeyring,
  key: StoredKey,
  roots: HeldRoots,
): Promise<void> {
  const identity: DataKeyIdentity = {
    id: Number(key.id),
    algorithm: key.algorithm,
    purpose: 1,
    cluster: await getClusterId(context.database),
    scope: keyring.id,
  };
  for (const wrap of key.wraps) {
    await roots.get(wrap.rootId)?.unwrap(wrap.rootId, identity, key.commitment, wrap.blob);
  }
}

export interface Activated extends TurnedKey {
  /** What the operator went on without, and what will fail there. */
  readonly without: readonly Excused[];
}

export interface Excused {
  readonly member: string;
  readonly why: string;
  readonly fails: string;
}

/**
 * Makes a staged key, or an earlier one, the active key: only after every live member holds it and reads its algorithm
 * and formats. Stages the next one, then waits until all members write with the active one. Throws MEMBER_BEHIND naming the laggards. `without`: names or
 * ids of members that it does not wait for.
 */
export async function activate(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string | undefined,
  reason: string | undefined,
  without: readonly string[] = [],
): Promise<Activated> {
  await refuseUnlessKnown(context, without, reason);
  const keyring = await chooseKeyring(context.database, keyringName);
  await demandBackups(context, keyring);
  return activateIn(context, keyring, keyName, { reason, without });
}

async function activateIn(
  context: ControlContext,
  keyring: StoredKeyring,
  keyName: string | undefined,
  {
    reason,
    without,
    replacing,
  }: {
    readonly reason: string | undefined;
    readonly without: readonly string[];
    readonly replacing?: KeyId | undefined;
  },
): Promise<Activated> {
  const key =
    keyName === undefined ? keyring.keys.find((candidate) => candidate.state === 'staged') : findKey(keyring, keyName);
  if (key === undefined)
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `keyring ${keyring.name} has no staged key; stage one with: keyturn key stage`,
      { keyring: keyring.name },
    );
  const title = keyTitle(keyring.name, key);
  if (key.isCompromised)
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `${title} is compromised and never encrypts again; rotate forward with: keyturn key rotate --keyring ${keyring.name}`,
      { keyId: String(key.id), state: key.state },
    );
  if (key.state !== 'active' && (await isExposed(context.database, keyring, key)))
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `${title} was wrapped under a root key that others may hold, and will not encrypt; rotate forward with: keyturn key rotate --keyring ${keyring.name}`,
      { keyId: String(key.id), state: key.state },
    );
  const roots = await openRootsOf(context, keyring);
  await proveReadable(context, keyring, key, roots);
  const excused: Excused[] = [];
  if (key.state !== 'active') {
    const behind = await converge(
      context,
      keyring,
      { holdsKeyId: Number(key.id), algorithm: key.algorithm, formats: await formatsOf(context, keyring), without },
      `can decrypt with ${title}`,
    );
    excused.push(...behind.map((laggard) => excuse(laggard, title)));
    await lowerFenceBefore(context, keyring, key, reason);
    await context.database.transaction(async (client) => {
      const locked = await lockKeyring(client, keyring.name);
      refuseIfReplaced(locked, replacing);
      await context.reachPoint?.('rot.before_activate');
      await activateKey(client, locked, locked.keys.find((candidate) => candidate.id === key.id) ?? key, reason);
      if (excused.length > 0)
        await writeAudit(client, {
          action: 'key.activate.without',
          object: `key ${key.id}`,
          reason,
          after: { without: excused.map(({ member, why }) => `${member} ${why}`) },
        });
    });
    await context.reachPoint?.('rot.after_activate');
    await sealRecord(context, roots);
  }
  // Before the members are waited for: one refresh brings them both.
  await stageIn(context, keyring, reason);
  const writers = await converge(
    context,
    keyring,
    { writesWithKeyId: Number(key.id), without },
    `writes with ${title}`,
  );
  const isNamedBefore = (laggard: Laggard): boolean => excused.some(({ member }) => member === laggard.member);
  excused.push(...writers.filter((laggard) => !isNamedBefore(laggard)).map((laggard) => excuse(laggard, title)));
  const after = await getKeyring(context.database, keyring.name);
  return {
    keyring: keyring.name,
    key: listingOf(after, findKey(after, String(key.id))),
    without: excused,
    unbackedKeys: await findUnbacked(context, after),
  };
}

export function excuse({ member, why }: Laggard, title: string): Excused {
  return {
    member,
    why,
    fails: `until it has loaded that key it cannot read values written with ${title}; while it is live and writes with the key before, runs toward ${title} wait for it`,
  };
}

/** A mistyped name would be waited for, or worse, be taken for somebody nobody waits for. */
async function refuseUnlessKnown(
  context: ControlContext,
  without: readonly string[],
  reason: string | undefined,
): Promise<void> {
  if (without.length === 0) return;
  if (reason === undefined)
    throw new KeyturnError('USAGE', 'going on without a member is recorded with its reason; say why with --reason');
  const members = await listMembers(context.database);
  const expected = await listExpectedMembers(context.database);
  const unknown = without.find((word) => !expected.includes(word) && !members.some((member) => isNamed(member, word)));
  if (unknown === undefined) return;
  throw new KeyturnError(
    'MEMBER_NOT_FOUND',
    `there is no member "${unknown}", live, silent or expected; expected a name or an id; see: keyturn member list`,
    { member: unknown },
  );
}

async function formatsOf(context: ControlContext, keyring: StoredKeyring): Promise<readonly string[]> {
  const targets = await listTargets(context.database, keyring.id);
  return [...new Set(targets.flatMap((target) => target.columns.map((column) => column.format)))];
}

export async function converge(
  context: ControlContext,
  keyring: StoredKeyring,
  need: Omit<Requirement, 'keyringId' | 'expectedMembers'>,
  goal: string,
): Promise<readonly Laggard[]> {
  const requirement = {
    keyringId: keyring.id,
    ...need,
    expectedMembers: await listExpectedMembers(context.database),
  };
  const laggards = await waitForMembers(context.database, requirement, {
    deadlineMs: patienceOf(context).patienceMs,
    onWait: (waiting) =>
      context.onProgress(
        `waiting until every live member ${goal}: ${waiting.map(({ member, why }) => `${member} ${why}`).join('; ')}`,
      ),
  });
  if (laggards.length === 0) return findExcused(await listMembers(context.database), requirement);
  throw new KeyturnError(
    'MEMBER_BEHIND',
    `not every live member ${goal}: ${laggards.map(({ member, why }) => `${member} ${why}`).join('; ')}; update or stop it, then repeat the command`,
    { keyring: keyring.name, members: laggards.map(({ member }) => member) },
  );
}

export interface RotateOptions {
  readonly keyring: string | undefined;
  /** Milliseconds: leave a younger active key alone. */
  readonly ifOlderThanMs: number | undefined;
  readonly reason: string | undefined;
  /** Names or ids of members that are not waited for. */
  readonly without?: readonly string[];
}

/** `isNew`: false where the active key stays: it is young enough, or another command has just made it the active one. */
export interface Rotated extends Activated {
  readonly isNew: boolean;
}

/**
 * Activates the standby, or stages a key where there is none, and leaves a new standby. Goes on with a rotation that was cut
 * short. Of commands that find a rotation due at the same time one makes it, and it is the others' as well.
 */
export async function rotateKey(context: ControlContext, options: RotateOptions): Promise<Rotated> {
  const keyring = await chooseKeyring(context.database, options.keyring);
  await refuseUnlessKnown(context, options.without ?? [], options.reason);
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active !== undefined && !(await isRotationDue(context, keyring, options.ifOlderThanMs)))
    return stayWith(context, keyring, active, options);
  // Asked once: the key that is made here cannot be in a backup before it is there.
  await demandBackups(context, keyring);
  try {
    return { ...(await replaceActive(context, keyring, active?.id, options)), isNew: true };
  } catch (error) {
    const after = await getKeyring(context.database, keyring.name);
    const now = after.keys.find((key) => key.state === 'active');
    if (!isKeyturnError(error, 'KEY_STATE_REFUSED') || now === undefined || now.id === active?.id) throw error;
    return stayWith(context, after, now, options);
  }
}

/** Throws KEY_STATE_REFUSED when another command was first. */
async function replaceActive(
  context: ControlContext,
  keyring: StoredKeyring,
  replacing: KeyId | undefined,
  { reason, without = [] }: RotateOptions,
): Promise<Activated> {
  const staged = await stageIn(context, keyring, reason, { isOrdered: true, replacing });
  const after = await getKeyring(context.database, keyring.name);
  refuseIfReplaced(after, replacing);
  return activateIn(context, after, String(staged.key.id), { reason, without, replacing });
}

/** No rotation; what one leaves is there all the same: every member writes with the active key, and a standby is ready. */
async function stayWith(
  context: ControlContext,
  keyring: StoredKeyring,
  active: StoredKey,
  options: RotateOptions,
): Promise<Rotated> {
  await converge(
    context,
    keyring,
    { writesWithKeyId: Number(active.id), without: options.without ?? [] },
    `writes with ${keyTitle(keyring.name, active)}`,
  );
  if (!keyring.keys.some((key) => key.state === 'staged')) await stageIn(context, keyring, options.reason);
  const after = await getKeyring(context.database, keyring.name);
  return {
    keyring: keyring.name,
    key: listingOf(after, findKey(after, String(active.id))),
    without: [],
    isNew: false,
    unbackedKeys: await findUnbacked(context, keyring),
  };
}

/** Whether `rotateKey` would activate a key now, rather than leave a young active key alone: a standby alone is no rotation. */
export async function isRotationDue(
  context: ControlContext,
  keyring: StoredKeyring,
  ifOlderThanMs: number | undefined,
): Promise<boolean> {
  const active = keyring.keys.find((key) => key.state === 'active');
  const isBegun = (await findStagedOrder(context.database, keyring.id))?.isOrdered === true;
  return active === undefined || isBegun || ifOlderThanMs === undefined || isOlderThan(context, active, ifOlderThanMs);
}

/** Age since activation, by the database clock. */
async function isOlderThan(context: ControlContext, key: StoredKey, ageMs: number): Promise<boolean> {
  const { rows } = await context.database.query(
    'SELECT activated_at < clock_timestamp() - make_interval(secs => $2) FROM keyturn.data_key WHERE id = $1',
    [key.id, ageMs / 1_000],
  );
  return rows[0]?.[0] === true;
}

/**
 * Raises the fence against the key, proves that nothing names it, then refuses to load it any more. A refusal lowers the fence
 * again. Throws KEY_IN_USE, MEMBER_BEHIND, OLDER_TRANSACTION_RUNNING, FORBIDDEN.
 */
export async function retire(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  reason: string | undefined,
): Promise<{ keyring: string; key: KeyListing; proof: RetirementProof }> {
  const { database } = context;
  const keyring = await chooseKeyring(database, keyringName);
  const key = findKey(keyring, keyName);
  refuseUnlessRetirable(keyring, key);
  await refuseWhileAtHand(database, keyring, key);
  await refuseUnlessAble(database, key, true);
  const wasFenced = await orderFence(context, keyring.name, key, reason);
  let proof: RetirementProof;
  try {
    await context.reachPoint?.('fence.before_ddl');
    await convergeFences(database, patienceOf(context));
    await context.reachPoint?.('fence.after_ddl');
    const fences = await readFences(database);
    refuseUnlessFenced(fences, Number(key.id));
    proof = await proveUnused(database, keyring, key, {
      onProgress: context.onProgress,
      olderTransactionsMs: patienceOf(context).patienceMs,
    });
    await context.reachPoint?.('retire.after_scan');
    await database.transaction(async (client) => {
      const now = await holdFences(client);
      const locked = await lockKeyring(client, keyring.name);
      refuseIfTouched(fences, now, Number(key.id));
      await retireKey(
        client,
        locked,
        findKey(locked, String(key.id)),
        {
          snapshot: proof.snapshot,
          scannedAt: new Date(proof.scannedAt),
          evidence: { ...proof, fence: now.map(({ table, definitions }) => ({ table, definitions })) },
        },
        reason,
      );
      await context.reachPoint?.('retire.before_state');
    }, beginDurable);
  } catch (error) {
    if (!wasFenced && isKeyturnError(error)) await takeFenceBack(context, keyring.name, key, reason);
    throw error;
  }
  const after = await getKeyring(database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))), proof };
}

/** The states of keys outlive a crash of the server, whatever its settings. */
export const beginDurable = 'BEGIN; SET LOCAL synchronous_commit = on';

function refuseUnlessRetirable(keyring: StoredKeyring, key: StoredKey): void {
  if (key.state === 'decrypt_only') return;
  const why = key.state === 'active' ? 'it is the active key; rotate first' : `it is ${key.state}`;
  throw new KeyturnError('KEY_STATE_REFUSED', `${keyTitle(keyring.name, key)} cannot retire: ${why}`, {
    keyId: String(key.id),
    state: key.state,
  });
}

/** Answers whether an earlier command had ordered it already. */
async function orderFence(
  context: ControlContext,
  keyringName: string,
  key: StoredKey,
  reason: string | undefined,
): Promise<boolean> {
  return context.database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyringName);
    refuseUnlessRetirable(locked, findKey(locked, String(key.id)));
    return !(await markFenced(client, Number(key.id), true, reason));
  }, beginDurable);
}

/** Unless another command has retired the key meanwhile. What fails here is left to the next command. */
async function takeFenceBack(
  context: ControlContext,
  keyringName: string,
  key: StoredKey,
  reason: string | undefined,
): Promise<void> {
  const { database, onProgress } = context;
  try {
    await database.transaction(async (client) => {
      const locked = await lockKeyring(client, keyringName);
      if (findKey(locked, String(key.id)).state === 'decrypt_only')
        await markFenced(client, Number(key.id), false, reason);
    });
    await convergeFences(database, patienceOf(context));
  } catch (error) {
    if (!isKeyturnError(error)) throw error;
    onProgress(`the fence was not lowered everywhere (${error.code}); keyturn init does it`);
  }
}

/** Undoes a retirement: the fence goes down and the key decrypts again. */
export async function restore(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  reason: string | undefined,
): Promise<{ keyring: string; key: KeyListing }> {
  const { database } = context;
  const keyring = await chooseKeyring(database, keyringName);
  const key = findKey(keyring, keyName);
  await refuseUnlessAble(database, key, false);
  await database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring.name);
    await restoreKey(client, locked, findKey(locked, String(key.id)), reason);
  }, beginDurable);
  await convergeFences(database, patienceOf(context));
  const after = await getKeyring(database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))) };
}

/** A roll back to an earlier key: nothing may refuse what it is about to write. */
async function lowerFenceBefore(
  context: ControlContext,
  keyring: StoredKeyring,
  key: StoredKey,
  reason: string | undefined,
): Promise<void> {
  if (key.state !== 'decrypt_only') return;
  await refuseUnlessAble(context.database, key, false);
  await context.database.transaction(async (client) => {
    await lockKeyring(client, keyring.name);
    await markFenced(client, Number(key.id), false, reason);
  });
  await convergeFences(context.database, patienceOf(context));
}
