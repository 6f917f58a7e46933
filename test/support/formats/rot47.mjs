// A format as a user would write one: printable ASCII turned by 47, behind a mark. It is no cipher; tests need none.
import { createSecretKey } from 'node:crypto';

const mark = 'rot:';

const turn = (text) =>
  text.replace(/[!-~]/g, (letter) => String.fromCharCode(33 + ((letter.charCodeAt(0) - 33 + 47) % 94)));

export const format = {
  name: 'rot47',
  authenticates: false,
  storages: ['text'],
  secret: undefined,
  readKey: () => createSecretKey(Buffer.alloc(0)),
  isValue: (stored) => typeof stored === 'string' && stored.startsWith(mark),
  sqlIsValue: (expression) => `(left((${expression}), ${mark.length}) = '${mark}' COLLATE "C")`,
  decrypt: (stored) =>
    typeof stored === 'string' && stored.startsWith(mark) ? Buffer.from(turn(stored.slice(mark.length))) : 'MALFORMED',
  encrypt: (plaintext) => mark + turn(Buffer.from(plaintext).toString('utf8')),
  storedLength: (plaintextBytes) => mark.length + plaintextBytes,
};
