// The operator's verbs on data keys: list, stage, activate, rotate, retire, restore. Each prepares what it needs, then makes
// one short transaction (I5, I10).
import { createValueKey, generateDataKey } from '../crypto/data-key.js';
import type { AlgorithmName } from '../crypto/algorithms.js';
import type { DataKeyIdentity } from '../crypto/value-key.js';
import { proveUnused, type RetirementProof } from '../engine/retire.js';
import { waitForMembers } from '../engine/converge.js';
import { findExcused, isNamed, type Laggard, type Requirement } from '../rotation/convergence.js';
import { writeAudit } from '../store/audit.js';
import { listExpectedMembers, listMembers } from '../store/members.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKey, StoredKeyring, StoredWrap } from '../keys/key-store.js';
import { matchRoots, openKeyringOrRefuse, type HeldRoots } from '../keys/open-keyring.js';
import type { Queryable } from '../store/database.js';
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
import { sealRecord } from './audit.js';
import type { ControlContext } from './context.js';

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

export interface Staging {
  /** A rotation takes the staged key up; without it the key is a standby. */
  readonly isOrdered?: boolean;
  /** Nothing is made and nothing taken up when another command has activated a key since. */
  readonly unlessActivatedSince?: Date;
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
): Promise<{ keyring: string; key: KeyListing; isNew: boolean }> {
  const before = await chooseKeyring(context.database, keyringName);
  const roots = await openRootsOf(context, before);
  const inserted = await context.database.transaction(async (client) => {
    const keyring = await lockKeyring(client, before.name);
    const { unlessActivatedSince: since, insteadOf } = staging;
    if (since !== undefined && activeSince(keyring, since) !== undefined) return false;
    const isNew = !(await discardUnfit(client, keyring, insteadOf, reason));
    if (isNew)
      await insertNewKey(client, await getKeyring(client, keyring.name), roots, {
        reason: reason ?? standby,
        insteadOf,
      });
    if (staging.isOrdered === true) await orderStagedKey(client, keyring, reason);
    return isNew;
  });
  const after = await getKeyring(context.database, before.name);
  const staged = after.keys.find((key) => key.state === 'staged');
  if (staged === undefined)
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `the staged key of ${before.name} was activated or discarded by another command meanwhile; see: keyturn key list`,
    );
  await proveReadable(context, after, staged, roots);
  await sealRecord(context, roots);
  return { keyring: after.name, key: listingOf(after, staged), isNew: inserted };
}

/** The reason on record where the operator gave none. */
const standby = 'kept ready for the next rotation';

/** Under the locked keyring: whether a staged key is there that may be activated. */
async function discardUnfit(
  client: Queryable,
  keyring: StoredKeyring,
  insteadOf: number | undefined,
  reason: string | undefined,
): Promise<boolean> {
  const staged = keyring.keys.find((key) => key.state === 'staged');
  if (staged === undefined) return false;
  const order = await findStagedOrder(client, keyring.id);
  if (staged.algorithm === keyring.algorithm && (insteadOf === undefined || order?.insteadOf === insteadOf))
    return true;
  await discardStagedKey(client, keyring, staged, reason ?? `new keys are ${keyring.algorithm}`);
  return false;
}

/** The active key, if it was activated at that time or later. */
export function activeSince(keyring: StoredKeyring, time: Date): StoredKey | undefined {
  return keyring.keys.find((key) => key.state === 'active' && key.activatedAt !== undefined && key.activatedAt >= time);
}

/** Under the locked keyring: random material, wrapped under every root this process holds, inserted as staged. */
export async function insertNewKey(
  client: Queryable,
  keyring: StoredKeyring,
  roots: HeldRoots,
  order: { readonly reason: string | undefined; readonly insteadOf?: number | undefined },
): Promise<void> {
  if (roots.size === 0)
    throw new KeyturnError(
      'ROOT_KEY_UNAVAILABLE',
      `no root key of keyring ${keyring.name} is held, so a new data key could not be wrapped`,
      { keyring: keyring.name },
    );
  const identity: DataKeyIdentity = {
    id: await nextKeyId(client),
    algorithm: keyring.algorithm,
    purpose: 1,
    cluster: keyring.cluster,
    scope: keyring.id,
  };
  const key = createValueKey(identity, generateDataKey());
  const wraps: StoredWrap[] = [];
  for (const [rootId, root] of roots) wraps.push({ rootId, blob: await root.wrap(rootId, identity, key.material) });
  await insertStagedKey(client, keyring, { identity, commitment: key.commitment, wraps, ...order });
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

export const defaultPatienceMs = 60_000;

export interface Activated {
  readonly keyring: string;
  readonly key: KeyListing;
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
    await context.database.transaction(async (client) => {
      const locked = await lockKeyring(client, keyring.name);
      await activateKey(client, locked, locked.keys.find((candidate) => candidate.id === key.id) ?? key, reason);
      if (excused.length > 0)
        await writeAudit(client, {
          action: 'key.activate.without',
          object: `key ${key.id}`,
          reason,
          after: { without: excused.map(({ member, why }) => `${member} ${why}`) },
        });
    });
    await sealRecord(context, roots);
  }
  // Before the members are waited for: one refresh brings them both.
  await stageKey(context, keyring.name, reason);
  const writers = await converge(
    context,
    keyring,
    { writesWithKeyId: Number(key.id), without },
    `writes with ${title}`,
  );
  const isNamedBefore = (laggard: Laggard): boolean => excused.some(({ member }) => member === laggard.member);
  excused.push(...writers.filter((laggard) => !isNamedBefore(laggard)).map((laggard) => excuse(laggard, title)));
  const after = await getKeyring(context.database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))), without: excused };
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

async function converge(
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
    deadlineMs: context.patienceMs ?? defaultPatienceMs,
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

/** Activates the standby, or stages a key where there is none, and leaves a new standby. Goes on with a rotation that was cut short. */
export async function rotateKey(
  context: ControlContext,
  options: RotateOptions,
): Promise<Activated & { readonly isNew: boolean }> {
  const keyring = await chooseKeyring(context.database, options.keyring);
  await refuseUnlessKnown(context, options.without ?? [], options.reason);
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active !== undefined && !(await isRotationDue(context, keyring, options.ifOlderThanMs))) {
    await converge(
      context,
      keyring,
      { writesWithKeyId: Number(active.id), without: options.without ?? [] },
      `writes with ${keyTitle(keyring.name, active)}`,
    );
    if (!keyring.keys.some((key) => key.state === 'staged')) await stageKey(context, keyring.name, options.reason);
    return { keyring: keyring.name, key: listingOf(keyring, active), without: [], isNew: false };
  }
  const staged = await stageKey(context, keyring.name, options.reason, { isOrdered: true });
  const activated = await activate(context, keyring.name, String(staged.key.id), options.reason, options.without);
  return { ...activated, isNew: true };
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

/** Proves that nothing names the key, then refuses to load it any more. Throws KEY_IN_USE, MEMBER_BEHIND. */
export async function retire(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  reason: string | undefined,
): Promise<{ keyring: string; key: KeyListing; proof: RetirementProof }> {
  const keyring = await chooseKeyring(context.database, keyringName);
  const key = findKey(keyring, keyName);
  if (key.state !== 'decrypt_only') {
    const why = key.state === 'active' ? 'it is the active key; rotate first' : `it is ${key.state}`;
    throw new KeyturnError('KEY_STATE_REFUSED', `${keyTitle(keyring.name, key)} cannot retire: ${why}`, {
      keyId: String(key.id),
      state: key.state,
    });
  }
  const proof = await proveUnused(context.database, keyring, key, {
    onProgress: context.onProgress,
    olderTransactionsMs: context.patienceMs ?? defaultPatienceMs,
  });
  await context.database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring.name);
    await retireKey(
      client,
      locked,
      findKey(locked, String(key.id)),
      { provisional: true, snapshot: proof.snapshot, scannedAt: new Date(proof.scannedAt), evidence: proof },
      reason,
    );
  });
  const after = await getKeyring(context.database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))), proof };
}

/** Undoes a retirement: the key decrypts again. */
export async function restore(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  reason: string | undefined,
): Promise<{ keyring: string; key: KeyListing }> {
  const keyring = await chooseKeyring(context.database, keyringName);
  const key = findKey(keyring, keyName);
  await context.database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring.name);
    await restoreKey(client, locked, findKey(locked, String(key.id)), reason);
  });
  const after = await getKeyring(context.database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))) };
}
