// Keyturn's format as formats are used: naming, refusing, lengths, and the text of its SQL.
import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import { maxPlaintextBytes } from '../../src/crypto/envelope.js';
import { nilUuidBytes, uuidToBytes } from '../../src/crypto/uuid.js';
import type { ValueKey } from '../../src/crypto/value-key.js';
import { formatByName, formatNames } from '../../src/formats/registry.js';
import { cryptoPaths } from '../support/crypto-paths.js';
import { keyturnFormat } from '../../src/formats/keyturn.js';

const identity = {
  id: 7,
  algorithm: 'xaes-256-gcm',
  purpose: 1,
  cluster: '00112233-4455-6677-8899-aabbccddeeff',
  scope: '11111111-1111-4111-8111-111111111111',
} as const;
const exampleBytes = Buffer.from(Array.from({ length: 32 }, (_, at) => 0x20 + at));
const key = createValueKey(identity, createSecretKey(exampleBytes));
const cell = {
  tenant: nilUuidBytes,
  target: uuidToBytes('33333333-3333-4333-8333-333333333333'),
  column: uuidToBytes('44444444-4444-4444-8444-444444444444'),
  row: undefined,
};

describe.each(cryptoPaths)('encrypting [$path]', ({ format: written }) => {
  test.each(['bytes', 'text'] as const)('two envelopes of one plaintext in %s differ in every nonce', (storage) => {
    const made = new Set(
      Array.from({ length: 500 }, () => {
        const stored = written.encrypt(Buffer.from('x'), cell, key, storage);
        const bytes = typeof stored === 'string' ? Buffer.from(stored.slice(4), 'base64url') : stored;
        return bytes.subarray(12, 36).toString('hex');
      }),
    );
    expect(made.size).toBe(500);
  });

  test('text storage gives a string and bytes storage a Buffer', () => {
    expect(written.encrypt(Buffer.from('x'), cell, key, 'text')).toMatch(/^kt1\.S1QBAgAAAAew2ghd[\w-]+$/);
    expect(written.encrypt(Buffer.from('x'), cell, key, 'bytes')).toBeInstanceOf(Buffer);
  });

  test('the largest plaintext fits, one byte more is refused with both lengths', () => {
    const largest = written.encrypt(Buffer.alloc(maxPlaintextBytes), cell, key, 'text');
    expect(written.decrypt(largest, cell, key)).toHaveLength(maxPlaintextBytes);
    expect(() => written.encrypt(Buffer.alloc(maxPlaintextBytes + 1), cell, key, 'text')).toThrow(
      expect.objectContaining({
        code: 'VALUE_INVALID',
        message: 'a value may have 1048576 bytes of plaintext, this one has 1048577',
      }),
    );
  });

  test('a key whose id is no u32 cannot encrypt', () => {
    for (const id of [0, -1, 1.5, 2 ** 32, '7']) {
      const odd: ValueKey = { id, algorithm: key.algorithm, commitment: key.commitment, material: generateDataKey() };
      expect(() => written.encrypt(Buffer.from('x'), cell, odd, 'bytes')).toThrow(
        expect.objectContaining({ code: 'VALUE_INVALID' }),
      );
    }
  });
});

describe('naming the key of a value', () => {
  test('an envelope says its key from its first 12 bytes or 20 characters alone (I1)', () => {
    expect(keyturnFormat.nameKey(Buffer.from('4b54010200000007b0da085d', 'hex'))).toBe(7);
    expect(keyturnFormat.nameKey('kt1.S1QBAgAAAAew2ghd')).toBe(7);
    expect(keyturnFormat.nameKey(Buffer.from('4b540101fffffffeb0da085d00', 'hex'))).toBe(0xffff_fffe);
  });

  test.each([
    ['nothing', Buffer.alloc(0)],
    ['empty text', ''],
    ['eleven bytes', Buffer.from('4b54010200000007b0da08', 'hex')],
    ['another magic', Buffer.from('4b55010200000007b0da085d', 'hex')],
    ['another version', Buffer.from('4b54020200000007b0da085d', 'hex')],
    ['algorithm 0', Buffer.from('4b54010000000007b0da085d', 'hex')],
    ['algorithm 3', Buffer.from('4b54010300000007b0da085d', 'hex')],
    ['algorithm 240', Buffer.from('4b5401f000000007b0da085d', 'hex')],
    ['key id 0', Buffer.from('4b54010200000000b0da085d', 'hex')],
    ['armour of 19 characters', 'kt1.S1QBAgAAAAew2gh'],
    ['armour in capitals', 'KT1.S1QBAgAAAAew2ghd'],
    ['armour without prefix', 'S1QBAgAAAAew2ghdS1QB'],
    ['armour with a plus', 'kt1.S1QBAgAAAAew2g+d'],
    ['armour with a newline', 'kt1.S1QBAgAAAAew2gh\nd'],
    ['armour with a letter beyond ASCII', 'kt1.S1QBAgAAAAew2gh\u0164'],
    ['plain text', 'alice@example.org, Main Street'],
  ])('%s names no key', (_, stored) => {
    expect(keyturnFormat.nameKey(stored)).toBeUndefined();
  });

  test('a header read back from SQL names its key, a longer or shorter value does not', () => {
    expect(keyturnFormat.keyOfHeader(Buffer.from('4b54010200000007b0da085d', 'hex'))).toBe(7);
    expect(keyturnFormat.keyOfHeader('kt1.S1QBAgAAAAew2ghd')).toBe(7);
    expect(keyturnFormat.keyOfHeader(Buffer.from('4b54010200000007b0da085d00', 'hex'))).toBeUndefined();
    expect(keyturnFormat.keyOfHeader('kt1.S1QBAgAAAAew2ghdA')).toBeUndefined();
    expect(keyturnFormat.keyOfHeader('kt1.S1QBAgAAAAew2gh')).toBeUndefined();
    expect(keyturnFormat.keyOfHeader('')).toBeUndefined();
  });
});

describe('SQL of the format', () => {
  test('a value names a key by its first 12 bytes or 20 characters', () => {
    expect(keyturnFormat.sqlNamesKey('c."email"', 'bytes', key)).toBe(
      `(substring((c."email") FROM 1 FOR 12) = decode('4b54010200000007b0da085d', 'hex'))`,
    );
    expect(keyturnFormat.sqlNamesKey('c."email"', 'text', key)).toBe(
      `(left((c."email"), 20) = 'kt1.S1QBAgAAAAew2ghd' COLLATE "C")`,
    );
  });

  test('the magic is two bytes or the armour prefix', () => {
    expect(keyturnFormat.sqlHasMagic('x', 'bytes')).toBe(`(substring((x) FROM 1 FOR 2) = decode('4b54', 'hex'))`);
    expect(keyturnFormat.sqlHasMagic('x', 'text')).toBe(`(left((x), 4) = 'kt1.' COLLATE "C")`);
  });

  test('the header to group by is constant per key', () => {
    expect(keyturnFormat.sqlHeader('x', 'bytes')).toBe('substring((x) FROM 1 FOR 12)');
    expect(keyturnFormat.sqlHeader('x', 'text')).toBe('left((x), 20) COLLATE "C"');
  });
});

test('a format is found by its registered name and no other', () => {
  expect(formatNames).toEqual(['keyturn']);
  expect(formatByName('keyturn')).toBe(keyturnFormat);
  for (const name of ['Keyturn', '', 'constructor', '__proto__']) expect(formatByName(name)).toBeUndefined();
});
