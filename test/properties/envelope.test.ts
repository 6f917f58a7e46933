// Properties of format v1 over random plaintexts, cells and garbage.
import { createSecretKey } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { algorithmNames } from '../../src/crypto/algorithms.js';
import { createValueKey } from '../../src/crypto/data-key.js';
import { decodeArmour, encodeArmour, encodeHeader, headerOfKey, parseHeader } from '../../src/crypto/envelope.js';
import { encodeRowKey, type RowKeyPart } from '../../src/crypto/row-key.js';
import type { CellAddress, Storage } from '../../src/formats/format.js';
import { cryptoPaths } from '../support/crypto-paths.js';

const keys = algorithmNames.map((algorithm, index) =>
  createValueKey(
    {
      id: index + 1,
      algorithm,
      purpose: 1,
      cluster: '00112233-4455-6677-8899-aabbccddeeff',
      scope: '11111111-1111-4111-8111-111111111111',
    },
    createSecretKey(Buffer.alloc(32, index + 1)),
  ),
);

const bytes = (minLength: number, maxLength: number): fc.Arbitrary<Buffer> =>
  fc.uint8Array({ minLength, maxLength }).map((array) => Buffer.from(array));
const uuid = bytes(16, 16);

const rowKeyPart: fc.Arbitrary<RowKeyPart> = fc.oneof(
  fc.bigInt({ min: -(2n ** 63n), max: 2n ** 63n - 1n }).map((int) => ({ tag: 'int', text: int.toString() }) as const),
  fc.uuid().map((text) => ({ tag: 'uuid', text }) as const),
  fc.string({ unit: 'binary' }).map((text) => ({ tag: 'text', text }) as const),
  bytes(0, 40).map((data) => ({ tag: 'bytes', text: `\\x${data.toString('hex')}` }) as const),
  // What would collide if lengths were missing: texts that look like the next part.
  fc.constantFrom('', '\0\u0003int', 'int', '1', '12').map((text) => ({ tag: 'text', text }) as const),
);
const rowKey = fc.array(rowKeyPart, { minLength: 1, maxLength: 4 });
const cell: fc.Arbitrary<CellAddress> = fc.record({
  tenant: uuid,
  target: uuid,
  column: uuid,
  row: fc.option(rowKey.map(encodeRowKey), { nil: undefined }),
});
const key = fc.constantFrom(...keys);
const storage: fc.Arbitrary<Storage> = fc.constantFrom('text', 'bytes');

describe.each(cryptoPaths)('format v1 for any input [$path]', ({ format: keyturnFormat }) => {
  test('decrypting what was encrypted gives the plaintext, and its length was foretold (I8)', () => {
    // Sizes up to 64 KiB, with the small ones and the edges as likely as the rest.
    const plaintext = fc
      .tuple(fc.oneof(fc.nat(64), fc.nat(65_536), fc.constantFrom(0, 65_535, 65_536)), fc.nat(255))
      .map(([length, seed]) => Buffer.from(Uint8Array.from({ length }, (_, at) => (at * 31 + seed) & 0xff)));
    fc.assert(
      fc.property(plaintext, cell, key, storage, (value, address, valueKey, kept) => {
        const stored = keyturnFormat.encrypt(value, address, valueKey, kept);
        expect(keyturnFormat.nameKey(stored)).toBe(valueKey.id);
        expect(stored).toHaveLength(keyturnFormat.storedLength(value.length, valueKey.algorithm, kept));
        const opened = keyturnFormat.decrypt(stored, address, valueKey);
        expect(Buffer.isBuffer(opened) && opened.equals(value)).toBe(true);
      }),
      { numRuns: 300 },
    );
  });

  test('a value opens at another cell exactly when the cells are equal (I2)', () => {
    fc.assert(
      fc.property(cell, cell, key, (here, there, valueKey) => {
        const stored = keyturnFormat.encrypt(Buffer.from('value'), here, valueKey, 'bytes');
        const isSame = JSON.stringify(here) === JSON.stringify(there);
        const opened = keyturnFormat.decrypt(stored, there, valueKey);
        expect(opened).toEqual(isSame ? Buffer.from('value') : 'AUTHENTICATION_FAILED');
      }),
      { numRuns: 300 },
    );
  });

  test('garbage is refused and never thrown at the caller (I8)', () => {
    const armoured = bytes(0, 200).map(encodeArmour);
    const withHeader = fc.tuple(key, bytes(0, 200)).map(([named, rest]) => {
      return Buffer.concat([encodeHeader(headerOfKey(named)), rest]);
    });
    const garbage = fc.oneof(
      bytes(0, 200),
      fc.string({ unit: 'binary' }),
      fc.string().map((text) => `kt1.${text}`),
      armoured,
      withHeader,
      withHeader.map(encodeArmour),
    );
    fc.assert(
      fc.property(garbage, cell, key, (stored, address, valueKey) => {
        expect(typeof keyturnFormat.decrypt(stored, address, valueKey)).toBe('string');
      }),
      { numRuns: 3_000 },
    );
  });
});

describe('encodings for any input', () => {
  test('two row keys encode alike only when they are equal', () => {
    fc.assert(
      fc.property(rowKey, rowKey, (left, right) => {
        const isSame = JSON.stringify(left) === JSON.stringify(right);
        expect(encodeRowKey(left).equals(encodeRowKey(right))).toBe(isSame);
      }),
      { numRuns: 3_000 },
    );
  });

  test('a row key is read back from its encoding, so no two keys share one', () => {
    const decode = (field: Buffer): string[][] => {
      const parts: string[][] = [];
      for (let at = 0; at < field.length; ) {
        const texts = [0, 1].map(() => {
          const length = field.readUInt16BE(at);
          at += 2 + length;
          return field.toString('utf8', at - length, at);
        });
        parts.push(texts);
      }
      return parts;
    };
    fc.assert(
      fc.property(rowKey, (parts) => {
        expect(decode(encodeRowKey(parts))).toEqual(parts.map(({ tag, text }) => [tag, text]));
      }),
      { numRuns: 1_000 },
    );
  });

  test('armour that decodes is exactly the armour of its bytes', () => {
    const text = fc.oneof(
      fc.string().map((rest) => `kt1.${rest}`),
      fc.string({ unit: fc.constantFrom(...Array.from('AQgwZ09-_+/= \n')) }).map((rest) => `kt1.${rest}`),
      bytes(0, 60).map(encodeArmour),
    );
    fc.assert(
      fc.property(text, (armour) => {
        const decoded = decodeArmour(armour);
        expect(decoded === undefined ? armour : encodeArmour(decoded)).toBe(armour);
      }),
      { numRuns: 3_000 },
    );
    fc.assert(
      fc.property(bytes(0, 300), (data) => {
        expect(decodeArmour(encodeArmour(data))).toEqual(data);
      }),
    );
  });

  test('a header that parses is exactly the header of what it says', () => {
    const nearly = fc.tuple(key, fc.nat(11), fc.nat(255)).map(([named, at, value]) => {
      const header = encodeHeader(headerOfKey(named));
      header[at] = value;
      return header;
    });
    fc.assert(
      fc.property(fc.oneof(bytes(0, 16), nearly), (data) => {
        const start = data.subarray(0, 12);
        const header = parseHeader(data);
        expect(header === undefined ? start : encodeHeader(header)).toEqual(start);
      }),
      { numRuns: 3_000 },
    );
  });
});
