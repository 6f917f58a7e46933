// A column between two formats: whose a value is, the same in SQL on a real server.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import { nilUuidBytes, uuidToBytes } from '../../src/crypto/uuid.js';
import type { ValueKey } from '../../src/crypto/value-key.js';
import type { Format, Storage, Stored } from '../../src/formats/format.js';
import { keyturnFormat } from '../../src/formats/keyturn.js';
import { movingFormat } from '../../src/formats/moving.js';
import { foreignFormatByName } from '../../src/formats/registry.js';
import { evaluate } from './evaluate.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

let database: TestDatabase;
beforeAll(async () => {
  database = await createTestDatabase();
});
afterAll(() => database.drop());

const cell = {
  tenant: nilUuidBytes,
  target: uuidToBytes('33333333-3333-4333-8333-333333333333'),
  column: uuidToBytes('44444444-4444-4444-8444-444444444444'),
  row: undefined,
};
const dataKey = (id: number, algorithm: 'xaes-256-gcm' | 'aes-256-gcm'): ValueKey =>
  createValueKey(
    {
      id,
      algorithm,
      purpose: 1,
      cluster: '00112233-4455-6677-8899-aabbccddeeff',
      scope: '11111111-1111-4111-8111-111111111111',
    },
    generateDataKey(),
  );

const [older, active, unknown, foreignId] = [
  dataKey(1, 'aes-256-gcm'),
  dataKey(2, 'xaes-256-gcm'),
  dataKey(9, 'xaes-256-gcm'),
  'theirs',
];
/** Another key under an id that is known: a merged cluster, or a restored database. */
const impostor = dataKey(2, 'xaes-256-gcm');

interface Between {
  readonly format: Format;
  readonly foreignKey: ValueKey;
}

function between(name: string, writes: 'own' | 'foreign'): Between {
  const foreign = foreignFormatByName(name);
  const material = foreign?.readKey(Buffer.from('00'.repeat(32)));
  if (material === undefined) throw new Error(`no key for ${name}`);
  const format = movingFormat({ foreign, foreignKeyId: foreignId, writes, ownKeys: [older, active] });
  return { format, foreignKey: { id: foreignId, algorithm: 'aes-256-gcm', commitment: Buffer.alloc(32), material } };
}

const own = (key: ValueKey, storage: Storage): Stored =>
  keyturnFormat.encrypt(Buffer.from('value'), cell, key, storage);
/** A header with another key's check is none of ours, whatever id it carries. */
const impostors: Readonly<Record<Storage, Stored>> = { text: own(impostor, 'text'), bytes: own(impostor, 'bytes') };
const asStored = (text: string, storage: Storage): Stored => (storage === 'text' ? text : Buffer.from(text, 'utf8'));

/** Values with the key that a column between an own and the foreign format takes them to name. */
function valuesOf(
  { format, foreignKey }: Between,
  name: string,
  storage: Storage,
): [Stored, number | string | undefined][] {
  const isAuthentic = foreignFormatByName(name)?.authenticates === true;
  const named = (stored: Stored): number | string | undefined => {
    const isShaped = foreignFormatByName(name)?.isValue(stored) === true;
    return isAuthentic && isShaped ? foreignId : keyturnFormat.nameKey(stored);
  };
  const strange = [
    own(unknown, storage),
    impostors[storage],
    asStored('kt1.S1Q', storage),
    Buffer.from('4b5401', 'hex'),
  ].filter((value) => (storage === 'text') === (typeof value === 'string'));
  return [
    [own(older, storage), 1],
    [own(active, storage), 2],
    [format.encrypt(Buffer.from('value'), cell, foreignKey, storage), foreignId],
    ...(name === 'plaintext' ? ([[asStored('KTM', storage), foreignId]] as [Stored, string][]) : []),
    ...strange
      // Plaintext kt1. in bytea carries no magic of the bytes.
      .filter((value) => typeof value === 'string' || value[0] !== 0x6b)
      .map((value): [Stored, number | string | undefined] => [value, named(value)]),
  ];
}

const kinds: [string, Storage][] = [
  ['plaintext', 'text'],
  ['plaintext', 'bytes'],
  ['typeorm-encrypted-cbc', 'text'],
  ['typeorm-encrypted-gcm', 'text'],
  ['pgcrypto', 'text'],
  ['pgcrypto', 'bytes'],
  ['aes-gcm-base64', 'text'],
  ['aes-gcm-hex', 'text'],
  ['aes-gcm-bytes', 'bytes'],
];

describe.each(kinds)('between keyturn and %s in %s', (name, storage) => {
  test('I8 all twelve header bytes make a value ours; other values with our magic are none of a format that cannot tell', () => {
    const moving = between(name, 'own');
    for (const [stored, keyId] of valuesOf(moving, name, storage)) expect(moving.format.nameKey(stored)).toBe(keyId);
  });

  test('SQL counts each value under the key that it names', async () => {
    const moving = between(name, 'foreign');
    for (const [stored] of valuesOf(moving, name, storage)) {
      const named = moving.format.nameKey(stored);
      for (const key of [older, active, moving.foreignKey]) {
        const isNamed = await evaluate(database, moving.format.sqlNamesKey('v', storage, key), storage, stored);
        expect(isNamed).toBe(named === key.id && (named === foreignId || stored !== impostors[storage]));
      }
      const header = await evaluate(database, moving.format.sqlHeader('v', storage), storage, stored);
      expect(moving.format.keyOfHeader(header as Stored)).toBe(named);
    }
  });

  test('both are read, and a value opens under its own key alone', () => {
    const moving = between(name, 'own');
    const theirs = moving.format.encrypt(Buffer.from('value'), cell, moving.foreignKey, storage);
    const ours = moving.format.encrypt(Buffer.from('value'), cell, active, storage);
    expect(moving.format.decrypt(theirs, cell, moving.foreignKey)).toEqual(Buffer.from('value'));
    expect(moving.format.decrypt(ours, cell, active)).toEqual(Buffer.from('value'));
    expect(moving.format.decrypt(theirs, cell, active)).toBeTypeOf('string');
    expect(moving.format.decryptAll?.([{ stored: theirs, cell }], moving.foreignKey)).toEqual([Buffer.from('value')]);
    expect(
      moving.format.encryptAll?.([{ plaintext: Buffer.from('value'), cell }], moving.foreignKey, storage),
    ).toHaveLength(1);
  });

  test('what it writes with depends on where the column goes', () => {
    expect(between(name, 'own').format).toMatchObject({ bindsCell: true });
    expect(between(name, 'own').format.writeKeyId).toBeUndefined();
    expect(between(name, 'foreign').format).toMatchObject({ bindsCell: false, writeKeyId: foreignId });
  });
});

test('a format that this process does not know takes no value for damaged, and opens none', () => {
  const format = movingFormat({ foreign: undefined, foreignKeyId: foreignId, writes: 'own', ownKeys: [active] });
  const key = {
    id: foreignId,
    algorithm: 'aes-256-gcm',
    commitment: Buffer.alloc(32),
    material: generateDataKey(),
  } as const;
  expect(format.nameKey('whatever it is')).toBe(foreignId);
  expect(format.nameKey(randomBytes(20).toString('hex'))).toBe(foreignId);
  expect(format.decrypt('whatever it is', cell, key)).toBe('MALFORMED');
  expect(format.nameKey(own(active, 'text'))).toBe(2);
});
