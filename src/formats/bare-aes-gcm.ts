// Bare AES-GCM values: nonce ‖ ciphertext ‖ tag (12, any, 16 bytes), without associated data; as they are in bytea, in
// base64 or hexadecimal in text.
import { createCipheriv, createDecipheriv, randomBytes, type KeyObject } from 'node:crypto';
import { gcmNonceBytes, gcmTagBytes } from '../crypto/aes-gcm.js';
import type { ForeignFormat } from './foreign.js';
import { decodeByteText, lengthOfByteText, sqlLengthOfByteText, textLength, type ByteText } from './byte-text.js';
import { aesBits, hexSecret, readHexKey } from './hex-secret.js';

const leastBytes = gcmNonceBytes + gcmTagBytes;

function decrypt(bytes: Buffer | undefined, key: KeyObject): ReturnType<ForeignFormat['decrypt']> {
  if (bytes === undefined || bytes.length < leastBytes) return 'MALFORMED';
  const decryption = createDecipheriv(cipherOf(key), key, bytes.subarray(0, gcmNonceBytes), {
    authTagLength: gcmTagBytes,
  });
  decryption.setAuthTag(bytes.subarray(-gcmTagBytes));
  const plaintext = decryption.update(bytes.subarray(gcmNonceBytes, -gcmTagBytes));
  try {
    decryption.final();
    return plaintext;
  } catch {
    plaintext.fill(0);
    return 'AUTHENTICATION_FAILED';
  }
}

function encrypt(plaintext: Uint8Array, key: KeyObject): Buffer {
  const nonce = randomBytes(gcmNonceBytes);
  const encryption = createCipheriv(cipherOf(key), key, nonce, { authTagLength: gcmTagBytes });
  const ciphertext = Buffer.concat([encryption.update(plaintext), encryption.final()]);
  return Buffer.concat([nonce, ciphertext, encryption.getAuthTag()]);
}

function cipherOf(key: KeyObject): 'aes-128-gcm' | 'aes-192-gcm' | 'aes-256-gcm' {
  return `aes-${aesBits(key)}-gcm`;
}

function inText(kind: ByteText): ForeignFormat {
  return {
    name: `aes-gcm-${kind}`,
    authenticates: true,
    storages: ['text'],
    secret: hexSecret,
    readKey: readHexKey,
    isValue: (stored) => typeof stored === 'string' && (lengthOfByteText(stored, kind) ?? 0) >= leastBytes,
    sqlIsValue: (expression) =>
      `CASE WHEN (${expression}) IS NOT NULL THEN coalesce((${sqlLengthOfByteText(expression, kind)}) >= ${leastBytes}, false) END`,
    decrypt: (stored, key) => decrypt(typeof stored === 'string' ? decodeByteText(stored, kind) : undefined, key),
    encrypt: (plaintext, key) => encrypt(plaintext, key).toString(kind),
    storedLength: (plaintextBytes) => textLength(leastBytes + plaintextBytes, kind),
  };
}

export const aesGcmBase64 = inText('base64');
export const aesGcmHex = inText('hex');

export const aesGcmBytes: ForeignFormat = {
  name: 'aes-gcm-bytes',
  authenticates: true,
  storages: ['bytes'],
  secret: hexSecret,
  readKey: readHexKey,
  isValue: (stored) => typeof stored !== 'string' && stored.length >= leastBytes,
  sqlIsValue: (expression) => `(octet_length(${expression}) >= ${leastBytes})`,
  decrypt: (stored, key) => decrypt(typeof stored === 'string' ? undefined : stored, key),
  encrypt,
  storedLength: (plaintextBytes) => leastBytes + plaintextBytes,
};
