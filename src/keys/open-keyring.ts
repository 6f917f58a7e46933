// From stored wraps to a keyring that can be used: every loadable data key is unwrapped and its commitment compared. At
// boot a wrong root key ends here as MasterKeyMismatch, before anything is written.
import type { KeyId, ValueKey } from '../crypto/value-key.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { createKeyring, type Keyring } from './keyring.js';
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

/** Throws MASTER_KEY_MISMATCH unless the held roots open the tokens of, and every loadable key in, this keyring. */
export async function openKeyringOrRefuse(
  stored: StoredKeyring,
  given: readonly RootKey[],
  known: readonly KnownRoot[],
  openForeign?: OpenForeignKey,
): Promise<{ keyring: Keyring; roots: HeldRoots }> {
  const roots = matchRoots(given, known);
  const needed = new Set(
    stored.keys.filter((key) => isLoaded(key.state)).flatMap((key) => key.wraps.map((wrap) => wrap.rootId)),
  );
  if (needed.size > 0 && ![...needed].some((id) => roots.has(id))) throw mismatch(stored, given, known, needed);
  for (const record of known) {
    const root = roots.get(record.id);
    if (root !== undefined && needed.has(record.id) && !(await root.opensToken(record.id, record.verificationToken)))
      throw mismatch(stored, given, known, needed);
  }
  const keyring = await openKeyring(stored, roots, new Map(), openForeign);
  const unopened = stored.keys.find((key) => isLoaded(key.state) && keyring.lookup(key.id).status !== 'held');
  if (unopened !== undefined) {
    throw new KeyturnError(
      'UNWRAP_FAILED',
      `data key ${stored.name} v${unopened.version} (id ${unopened.id}) does not open under the given root key although others do; restore the key tables from a backup`,
      {
        keyring: stored.name,
        keyId: String(unopened.id),
      },
    );
  }
  return { keyring, roots };
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

/**
 * Unwraps what is loadable, reusing keys of an earlier snapshot. A key that does not open is left out: the keyring then
 * says `not_held`, and the member's report makes it a laggard.
 */
export async function openKeyring(
  stored: StoredKeyring,
  roots: HeldRoots,
  earlier: ReadonlyMap<KeyId, ValueKey>,
  openForeign?: OpenForeignKey,
): Promise<Keyring> {
  const opened = new Map<KeyId, ValueKey>();
  for (const key of stored.keys) {
    if (!isLoaded(key.state)) continue;
    const reused = earlier.get(key.id);
    const opens =
      reused !== undefined && reused.commitment.equals(key.commitment) ? reused : await unwrapAny(stored, key, roots);
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

async function unwrapAny(stored: StoredKeyring, key: StoredKey, roots: HeldRoots): Promise<ValueKey | undefined> {
  if (typeof key.id !== 'number') return undefined;
  const identity = {
    id: key.id,
    algorithm: key.algorithm,
    purpose: 1,
    cluster: stored.cluster,
    scope: stored.id,
  } as const;
  for (const wrap of key.wraps) {
    const root = roots.get(wrap.rootId);
    if (root === undefined) continue;
    try {
      return await root.unwrap(wrap.rootId, identity, key.commitment, wrap.blob);
    } catch (error) {
      if (!isKeyturnError(error, 'UNWRAP_FAILED')) throw error;
    }
  }
  return undefined;
}
