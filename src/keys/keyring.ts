// A keyring in memory: an immutable snapshot of one generation. Exactly one key encrypts; an id selects one key or none,
// and a key that is not held says why (I5, I8). A change makes a new snapshot.
import type { KeyId, ValueKey } from '../crypto/value-key.js';
import { KeyturnError } from '../errors.js';
import type { EncryptionBudget } from './encryption-budget.js';
import { foreignKeyId, type ForeignColumn, type StoredKey, type StoredKeyring } from './key-store.js';
import type { KeyState } from './states.js';

/** What the keyring says of a key id that an envelope names. */
export type KeyLookup =
  | { readonly status: 'held'; readonly key: ValueKey }
  /** The row exists and should be loaded, but this process could not open it. */
  | { readonly status: 'not_held' }
  | { readonly status: 'retired' }
  | { readonly status: 'destroyed' }
  | { readonly status: 'unknown' };

export interface Keyring {
  readonly id: string;
  readonly name: string;
  readonly cluster: string;
  readonly generation: number;
  /** The key that encrypts; undefined before the first activation. */
  readonly active: ValueKey | undefined;
  /** Counts what the active key encrypts; undefined where nobody counts. */
  readonly budget?: EncryptionBudget | undefined;
  /** Keys that decrypt, newest version first. */
  readonly held: readonly ValueKey[];
  readonly keys: readonly StoredKey[];
  /** Columns between two formats, by the hexadecimal digits of their UUID. */
  readonly foreign: ReadonlyMap<string, ForeignColumn>;
  lookup(id: KeyId): KeyLookup;
}

/** `opened`: the keys that this process could unwrap, by id. */
export function createKeyring(stored: Omit<StoredKeyring, 'algorithm'>, opened: ReadonlyMap<KeyId, ValueKey>): Keyring {
  const foreign = new Map((stored.foreign ?? []).map((column) => [column.columnId.replaceAll('-', ''), column]));
  const foreignIds = new Set([...foreign.values()].map(foreignKeyId));
  const states = new Map<KeyId, KeyState>(stored.keys.map((key) => [key.id, key.state]));
  const newestFirst = stored.keys.toSorted((a, b) => b.version - a.version);
  // Asked for every value: made once.
  const held = new Map<KeyId, KeyLookup>([...opened].map(([id, key]) => [id, { status: 'held', key }]));
  const activeRow = stored.keys.find((key) => key.state === 'active' && !key.isCompromised);
  return Object.freeze({
    id: stored.id,
    name: stored.name,
    cluster: stored.cluster,
    generation: stored.generation,
    active: activeRow === undefined ? undefined : opened.get(activeRow.id),
    held: newestFirst.flatMap((key) => opened.get(key.id) ?? []),
    keys: newestFirst,
    foreign,
    lookup(id: KeyId): KeyLookup {
      const found = held.get(id);
      if (found !== undefined) return found;
      if (typeof id === 'string') return { status: foreignIds.has(id) ? 'not_held' : 'unknown' };
      const state = states.get(id);
      if (state === undefined) return { status: 'unknown' };
      if (state === 'retired' || state === 'pending_destruction') return { status: 'retired' };
      return state === 'destroyed' ? { status: 'destroyed' } : { status: 'not_held' };
    },
  });
}

/** Throws KEY_NOT_HELD when the keyring has no active key that this process holds. */
export function activeKeyOf(keyring: Keyring): ValueKey {
  if (keyring.active !== undefined) return keyring.active;
  throw new KeyturnError(
    'KEY_NOT_HELD',
    `keyring ${keyring.name} has no active key that this process holds; run: keyturn key list`,
    { keyring: keyring.name },
  );
}

/** `customers v3 (id 17)`, the way every door names a key. */
export function keyTitle(keyring: string, key: { readonly version: number; readonly id: KeyId }): string {
  return `${keyring} v${key.version} (id ${key.id})`;
}
