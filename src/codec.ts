// Encrypt, decrypt, reencrypt one cell: keyring + format + address. Synchronous over held keys, no I/O. A key is chosen by
// the id that the envelope names, never by trying (I1, I8); what reencrypting writes was decrypted again and compared.
import { KeyturnError } from './errors.js';
import type {
  CellAddress,
  DecryptFailure,
  Format,
  Reencrypted,
  Storage,
  Stored,
  StoredCell,
} from './formats/format.js';
import { movingFormat } from './formats/moving.js';
import { foreignFormatByName } from './formats/registry.js';
import { activeKeyOf, type Keyring } from './keys/keyring.js';
import { foreignKeyId, type ForeignColumn, type StoredKey } from './keys/key-store.js';
import type { KeyId, ValueKey } from './crypto/value-key.js';

/** Where a value lives and how it is kept there. */
export interface Cell {
  readonly address: CellAddress;
  readonly format: Format;
  readonly storage: Storage;
}

export interface Decrypted {
  readonly plaintext: Buffer;
  readonly keyId: KeyId;
  /** The envelope names a key that is not the active one, nor one that others may write with already. */
  readonly stale: boolean;
}

/** Why a cell cannot be decrypted although its bytes may be fine or not. */
export type CellFailure = DecryptFailure | 'NOT_AN_ENVELOPE' | 'UNKNOWN_KEY' | 'KEY_DESTROYED' | 'VERIFICATION_FAILED';

export type Examined =
  | { readonly outcome: 'current' }
  | { readonly outcome: 'reencrypted'; readonly replacement: Stored }
  | { readonly outcome: 'failed'; readonly cause: CellFailure; readonly keyId: KeyId | undefined }
  /** Not the cell's fault: this process lacks the key, or the key was retired. */
  | { readonly outcome: 'blocked'; readonly cause: 'KEY_NOT_HELD' | 'KEY_RETIRED'; readonly keyId: KeyId };

/** Throws KEY_NOT_HELD when the key to write with is not held, KEY_SPENT when it has encrypted as often as it may. */
export function encrypt(keyring: Keyring, cell: Cell, plaintext: Uint8Array): Stored {
  const format = formatAt(keyring, cell.format, cell.address);
  const key = writingKeyOf(keyring, format);
  spend(keyring, key, 1);
  const stored = format.encrypt(plaintext, cell.address, key, cell.storage);
  if (format === cell.format || format.nameKey(stored) === key.id) return stored;
  throw new KeyturnError(
    'VALUE_INVALID',
    `the plaintext begins like an envelope, and in format ${String(key.id)} nobody could tell it from one`,
  );
}

/** The format of a column as this keyring knows it: its own, or while it is between two formats one that reads both. */
export function formatOfColumn(
  keyring: { readonly keys: readonly StoredKey[] },
  own: Format,
  column: ForeignColumn | undefined,
): Format {
  if (column === undefined) return own;
  return movingFormat({
    foreign: foreignFormatByName(column.format),
    foreignKeyId: foreignKeyId(column),
    writes: column.move === 'adopting' ? 'own' : 'foreign',
    ownKeys: keyring.keys,
  });
}

const formatsBetween = new WeakMap<Keyring, Map<string, Format>>();

export function formatAt(keyring: Keyring, own: Format, address: Pick<CellAddress, 'column'>): Format {
  if (keyring.foreign.size === 0) return own;
  const column = keyring.foreign.get(address.column.toString('hex'));
  if (column === undefined) return own;
  const known = formatsBetween.get(keyring) ?? new Map<string, Format>();
  formatsBetween.set(keyring, known);
  const format = known.get(column.columnId) ?? formatOfColumn(keyring, own, column);
  known.set(column.columnId, format);
  return format;
}

/** Throws KEY_NOT_HELD. */
function writingKeyOf(keyring: Keyring, format: Format): ValueKey {
  if (format.writeKeyId === undefined) return activeKeyOf(keyring);
  const found = keyring.lookup(format.writeKeyId);
  if (found.status === 'held') return found.key;
  throw new KeyturnError(
    'KEY_NOT_HELD',
    `this process does not hold the key ${format.writeKeyId} that the column is written with`,
    { keyId: String(format.writeKeyId) },
  );
}

/** Before every encryption. Nobody counts those under a foreign key. */
function spend(keyring: Keyring, key: ValueKey, count: number): void {
  if (key === keyring.active) keyring.budget?.spend(count);
}

/**
 * Throws DECRYPT_FAILED for every cell that does not decrypt, whatever the reason (no oracle); KEY_NOT_HELD where
 * the key exists but is not held here, so that the caller may refresh and try again.
 */
export function decrypt(keyring: Keyring, cell: Cell, stored: Stored): Decrypted {
  const format = formatAt(keyring, cell.format, cell.address);
  const found = findKey(keyring, format, stored);
  if ('key' in found) {
    const plaintext = format.decrypt(stored, cell.address, found.key);
    if (Buffer.isBuffer(plaintext)) {
      const writeKeyId = format.writeKeyId ?? keyring.active?.id;
      return { plaintext, keyId: found.key.id, stale: found.key.id !== writeKeyId && !isStaged(keyring, found.key.id) };
    }
    throw decryptFailed(found.key.id);
  }
  if (found.outcome === 'blocked' || found.cause === 'UNKNOWN_KEY') {
    const retired = found.outcome === 'blocked' && found.cause === 'KEY_RETIRED';
    throw new KeyturnError(
      'KEY_NOT_HELD',
      `the value names key ${found.keyId ?? '?'}, which this process does not hold${retired ? ' because it is retired; undo with: keyturn key restore' : ''}`,
      { keyId: String(found.keyId) },
    );
  }
  throw decryptFailed(found.keyId);
}

/** Another process may have heard of its activation before this one: its values are ahead, not behind. */
function isStaged(keyring: Keyring, keyId: KeyId): boolean {
  return keyring.keys.some((key) => key.id === keyId && key.state === 'staged');
}

function decryptFailed(keyId: KeyId | undefined): KeyturnError {
  return new KeyturnError(
    'DECRYPT_FAILED',
    'the stored value does not decrypt at this cell: altered, moved from another cell, or not an envelope',
    { keyId: keyId === undefined ? undefined : String(keyId) },
  );
}

/** Brings one stored value to the active key, or says why not. Never throws for any stored bytes. */
export function reencrypt(keyring: Keyring, cell: Cell, stored: Stored): Examined {
  const [examined] = reencryptAll(keyring, cell, [{ cell: cell.address, stored }]);
  if (examined === undefined) throw new Error('one value was examined to none');
  return examined;
}

interface Held extends StoredCell {
  readonly key: ValueKey;
}

interface Moving extends Held {
  /** Position among the values. */
  readonly at: number;
  readonly plaintext: Buffer;
}

/** The same for many values of one column, in their order: faster where the format works on many at a time. */
export function reencryptAll(
  keyring: Keyring,
  { format: own, storage }: Omit<Cell, 'address'>,
  values: readonly StoredCell[],
): readonly Examined[] {
  const [first] = values;
  if (first === undefined) return [];
  const format = formatAt(keyring, own, first.cell);
  const active = writingKeyOf(keyring, format);
  const stale: (Held & { readonly at: number })[] = [];
  const examined = values.map(({ stored, cell }, at): Examined => {
    const found = findKey(keyring, format, stored);
    if (!('key' in found)) return found;
    if (found.key !== active) stale.push({ at, stored, cell, key: found.key });
    return { outcome: 'current' };
  });
  const from = commonKeyOf(stale);
  if (from !== undefined && format.reencryptAll !== undefined) {
    // Counts what does not decrypt too: nothing comes back before it is encrypted, and a count may only be too high.
    spend(keyring, active, stale.length);
    const results = format.reencryptAll(stale, from, active, storage);
    for (const [index, { at }] of stale.entries())
      examined[at] = settled(keyring, format, results[index], { from, to: active });
    return examined;
  }
  const moving: Moving[] = [];
  for (const [index, plaintext] of decryptAll(format, stale).entries()) {
    const value = stale[index];
    if (value === undefined) break;
    if (Buffer.isBuffer(plaintext)) moving.push({ ...value, plaintext });
    else examined[value.at] = { outcome: 'failed', cause: plaintext, keyId: value.key.id };
  }
  try {
    spend(keyring, active, moving.length);
    const replacements =
      format.encryptAll?.(moving, active, storage) ??
      moving.map(({ plaintext, cell }) => format.encrypt(plaintext, cell, active, storage));
    const areVerified = openToSame(keyring, format, moving, replacements);
    for (const [index, { at }] of moving.entries()) {
      const replacement = replacements[index];
      examined[at] =
        replacement !== undefined && areVerified[index] === true
          ? { outcome: 'reencrypted', replacement }
          : { outcome: 'failed', cause: 'VERIFICATION_FAILED', keyId: active.id };
    }
  } finally {
    for (const { plaintext } of moving) plaintext.fill(0);
  }
  return examined;
}

/**
 * For a row that has another key or tenant than when its value was encrypted: a value that decrypts where it is stays as
 * it is, under whatever key; one that decrypts at `former` is encrypted again for where it is. Never throws for any bytes.
 */
export function rebind(keyring: Keyring, cell: Cell, former: CellAddress, stored: Stored): Examined {
  const format = formatAt(keyring, cell.format, cell.address);
  const found = findKey(keyring, format, stored);
  if (!('key' in found)) return found;
  const here = format.decrypt(stored, cell.address, found.key);
  if (Buffer.isBuffer(here)) {
    here.fill(0);
    return { outcome: 'current' };
  }
  const plaintext = format.decrypt(stored, former, found.key);
  if (!Buffer.isBuffer(plaintext)) return { outcome: 'failed', cause: plaintext, keyId: found.key.id };
  try {
    const active = writingKeyOf(keyring, format);
    spend(keyring, active, 1);
    const replacement = format.encrypt(plaintext, cell.address, active, cell.storage);
    const moving = { at: 0, stored, cell: cell.address, key: found.key, plaintext };
    return openToSame(keyring, format, [moving], [replacement])[0] === true
      ? { outcome: 'reencrypted', replacement }
      : { outcome: 'failed', cause: 'VERIFICATION_FAILED', keyId: active.id };
  } finally {
    plaintext.fill(0);
  }
}

/** The format has opened and compared it; here, that it names the key that it was opened with. */
function settled(
  keyring: Keyring,
  format: Format,
  result: Reencrypted | undefined,
  { from, to }: { readonly from: ValueKey; readonly to: ValueKey },
): Examined {
  if (result !== undefined && 'replacement' in result) {
    const found = findKey(keyring, format, result.replacement);
    if ('key' in found && found.key === to) return { outcome: 'reencrypted', replacement: result.replacement };
  } else if (result !== undefined && result.failure !== 'VERIFICATION_FAILED') {
    return { outcome: 'failed', cause: result.failure, keyId: from.id };
  }
  return { outcome: 'failed', cause: 'VERIFICATION_FAILED', keyId: to.id };
}

/** Values under one key, as almost all of a slice are, go to the format together. */
function commonKeyOf(values: readonly Held[]): ValueKey | undefined {
  const key = values[0]?.key;
  return values.every((value) => value.key === key) ? key : undefined;
}

function decryptAll(format: Format, values: readonly Held[]): readonly (Buffer | DecryptFailure)[] {
  const key = commonKeyOf(values);
  return key !== undefined && format.decryptAll !== undefined
    ? format.decryptAll(values, key)
    : values.map((value) => format.decrypt(value.stored, value.cell, value.key));
}

/** A replacement is to overwrite the only copy, so it is opened by the key its own header names and compared first. */
function openToSame(
  keyring: Keyring,
  format: Format,
  moving: readonly Moving[],
  replacements: readonly Stored[],
): readonly boolean[] {
  const written: (Held & { readonly index: number; readonly plaintext: Buffer })[] = [];
  for (const [index, { cell, plaintext }] of moving.entries()) {
    const stored = replacements[index];
    const found = stored === undefined ? undefined : findKey(keyring, format, stored);
    if (stored !== undefined && found !== undefined && 'key' in found)
      written.push({ index, stored, cell, key: found.key, plaintext });
  }
  const areSame = moving.map(() => false);
  const opened = decryptAll(format, written);
  for (const [at, { index, plaintext }] of written.entries()) {
    const again = opened[at];
    if (!Buffer.isBuffer(again)) continue;
    areSame[index] = again.equals(plaintext);
    again.fill(0);
  }
  return areSame;
}

/** Decrypts and compares without writing: what a deep verification asks of every cell. */
export function check(keyring: Keyring, cell: Cell, stored: Stored): Examined {
  const format = formatAt(keyring, cell.format, cell.address);
  const found = findKey(keyring, format, stored);
  if (!('key' in found)) return found;
  const plaintext = format.decrypt(stored, cell.address, found.key);
  if (!Buffer.isBuffer(plaintext)) return { outcome: 'failed', cause: plaintext, keyId: found.key.id };
  plaintext.fill(0);
  return { outcome: 'current' };
}

function findKey(
  keyring: Keyring,
  format: Format,
  stored: Stored,
): { readonly key: ValueKey } | Extract<Examined, { outcome: 'failed' | 'blocked' }> {
  const keyId = format.nameKey(stored);
  if (keyId === undefined) return { outcome: 'failed', cause: 'NOT_AN_ENVELOPE', keyId: undefined };
  const found = keyring.lookup(keyId);
  switch (found.status) {
    case 'held':
      return found;
    case 'not_held':
      return { outcome: 'blocked', cause: 'KEY_NOT_HELD', keyId };
    case 'retired':
      return { outcome: 'blocked', cause: 'KEY_RETIRED', keyId };
    case 'destroyed':
      return { outcome: 'failed', cause: 'KEY_DESTROYED', keyId };
    case 'unknown':
      return { outcome: 'failed', cause: 'UNKNOWN_KEY', keyId };
  }
}
