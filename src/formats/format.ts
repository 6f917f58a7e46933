// What a ciphertext format is: it names the key of a stored value without opening it, decrypts, encrypts, and says the
// same in SQL. One file per format implements it; the codec and the SQL of the engine know nothing else about bytes.
import type { AlgorithmName } from '../crypto/algorithms.js';
import type { KeyId, ValueKey } from '../crypto/value-key.js';

/** How a column keeps a value: `bytes` is bytea (a Buffer here), `text` is text, varchar or a jsonb string. */
export type Storage = 'text' | 'bytes';

/** A value as the driver returns and takes it: string for `text`, Buffer for `bytes`. */
export type Stored = string | Buffer;

/** The address of one encrypted value, as raw bytes: three UUIDs of 16 bytes and the encoded primary key. */
export interface CellAddress {
  readonly tenant: Buffer;
  readonly target: Buffer;
  readonly column: Buffer;
  /** Output of `encodeRowKey`; undefined where the column is bound to the column only. */
  readonly row: Buffer | undefined;
}

export interface StoredCell {
  readonly stored: Stored;
  readonly cell: CellAddress;
}

export interface PlainCell {
  readonly plaintext: Uint8Array;
  readonly cell: CellAddress;
}

/** Why a value did not decrypt. For counters and the quarantine; callers of the library see one error. */
export type DecryptFailure = 'MALFORMED' | 'ALGORITHM_DIFFERS' | 'KEY_CHECK_DIFFERS' | 'AUTHENTICATION_FAILED';

/** What became of a value that was to be reencrypted. */
export type Reencrypted =
  | { readonly replacement: Stored }
  | { readonly failure: DecryptFailure | 'VERIFICATION_FAILED' };

export interface Format {
  readonly name: string;
  /** False for interop formats whose values are not bound to their cell (I2). */
  readonly bindsCell: boolean;
  /** Algorithms this format reads and writes. */
  readonly algorithms: readonly AlgorithmName[];
  /** The key it writes with, where that is not the active key of the keyring. */
  readonly writeKeyId?: KeyId;

  /** The key a value names, read without opening it; undefined where the format cannot tell or the value is not its own. */
  nameKey(stored: Stored): KeyId | undefined;
  /** The plaintext, or why there is none. Never throws for any stored bytes. */
  decrypt(stored: Stored, cell: CellAddress, key: ValueKey): Buffer | DecryptFailure;
  encrypt(plaintext: Uint8Array, cell: CellAddress, key: ValueKey, storage: Storage): Stored;
  /** The same for many values, in their order; for formats that are faster that way. */
  decryptAll?(values: readonly StoredCell[], key: ValueKey): readonly (Buffer | DecryptFailure)[];
  encryptAll?(values: readonly PlainCell[], key: ValueKey, storage: Storage): readonly Stored[];
  /**
   * Decrypts under `from`, encrypts under `to`, decrypts that again and compares, for many values in their order; for formats
   * that can do so without the plaintext passing through here. Never throws for any stored bytes.
   */
  reencryptAll?(values: readonly StoredCell[], from: ValueKey, to: ValueKey, storage: Storage): readonly Reencrypted[];
  /** Length (characters or bytes) of the stored form of a plaintext of `plaintextBytes` under `algorithm`. */
  storedLength(plaintextBytes: number, algorithm: AlgorithmName, storage: Storage): number;

  /** SQL boolean over `expression`: this value names `key`. Immutable, never raises, NULL for NULL. */
  sqlNamesKey(expression: string, storage: Storage, key: ValueKeyName): string;
  /** SQL boolean over `expression`: this value carries the format's magic. Immutable, never raises. */
  sqlHasMagic(expression: string, storage: Storage): string;
  /** SQL integer over the text of a JSON document: how many of its strings begin with the format's magic. Never raises. */
  sqlCountMagic(expression: string): string;
  /** SQL expression that is constant per key, for GROUP BY; read back with `keyOfHeader`. */
  sqlHeader(expression: string, storage: Storage): string;
  keyOfHeader(header: Stored): KeyId | undefined;
}

/** What SQL needs to know of a key: no material. */
export interface ValueKeyName {
  readonly id: KeyId;
  readonly algorithm: AlgorithmName;
  /** 32 bytes: the data key commitment. */
  readonly commitment: Buffer;
}
