// The operator's verbs on data keys: list, stage, activate, rotate, retire, restore. Each prepares what it needs, then makes
// one short transaction (I5, I10).
import { createValueKey, generateDataKey } from '../crypto/data-key.js';
import type { AlgorithmName } from '../crypto/algorithms.js';
import type { DataKeyIdentity } from '../crypto/value-key.js';
import { proveUnused, type RetirementProof } from '../engine/retire.js';
import { waitForMembers } from '../engine/converge.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKey, StoredKeyring, StoredWrap } from '../keys/key-store.js';
import { matchRoots, openKeyringOrRefuse, type HeldRoots } from '../keys/open-keyring.js';
import type { Queryable } from '../store/database.js';
import {
  activateKey,
  getClusterId,
  getKeyring,
  insertStagedKey,
  listKeyringNames,
  listRootRecords,
  listRootUris,
  lockKeyring,
  nextKeyId,
  restoreKey,
  retireKey,
} from '../store/keys.js';
import { listTargets } from '../store/registry.js';
import { sealRecord } from './audit.js';
import { demandBackups, findUnbacked } from './backup-policy.js';
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

function listingOf(keyring: StoredKeyring, key: StoredKey): KeyListing {
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

/**
 * Makes a data key and stages it: persisted, committed, read back on another connection, unwrapped and compared. A staged
 * key decrypts and never encrypts. When one is staged already, that one is returned: there is never a second.
 */
export async function stageKey(
  context: ControlContext,
  keyringName: string | undefined,
  reason: string | undefined,
): Promise<TurnedKey & { isNew: boolean }> {
  const keyring = await chooseKeyring(context.database, keyringName);
  await demandBackups(context, keyring);
  return stageIn(context, keyring, reason);
}

async function stageIn(
  context: ControlContext,
  before: StoredKeyring,
  reason: string | undefined,
): Promise<TurnedKey & { isNew: boolean }> {
  const roots = await openRootsOf(context, before);
  const inserted = await context.database.transaction(async (client) => {
    const keyring = await lockKeyring(client, before.name);
    if (keyring.keys.some((key) => key.state === 'staged')) return false;
    await insertNewKey(client, keyring, roots, reason);
    return true;
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
  return {
    keyring: after.name,
    key: listingOf(after, staged),
    isNew: inserted,
    unbackedKeys: await findUnbacked(context, after),
  };
}

/** Under the locked keyring: random material, wrapped under every root this process holds, inserted as staged. */
export async function insertNewKey(
  client: Queryable,
  keyring: StoredKeyring,
  roots: HeldRoots,
  reason: string | undefined,
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
  await insertStagedKey(client, keyring, { identity, commitment: key.commitment, wraps, reason });
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

const defaultPatienceMs = 60_000;

/**
 * Makes a staged key, or an earlier one, the active key: only after every live member holds it and reads its algorithm
 * and formats. Then waits until they all write with it. Throws MEMBER_BEHIND naming the laggards.
 */
export async function activate(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string | undefined,
  reason: string | undefined,
): Promise<TurnedKey> {
  const keyring = await chooseKeyring(context.database, keyringName);
  await demandBackups(context, keyring);
  return activateIn(context, keyring, keyName, reason);
}

async function activateIn(
  context: ControlContext,
  keyring: StoredKeyring,
  keyName: string | undefined,
  reason: string | undefined,
): Promise<TurnedKey> {
  const key =
    keyName === undefined ? keyring.keys.find((candidate) => candidate.state === 'staged') : findKey(keyring, keyName);
  if (key === undefined)
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `keyring ${keyring.name} has no staged key; stage one with: keyturn key stage`,
      { keyring: keyring.name },
    );
  const roots = await openRootsOf(context, keyring);
  await proveReadable(context, keyring, key, roots);
  if (key.state !== 'active') {
    await converge(
      context,
      keyring,
      { holdsKeyId: Number(key.id), algorithm: key.algorithm, formats: await formatsOf(context, keyring) },
      `can decrypt with ${keyTitle(keyring.name, key)}`,
    );
    await context.database.transaction(async (client) => {
      const locked = await lockKeyring(client, keyring.name);
      await activateKey(client, locked, locked.keys.find((candidate) => candidate.id === key.id) ?? key, reason);
    });
    await sealRecord(context, roots);
  }
  await converge(context, keyring, { writesWithKeyId: Number(key.id) }, `writes with ${keyTitle(keyring.name, key)}`);
  const after = await getKeyring(context.database, keyring.name);
  return {
    keyring: keyring.name,
    key: listingOf(after, findKey(after, String(key.id))),
    unbackedKeys: await findUnbacked(context, after),
  };
}

async function formatsOf(context: ControlContext, keyring: StoredKeyring): Promise<readonly string[]> {
  const targets = await listTargets(context.database, keyring.id);
  return [...new Set(targets.flatMap((target) => target.columns.map((column) => column.format)))];
}

async function converge(
  context: ControlContext,
  keyring: StoredKeyring,
  need: { holdsKeyId?: number; writesWithKeyId?: number; algorithm?: string; formats?: readonly string[] },
  goal: string,
): Promise<void> {
  const laggards = await waitForMembers(
    context.database,
    { keyringId: keyring.id, ...need, expectedMembers: context.config.expectMembers },
    {
      deadlineMs: context.patienceMs ?? defaultPatienceMs,
      onWait: (waiting) =>
        context.onProgress(
          `waiting until every live member ${goal}: ${waiting.map(({ member, why }) => `${member} ${why}`).join('; ')}`,
        ),
    },
  );
  if (laggards.length === 0) return;
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
}

/** Stage and activate. A staged key left by an earlier attempt is the one that is activated. */
export async function rotateKey(
  context: ControlContext,
  options: RotateOptions,
): Promise<TurnedKey & { isNew: boolean }> {
  const keyring = await chooseKeyring(context.database, options.keyring);
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active !== undefined && !(await isRotationDue(context, keyring, options.ifOlderThanMs))) {
    await converge(
      context,
      keyring,
      { writesWithKeyId: Number(active.id) },
      `writes with ${keyTitle(keyring.name, active)}`,
    );
    return {
      keyring: keyring.name,
      key: listingOf(keyring, active),
      isNew: false,
      unbackedKeys: await findUnbacked(context, keyring),
    };
  }
  // Asked once: the key that is made here cannot be in a backup before it is there.
  await demandBackups(context, keyring);
  const staged = await stageIn(context, keyring, options.reason);
  const after = await getKeyring(context.database, keyring.name);
  const activated = await activateIn(context, after, String(staged.key.id), options.reason);
  return { ...activated, isNew: true };
}

/** Whether `rotateKey` would make or activate a key now, rather than leave a young active key alone. */
export async function isRotationDue(
  context: ControlContext,
  keyring: StoredKeyring,
  ifOlderThanMs: number | undefined,
): Promise<boolean> {
  const active = keyring.keys.find((key) => key.state === 'active');
  const isStaged = keyring.keys.some((key) => key.state === 'staged');
  return active === undefined || isStaged || ifOlderThanMs === undefined || isOlderThan(context, active, ifOlderThanMs);
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
