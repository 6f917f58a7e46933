// Encrypt, decrypt, reencrypt one cell: keyring + format + address. Synchronous over held keys, no I/O. A key is chosen by
// the id that the envelope names, never by trying (I1, I8); what reencrypting writes was decrypted again and compared.
import { KeyturnError } from './errors.js';
import type { CellAddress, DecryptFailure, Format, Storage, Stored } from './formats/format.js';
import { activeKeyOf, type Keyring } from './keys/keyring.js';
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
  /** The envelope does not name the active key. */
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

/** Throws KEY_NOT_HELD when the keyring has no usable active key. */
export function encrypt(keyring: Keyring, cell: Cell, plaintext: Uint8Array): Stored {
  return cell.format.encrypt(plaintext, cell.address, activeKeyOf(keyring), cell.storage);
}

/**
 * Throws DECRYPT_FAILED for every cell that does not decrypt, whatever the reason (no oracle); KEY_NOT_HELD where
 * the key exists but is not held here, so that the caller may refresh and try again.
 */
export function decrypt(keyring: Keyring, cell: Cell, stored: Stored): Decrypted {
  const found = findKey(keyring, cell, stored);
  if ('key' in found) {
    const plaintext = cell.format.decrypt(stored, cell.address, found.key);
    if (Buffer.isBuffer(plaintext)) return { plaintext, keyId: found.key.id, stale: found.key !== keyring.active };
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

function decryptFailed(keyId: KeyId | undefined): KeyturnError {
  return new KeyturnError(
    'DECRYPT_FAILED',
    'the stored value does not decrypt at this cell: altered, moved from another cell, or not an envelope',
    { keyId: keyId === undefined ? undefined : String(keyId) },
  );
}

/** Brings one stored value to the active key, or says why not. Never throws for any stored bytes. */
export function reencrypt(keyring: Keyring, cell: Cell, stored: Stored): Examined {
  const active = activeKeyOf(keyring);
  const found = findKey(keyring, cell, stored);
  if (!('key' in found)) return found;
  if (found.key === active) return { outcome: 'current' };
  const plaintext = cell.format.decrypt(stored, cell.address, found.key);
  if (!Buffer.isBuffer(plaintext)) return { outcome: 'failed', cause: plaintext, keyId: found.key.id };
  try {
    const replacement = cell.format.encrypt(plaintext, cell.address, active, cell.storage);
    return opensTo(keyring, cell, replacement, plaintext)
      ? { outcome: 'reencrypted', replacement }
      : { outcome: 'failed', cause: 'VERIFICATION_FAILED', keyId: active.id };
  } finally {
    plaintext.fill(0);
  }
}

/** Decrypts and compares without writing: what a deep verification asks of every cell. */
export function check(keyring: Keyring, cell: Cell, stored: Stored): Examined {
  const found = findKey(keyring, cell, stored);
  if (!('key' in found)) return found;
  const plaintext = cell.format.decrypt(stored, cell.address, found.key);
  if (!Buffer.isBuffer(plaintext)) return { outcome: 'failed', cause: plaintext, keyId: found.key.id };
  plaintext.fill(0);
  return { outcome: 'current' };
}

/** The new envelope replaces the only copy, so it is opened by the key its own header names and compared first. */
function opensTo(keyring: Keyring, cell: Cell, replacement: Stored, plaintext: Buffer): boolean {
  const found = findKey(keyring, cell, replacement);
  if (!('key' in found)) return false;
  const again = cell.format.decrypt(replacement, cell.address, found.key);
  if (!Buffer.isBuffer(again)) return false;
  const isEqual = again.equals(plaintext);
  again.fill(0);
  return isEqual;
}

function findKey(
  keyring: Keyring,
  cell: Cell,
  stored: Stored,
): { readonly key: ValueKey } | Extract<Examined, { outcome: 'failed' | 'blocked' }> {
  const keyId = cell.format.nameKey(stored);
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
