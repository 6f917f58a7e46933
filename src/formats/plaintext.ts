// Plaintext as a foreign format: the stored value is the value. It has no key and notices no change; an envelope is never
// taken for one, whatever is wrong with it (I8): see moving.ts.
import { isUtf8 } from 'node:buffer';
import { createSecretKey } from 'node:crypto';
import type { ForeignFormat } from './foreign.js';

export const plaintextFormat: ForeignFormat = {
  name: 'plaintext',
  authenticates: false,
  storages: ['text', 'bytes'],
  secret: undefined,
  readKey: () => createSecretKey(Buffer.alloc(0)),
  isValue: () => true,
  sqlIsValue: (expression) => `((${expression}) IS NOT NULL OR NULL)`,
  // A copy: whoever decrypts wipes the plaintext.
  decrypt: (stored) => Buffer.from(stored as Buffer),
  encrypt(plaintext, _, storage) {
    const bytes = Buffer.from(plaintext);
    if (storage === 'bytes') return bytes;
    // What is no text comes back as other bytes, and whoever encrypts compares.
    return isUtf8(bytes) ? bytes.toString('utf8') : '';
  },
  storedLength: (plaintextBytes) => plaintextBytes,
};
