// AES-256-GCM (NIST SP 800-38D) with the only lengths Keyturn uses: key 32, nonce 12, tag 16. Values, wraps and tokens
// all pass through here; nothing else calls GCM.
import { createCipheriv, createDecipheriv, type KeyObject } from 'node:crypto';
import { KeyturnError } from '../errors.js';

export const gcmNonceBytes = 12;
export const gcmTagBytes = 16;

/** Raw bytes only for a subkey that lives for one call: a KeyObject for each would cost more than the encryption. */
export type GcmKey = KeyObject | Buffer;

/** A key with the one nonce it is used with. */
export interface GcmUse {
  readonly key: GcmKey;
  readonly nonce: Buffer;
}

export interface GcmOutput {
  readonly ciphertext: Buffer;
  readonly tag: Buffer;
}

const cipher = 'aes-256-gcm';
// Without it OpenSSL takes tags of 4 bytes.
const tagLength = { authTagLength: gcmTagBytes };

export function encryptAesGcm(key: GcmKey, nonce: Buffer, associatedData: Buffer, plaintext: Uint8Array): GcmOutput {
  demandLength('nonce', nonce, gcmNonceBytes);
  const encryption = createCipheriv(cipher, key, nonce, tagLength);
  encryption.setAAD(associatedData);
  const ciphertext = encryption.update(plaintext);
  encryption.final(); // empty in counter mode; it computes the tag
  return { ciphertext, tag: encryption.getAuthTag() };
}

/** Undefined when the tag does not match; no byte of an unauthenticated plaintext leaves. */
export function decryptAesGcm(
  key: GcmKey,
  nonce: Buffer,
  associatedData: Buffer,
  { ciphertext, tag }: GcmOutput,
): Buffer | undefined {
  demandLength('nonce', nonce, gcmNonceBytes);
  demandLength('tag', tag, gcmTagBytes);
  const decryption = createDecipheriv(cipher, key, nonce, tagLength);
  decryption.setAAD(associatedData);
  decryption.setAuthTag(tag);
  const plaintext = decryption.update(ciphertext);
  try {
    decryption.final();
    return plaintext;
  } catch {
    // final() fails for one reason only: the tag.
    plaintext.fill(0);
    return undefined;
  }
}

function demandLength(what: string, bytes: Buffer, expected: number): void {
  if (bytes.length !== expected) {
    throw new KeyturnError('VALUE_INVALID', `a GCM ${what} has ${expected} bytes, got ${bytes.length}`);
  }
}
