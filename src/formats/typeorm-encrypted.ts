// Values of the npm package typeorm-encrypted: base64 of iv ‖ ciphertext (AES-CBC, PKCS #7 padding) or of
// iv ‖ tag ‖ ciphertext (AES-GCM), iv and tag of 16 bytes. CBC notices most wrong keys by its padding and no tampering.
import { isUtf8 } from 'node:buffer';
import { createCipheriv, createDecipheriv, randomBytes, type KeyObject } from 'node:crypto';
import type { ForeignFormat } from './foreign.js';
import { decodeByteText, lengthOfByteText, sqlLengthOfByteText, textLength } from './byte-text.js';
import { aesBits, hexSecret, readHexKey } from './hex-secret.js';
import type { Stored } from './format.js';

const ivBytes = 16;
const blockBytes = 16;
const tagBytes = 16;

export const typeormEncryptedCbc: ForeignFormat = {
  name: 'typeorm-encrypted-cbc',
  authenticates: false,
  storages: ['text'],
  secret: hexSecret,
  readKey: readHexKey,
  isValue(stored) {
    const bytes = lengthOf(stored);
    return bytes >= ivBytes + blockBytes && bytes % blockBytes === 0;
  },
  sqlIsValue(expression) {
    const bytes = sqlLengthOfByteText(expression, 'base64');
    return sqlAll(expression, [`(${bytes}) >= ${ivBytes + blockBytes}`, `(${bytes}) % ${blockBytes} = 0`]);
  },
  decrypt(stored, key) {
    const bytes = bytesOf(stored);
    if (bytes === undefined || bytes.length < ivBytes + blockBytes || bytes.length % blockBytes !== 0)
      return 'MALFORMED';
    const decryption = createDecipheriv(cbc(key), key, bytes.subarray(0, ivBytes));
    const first = decryption.update(bytes.subarray(ivBytes));
    let last: Buffer;
    try {
      last = decryption.final();
    } catch {
      return 'AUTHENTICATION_FAILED';
    }
    const plaintext = Buffer.concat([first, last]);
    first.fill(0);
    // The package encrypts text alone, so bytes that are none come of another key or a changed value.
    return isUtf8(plaintext) ? plaintext : 'AUTHENTICATION_FAILED';
  },
  encrypt(plaintext, key) {
    const iv = randomBytes(ivBytes);
    const encryption = createCipheriv(cbc(key), key, iv);
    return Buffer.concat([iv, encryption.update(plaintext), encryption.final()]).toString('base64');
  },
  storedLength: (plaintextBytes) =>
    textLength(ivBytes + (Math.floor(plaintextBytes / blockBytes) + 1) * blockBytes, 'base64'),
};

export const typeormEncryptedGcm: ForeignFormat = {
  name: 'typeorm-encrypted-gcm',
  authenticates: true,
  storages: ['text'],
  secret: hexSecret,
  readKey: readHexKey,
  isValue: (stored) => lengthOf(stored) >= ivBytes + tagBytes,
  sqlIsValue: (expression) =>
    sqlAll(expression, [`(${sqlLengthOfByteText(expression, 'base64')}) >= ${ivBytes + tagBytes}`]),
  decrypt(stored, key) {
    const bytes = bytesOf(stored);
    if (bytes === undefined || bytes.length < ivBytes + tagBytes) return 'MALFORMED';
    const decryption = createDecipheriv(gcm(key), key, bytes.subarray(0, ivBytes), { authTagLength: tagBytes });
    decryption.setAuthTag(bytes.subarray(ivBytes, ivBytes + tagBytes));
    const plaintext = decryption.update(bytes.subarray(ivBytes + tagBytes));
    try {
      decryption.final();
      return plaintext;
    } catch {
      plaintext.fill(0);
      return 'AUTHENTICATION_FAILED';
    }
  },
  encrypt(plaintext, key) {
    const iv = randomBytes(ivBytes);
    const encryption = createCipheriv(gcm(key), key, iv, { authTagLength: tagBytes });
    const ciphertext = Buffer.concat([encryption.update(plaintext), encryption.final()]);
    return Buffer.concat([iv, encryption.getAuthTag(), ciphertext]).toString('base64');
  },
  storedLength: (plaintextBytes) => textLength(ivBytes + tagBytes + plaintextBytes, 'base64'),
};

function cbc(key: KeyObject): 'aes-128-cbc' | 'aes-192-cbc' | 'aes-256-cbc' {
  return `aes-${aesBits(key)}-cbc`;
}

function gcm(key: KeyObject): 'aes-128-gcm' | 'aes-192-gcm' | 'aes-256-gcm' {
  return `aes-${aesBits(key)}-gcm`;
}

function lengthOf(stored: Stored): number {
  return typeof stored === 'string' ? (lengthOfByteText(stored, 'base64') ?? 0) : 0;
}

function bytesOf(stored: Stored): Buffer | undefined {
  return typeof stored === 'string' ? decodeByteText(stored, 'base64') : undefined;
}

/** False where a part is unknown; NULL for NULL alone. */
function sqlAll(expression: string, parts: readonly string[]): string {
  return `CASE WHEN (${expression}) IS NOT NULL THEN coalesce(${parts.join(' AND ')}, false) END`;
}
