// Secrets of foreign formats that are AES keys: hexadecimal digits of 16, 24 or 32 bytes, strict.
import { createSecretKey, type KeyObject } from 'node:crypto';
import { decodeHex } from '../crypto/encoding.js';

export const hexSecret = 'an AES key of 16, 24 or 32 bytes as hexadecimal digits';

/** Undefined for anything else; the secret's own bytes are left as they are. */
export function readHexKey(secret: Buffer): KeyObject | undefined {
  const bytes = decodeHex(secret);
  if (bytes === undefined) return undefined;
  const key = [16, 24, 32].includes(bytes.length) ? createSecretKey(bytes) : undefined;
  bytes.fill(0);
  return key;
}

/** Bits of an AES key, as OpenSSL names its ciphers. */
export function aesBits(key: KeyObject): 128 | 192 | 256 {
  switch (key.symmetricKeySize) {
    case 16:
      return 128;
    case 24:
      return 192;
    default:
      return 256;
  }
}
