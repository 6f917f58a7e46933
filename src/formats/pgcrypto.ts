// Symmetric messages of PostgreSQL's pgcrypto (pgp_sym_encrypt, pgp_sym_encrypt_bytea): the message in bytea, its armour
// in text. Decrypted here and not by the server, so that passphrase and plaintext stay out of statements and logs.
import { isUtf8 } from 'node:buffer';
import { createSecretKey } from 'node:crypto';
import {
  decryptOpenPgp,
  encryptOpenPgp,
  openPgpArmourBegin,
  openPgpArmourLength,
  openPgpLength,
  readOpenPgpArmour,
  writeOpenPgpArmour,
} from '../crypto/openpgp.js';
import type { ForeignFormat } from './foreign.js';

/** First bytes of a session key packet: in the new form, and in the old one by the width of its length. */
const firstBytes = [0xc3, 0x8c, 0x8d, 0x8e];

export const pgcryptoFormat: ForeignFormat = {
  name: 'pgcrypto',
  // The modification detection code is a hash under the encryption, not a MAC; it finds every change made without the key.
  authenticates: true,
  storages: ['text', 'bytes'],
  secret: 'the passphrase',
  readKey: (secret) => (secret.length === 0 ? undefined : createSecretKey(secret)),
  isValue: (stored) =>
    typeof stored === 'string' ? stored.startsWith(openPgpArmourBegin) : firstBytes.includes(stored[0] ?? 0),
  sqlIsValue: (expression, storage) =>
    storage === 'text'
      ? `(left((${expression}), ${openPgpArmourBegin.length}) = '${openPgpArmourBegin}' COLLATE "C")`
      : `(substring((${expression}) FROM 1 FOR 1) IN (${firstBytes.map((byte) => `decode('${byte.toString(16)}', 'hex')`).join(', ')}))`,
  decrypt(stored, key) {
    const message = typeof stored === 'string' ? readOpenPgpArmour(stored) : stored;
    if (message === undefined) return 'MALFORMED';
    const passphrase = key.export();
    const data = decryptOpenPgp(message, passphrase);
    passphrase.fill(0);
    return data;
  },
  encrypt(plaintext, key, storage) {
    const passphrase = key.export();
    const message = encryptOpenPgp(plaintext, passphrase, isUtf8(plaintext));
    passphrase.fill(0);
    return storage === 'text' ? writeOpenPgpArmour(message) : message;
  },
  storedLength(plaintextBytes, storage) {
    const bytes = openPgpLength(plaintextBytes);
    return storage === 'text' ? openPgpArmourLength(bytes) : bytes;
  },
};
