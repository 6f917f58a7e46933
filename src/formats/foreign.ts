// What a foreign format is: another system's way to store a value, which a column may hold while it is adopted or left.
// Its key comes from outside and its values name no key; the column's setting does. One file per format implements it.
import type { KeyObject } from 'node:crypto';
import type { DecryptFailure, Storage, Stored } from './format.js';

export interface ForeignFormat {
  readonly name: string;
  /** Whether decrypting notices every change to a value. Where it does not, nothing with our magic is taken for a value. */
  readonly authenticates: boolean;
  readonly storages: readonly Storage[];
  /** What its secret is, in words, for whoever has to give it; undefined for a format without a key. */
  readonly secret: string | undefined;

  /** The key in a secret; undefined where the secret is none. */
  readKey(secret: Buffer): KeyObject | undefined;
  /** The value has the shape of this format's values. Reads no key, never throws. */
  isValue(stored: Stored): boolean;
  /** `isValue` in SQL: a boolean over `expression`. Immutable, never raises, NULL for NULL. */
  sqlIsValue(expression: string, storage: Storage): string;
  /** The plaintext, or why there is none. Never throws for any stored value. */
  decrypt(stored: Stored, key: KeyObject): Buffer | DecryptFailure;
  encrypt(plaintext: Uint8Array, key: KeyObject, storage: Storage): Stored;
  /** Length (characters or bytes) of the longest stored form of a plaintext of `plaintextBytes`. */
  storedLength(plaintextBytes: number, storage: Storage): number;
}
