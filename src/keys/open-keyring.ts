// From stored wraps to a keyring that can be used: every loadable data key is unwrapped and its commitment compared. At
// boot a wrong root key ends here as MasterKeyMismatch, before anything is written. While a root key is being changed
// each data key has a wrap under both, and either root opens the keyring.
import type { KeyId, ValueKey } from '../crypto/value-key.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { createKeyring, keyTitle, type Keyring } from './keyring.js';
import { foreignKeyId, type ForeignColumn, type StoredKey, type StoredKeyring } from './key-store.js';
import type { RootKey } from './roots/root-key.js';
import { isLoaded } from './states.js';

/** A root key as the control schema knows it. */
export interface KnownRoot {
  readonly id: number;
  readonly fingerprint: Buffer;
  readonly verificationToken: Buffer;
}

/** Root keys this process opened that the control schema knows, by the schema's id. */
export type HeldRoots = ReadonlyMap<number, RootKey>;

export function matchRoots(roots: readonly RootKey[], known: readonly KnownRoot[]): HeldRoots {
  const held = new Map<number, RootKey>();
  for (const record of known) {
    const root = roots.find((candidate) => candidate.fingerprint.equals(record.fingerprint));
    if (root !== undefined) held.set(record.id, root);
  }
  return held;
}

/** Opens the key of a foreign format; throws where this process cannot. */
export type OpenForeignKey = (column: ForeignColumn) => Promise<ValueKey>;

/** Whether the provider of a root key cannot be asked, or will not answer, now. The keys already held stay usable. */
export function isRootAway(error: unknown): error is KeyturnError {
  return isKeyturnError(error, 'ROOT_KEY_UNAVAILABLE') || isKeyturnError(error, 'ROOT_KEY_REFUSED');
}

export interface OpenedKeyring {
  readonly keyring: Keyring;
  readonly roots: HeldRoots;
  /** Roots whose record or token is not theirs although every data key opens: `keyturn init` writes them anew. */
  readonly unproven: readonly number[];
}

/**
 * Opens every loadable key or throws: MASTER_KEY_MISMATCH when the given roots are not this keyring's, UNWRAP_FAILED when
 * single keys do not open or no one root opens them all, ROOT_KEY_UNAVAILABLE when a provider is away.
 */
export async function openKeyringOrRefuse(
  stored: StoredKeyring,
  given: readonly RootKey[],
  known: readonly KnownRoot[],
  openForeign?: OpenForeignKey,
): Promise<OpenedKeyring> {
  const loadable = stored.keys.filter((key) => isLoaded(key.state));
  const needed = new Set(loadable.flatMap((key) => key.wraps.map((wrap) => wrap.rootId)));
  demandOneRoot(stored, loadable, needed);
  const roots = new Map(matchRoots(given, known));
  for (const id of needed) {
    if (roots.has(id)) continue;
    const found = await findByWrap(stored, loadable, given, id);
    if (found !== undefined) roots.set(id, found);
  }
  if (needed.size > 0 && ![...needed].some((id) => roots.has(id))) throw mismatch(stored, given, known, needed);
  const unproven = await dropAwayAndListUnproven(roots, known, needed);
  const keyring = await openKeyring(stored, roots, new Map(), { openForeign });
  const unopened = loadable.find((key) => keyring.lookup(key.id).status !== 'held');
  if (unopened === undefined) return { keyring, roots, unproven };
  if (unproven.length > 0) throw mismatch(stored, given, known, needed);
  throw new KeyturnError(
    'UNWRAP_FAILED',
    `data key ${keyTitle(stored.name, unopened)} does not open under the given root key although others do; restore the key tables from a backup`,
    { keyring: stored.name, keyId: String(unopened.id) },
  );
}

/** Some root has a wrap of every key; else wraps of different times were mixed, and none of them is used. */
function demandOneRoot(stored: StoredKeyring, loadable: readonly StoredKey[], needed: ReadonlySet<number>): void {
  const opensAll = (id: number): boolean => loadable.every((key) => key.wraps.some((wrap) => wrap.rootId === id));
  if (loadable.length === 0 || [...needed].some(opensAll)) return;
  const under = loadable.map(
    (key) => `v${key.version} under ${key.wraps.map((wrap) => wrap.rootId).join(' and ') || 'none'}`,
  );
  throw new KeyturnError(
    'UNWRAP_FAILED',
    `no single root key opens every data key of keyring ${stored.name} (root keys by number: ${under.join(', ')}); the key tables are mixed from different times, restore them from one backup`,
    { keyring: stored.name },
  );
}

/** The record of a root may be lost or older than the wraps: what opens a wrap is the root all the same. */
async function findByWrap(
  stored: StoredKeyring,
  loadable: readonly StoredKey[],
  given: readonly RootKey[],
  rootId: number,
): Promise<RootKey | undefined> {
  const probe = loadable.find((key) => key.wraps.some((wrap) => wrap.rootId === rootId));
  if (probe === undefined) return undefined;
  for (const root of given) {
    if ((await unwrapAny(stored, probe, new Map([[rootId, root]]), () => undefined)) !== undefined) return root;
  }
  return undefined;
}

/** Leaves out roots whose provider is away, as long as another is there. */
async function dropAwayAndListUnproven(
  roots: Map<number, RootKey>,
  known: readonly KnownRoot[],
  needed: ReadonlySet<number>,
): Promise<readonly number[]> {
  const unproven: number[] = [];
  let away: KeyturnError | undefined;
  for (const [id, root] of [...roots].filter(([rootId]) => needed.has(rootId))) {
    const record = known.find((candidate) => candidate.id === id);
    try {
      const isProven =
        record !== undefined &&
        record.fingerprint.equals(root.fingerprint) &&
        (await root.opensToken(id, record.verificationToken));
      if (!isProven) unproven.push(id);
    } catch (error) {
      if (!isRootAway(error)) throw error;
      away ??= error;
      roots.delete(id);
    }
  }
  if (away !== undefined && ![...needed].some((id) => roots.has(id))) throw away;
  return unproven;
}

function mismatch(
  stored: StoredKeyring,
  given: readonly RootKey[],
  known: readonly KnownRoot[],
  needed: ReadonlySet<number>,
): KeyturnError {
  const have = given.map((root) => root.shortFingerprint).join(', ') || 'none';
  const want = known
    .filter((record) => needed.has(record.id))
    .map((record) => shortFingerprintOf(record.fingerprint))
    .join(', ');
  return new KeyturnError(
    'MASTER_KEY_MISMATCH',
    `MasterKeyMismatch: the keys of keyring ${stored.name} are wrapped under root key ${want}, the given root key is ${have}; nothing was written; give the right root key`,
    { keyring: stored.name, expected: want, given: have },
  );
}

/** The first 8 bytes, as everywhere people see a fingerprint. */
export function shortFingerprintOf(fingerprint: Buffer): string {
  return fingerprint.toString('hex', 0, 8);
}

/** Numbers of the known roots that this process could start with: their token opens here and now. */
export async function listOpenRoots(
  given: readonly RootKey[],
  known: readonly KnownRoot[],
  onAway: (error: unknown) => void,
): Promise<readonly number[]> {
  const open: number[] = [];
  for (const [id, root] of matchRoots(given, known)) {
    const token = known.find((record) => record.id === id)?.verificationToken;
    try {
      if (token !== undefined && (await root.opensToken(id, token))) open.push(id);
    } catch (error) {
      if (!isRootAway(error)) throw error;
      onAway(error);
    }
  }
  return open;
}

export interface Opening {
  readonly onAway?: ((error: unknown) => void) | undefined;
  readonly openForeign?: OpenForeignKey | undefined;
}

/**
 * Unwraps what is loadable, reusing keys of an earlier snapshot. A key that does not open is left out: the keyring then
 * says `not_held`, and the member's report makes it a laggard. With `onAway` so is one whose provider is away.
 */
export async function openKeyring(
  stored: StoredKeyring,
  roots: HeldRoots,
  earlier: ReadonlyMap<KeyId, ValueKey>,
  { onAway, openForeign }: Opening = {},
): Promise<Keyring> {
  const opened = new Map<KeyId, ValueKey>();
  for (const key of stored.keys) {
    if (!isLoaded(key.state)) continue;
    const reused = earlier.get(key.id);
    const opens =
      reused !== undefined && reused.commitment.equals(key.commitment)
        ? reused
        : await unwrapAny(stored, key, roots, onAway);
    if (opens !== undefined) opened.set(key.id, opens);
  }
  for (const column of stored.foreign ?? []) {
    const opens = await openForeign?.(column).catch(ignoreUnopened);
    if (opens !== undefined) opened.set(foreignKeyId(column), opens);
  }
  return createKeyring(stored, opened);
}

/** Like a data key that does not open: whoever opens foreign keys has said why. */
function ignoreUnopened(error: unknown): undefined {
  if (!isKeyturnError(error)) throw error;
}

async function unwrapAny(
  stored: StoredKeyring,
  key: StoredKey,
  roots: HeldRoots,
  onAway?: (error: unknown) => void,
): Promise<ValueKey | undefined> {
  if (typeof key.id !== 'number') return undefined;
  const identity = {
    id: key.id,
    algorithm: key.algorithm,
    purpose: 1,
    cluster: stored.cluster,
    scope: stored.id,
  } as const;
  let away: unknown;
  for (const wrap of key.wraps) {
    const root = roots.get(wrap.rootId);
    if (root === undefined) continue;
    try {
      return await root.unwrap(wrap.rootId, identity, key.commitment, wrap.blob);
    } catch (error) {
      if (isRootAway(error)) away = error;
      else if (!isKeyturnError(error, 'UNWRAP_FAILED')) throw error;
    }
  }
  if (away === undefined) return undefined;
  if (onAway === undefined) throw away;
  onAway(away);
  return undefined;
}
