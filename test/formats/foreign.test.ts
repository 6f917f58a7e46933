// Every foreign format keeps the same promises, its SQL on a real server; known answers show that the formats are the
// ones of the other systems.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { findBrokenPromises } from '../../src/formats/conformance.js';
import type { ForeignFormat } from '../../src/formats/foreign.js';
import { foreignFormatByName, foreignFormatNames } from '../../src/formats/registry.js';
import { evaluate } from './evaluate.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
  await database.pool.query('CREATE EXTENSION pgcrypto');
});
afterAll(() => database.drop());

function foreign(name: string): ForeignFormat {
  const format = foreignFormatByName(name);
  if (format === undefined) throw new Error(`no format ${name}`);
  return format;
}

function hexSecret(bytes = 32): Buffer {
  return Buffer.from(randomBytes(bytes).toString('hex'));
}

const decrypt = (name: string, stored: string | Buffer, secret: Buffer): string => {
  const format = foreign(name);
  const key = format.readKey(secret);
  if (key === undefined) throw new Error('the secret is none');
  return format.decrypt(stored, key).toString();
};

test('the formats of this release are these', () => {
  expect(foreignFormatNames()).toEqual([
    'plaintext',
    'typeorm-encrypted-cbc',
    'typeorm-encrypted-gcm',
    'pgcrypto',
    'aes-gcm-base64',
    'aes-gcm-hex',
    'aes-gcm-bytes',
  ]);
});

test.each(foreignFormatNames())('I8 %s keeps every promise of a foreign format, in SQL too', async (name) => {
  const broken = await findBrokenPromises(foreign(name), {
    secrets: [hexSecret(), hexSecret()],
    evaluate: (sql, storage, stored) => evaluate(database, sql, storage, stored),
  });
  expect(broken).toEqual([]);
  for (const storage of foreign(name).storages) {
    expect(await evaluate(database, foreign(name).sqlIsValue('v', storage), storage, null)).toBeNull();
  }
});

describe('the conformance check finds what does not hold', () => {
  const gcm = foreign('aes-gcm-hex');
  test.each<[string, Partial<ForeignFormat>, RegExp]>([
    [
      'a decrypt that throws',
      {
        decrypt: () => {
          throw new Error('no');
        },
      },
      /decrypt throws/,
    ],
    ['a decrypt that authenticates nothing', { decrypt: () => Buffer.from('guess') }, /decrypts to something else/],
    [
      'a key that does not matter',
      {
        decrypt: (stored) => gcm.decrypt(stored, fixedKey),
        encrypt: (plain, _, storage) => gcm.encrypt(plain, fixedKey, storage),
      },
      /decrypts under another key/,
    ],
    ['a length that is too short', { storedLength: (bytes) => bytes }, /longer than storedLength/],
    ['SQL of another shape', { sqlIsValue: () => 'true' }, /SQL and isValue differ/],
    ['values it does not know again', { isValue: () => false }, /isValue does not know/],
  ])('%s', async (_, change, words) => {
    const broken = await findBrokenPromises(
      { ...gcm, ...change },
      {
        secrets: [hexSecret(), hexSecret()],
        evaluate: (sql, storage, stored) => evaluate(database, sql, storage, stored),
      },
    );
    expect(broken.join('\n')).toMatch(words);
  });
  const fixedKey = (() => {
    const key = gcm.readKey(hexSecret());
    if (key === undefined) throw new Error('no key');
    return key;
  })();
});

describe('known answers', () => {
  const key = Buffer.from('e41c966f21f9e1577802463f8924e6a3fe3e9751f201304213b2f845d8841d61');

  test('a CBC value of typeorm-encrypted opens', () => {
    expect(decrypt('typeorm-encrypted-cbc', '/1rBkZBCSx2I+UGe+UmuVhKzmHsDDv0EvRtMBFiaE3A=', key)).toBe('test');
  });

  test('a base64 text that is not the one spelling of its bytes does not open', () => {
    expect(decrypt('typeorm-encrypted-cbc', '/1rBkZBCSx2I+UGe+UmuVhKzmHsDDv0EvRtMBFiaE3B=', key)).toBe('MALFORMED');
  });

  test.each([16, 24, 32])('keys of %i bytes are taken, others are not', (bytes) => {
    expect(foreign('aes-gcm-hex').readKey(hexSecret(bytes))?.symmetricKeySize).toBe(bytes);
    expect(foreign('aes-gcm-hex').readKey(hexSecret(bytes + 1))).toBeUndefined();
    expect(foreign('aes-gcm-hex').readKey(Buffer.from('not hexadecimal'))).toBeUndefined();
  });
});

describe('messages of pgcrypto', () => {
  const passphrase = 'correct horse battery staple';
  const options = [
    '',
    'cipher-algo=aes192',
    'cipher-algo=aes256, compress-algo=1',
    'compress-algo=2, compress-level=9',
    'sess-key=1, cipher-algo=aes256',
    's2k-mode=0',
    's2k-mode=1, s2k-digest-algo=md5',
    's2k-mode=3, s2k-digest-algo=sha256, s2k-count=1024',
    's2k-cipher-algo=aes256, sess-key=1, unicode-mode=1',
  ];

  test.each(options)('what the server encrypted with "%s" opens here', async (setting) => {
    for (const text of ['', 'secret', 'ü'.repeat(40_000)]) {
      const { rows } = await database.pool.query<{ message: Buffer; armour: string }>(
        'SELECT m AS message, armor(m) AS armour FROM (SELECT pgp_sym_encrypt($1::text, $2, $3) AS m) t',
        [text, passphrase, setting],
      );
      expect(decrypt('pgcrypto', rows[0]?.message ?? '', Buffer.from(passphrase))).toBe(text);
      expect(decrypt('pgcrypto', rows[0]?.armour ?? '', Buffer.from(passphrase))).toBe(text);
      expect(decrypt('pgcrypto', rows[0]?.message ?? '', Buffer.from('another'))).toBe('AUTHENTICATION_FAILED');
    }
  });

  test('what is encrypted here opens on the server, as text and as bytes', async () => {
    const format = foreign('pgcrypto');
    const key = format.readKey(Buffer.from(passphrase));
    if (key === undefined) throw new Error('no key');
    const text = format.encrypt(Buffer.from('Zoë'), key, 'text');
    const bytes = format.encrypt(Buffer.from([0, 255, 1]), key, 'bytes');
    const { rows } = await database.pool.query(
      'SELECT pgp_sym_decrypt(dearmor($1), $3) AS text, pgp_sym_decrypt_bytea($2, $3) AS bytes',
      [text, bytes, passphrase],
    );
    expect(rows).toEqual([{ text: 'Zoë', bytes: Buffer.from([0, 255, 1]) }]);
  });

  test('a message without a modification detection code is refused', async () => {
    const { rows } = await database.pool.query<{ message: Buffer }>(
      `SELECT pgp_sym_encrypt('secret', $1, 'disable-mdc=1') AS message`,
      [passphrase],
    );
    expect(decrypt('pgcrypto', rows[0]?.message ?? '', Buffer.from(passphrase))).toBe('MALFORMED');
  });
});
