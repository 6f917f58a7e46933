// HKDF-SHA-256 (RFC 5869) to one 32-byte key: how a root key becomes its subkeys, each for one purpose.
import { createSecretKey, hkdfSync, type KeyObject } from 'node:crypto';

const derivedBytes = 32;

export function deriveKey(inputKey: Uint8Array, salt: Uint8Array, info: string | Uint8Array): KeyObject {
  // A view of the result, so that zeroing it leaves no second copy.
  const bytes = Buffer.from(hkdfSync('sha256', inputKey, salt, info, derivedBytes));
  try {
    return createSecretKey(bytes);
  } finally {
    bytes.fill(0);
  }
}
