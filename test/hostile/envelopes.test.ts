// What someone with write access to the table can try. Every golden envelope is altered in every way listed here, in
// both storages; each attempt must be refused with a reason, and decrypting must never throw.
import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import { maxPlaintextBytes } from '../../src/crypto/envelope.js';
import type { ValueKey } from '../../src/crypto/value-key.js';
import type { CellAddress, Stored } from '../../src/formats/format.js';
import { cryptoPaths } from '../support/crypto-paths.js';
import { bytesOf, goldenKeys, goldenValues, storedAs } from '../formats/golden.js';

const failures: readonly unknown[] = ['MALFORMED', 'ALGORITHM_DIFFERS', 'KEY_CHECK_DIFFERS', 'AUTHENTICATION_FAILED'];
const alphabet = 'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_';

describe.each(cryptoPaths)('what someone with write access can try [$path]', ({ format: keyturnFormat }) => {
  /** How many of the attempts were refused; a plaintext or a throw fails the test where it happens. */
  function countRefused(attempts: Iterable<Stored>, cell: CellAddress, key: ValueKey): number {
    let refused = 0;
    for (const stored of attempts) {
      const result = keyturnFormat.decrypt(stored, cell, key);
      if (!failures.includes(result)) throw new Error(`attempt ${refused} was accepted`);
      refused++;
    }
    return refused;
  }

  function flipBit(bytes: Buffer, bit: number): Buffer {
    const flipped = Buffer.from(bytes);
    flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
    return flipped;
  }

  function flippedUuid(uuid: Buffer): Buffer {
    return flipBit(uuid, 5);
  }

  // The long golden values add time and nothing else here.
  const short = goldenValues.filter((value) => value.plaintext.length < 100);

  describe.each(short)('altering: $name', ({ key, cell, storage, plaintext, stored }) => {
    const bytes = bytesOf(stored);

    test('every single flipped bit is refused', () => {
      const attempts = Array.from({ length: bytes.length * 8 }, (_, bit) => storedAs(flipBit(bytes, bit), storage));
      expect(countRefused(attempts, cell, key)).toBe(bytes.length * 8);
    });

    test('every truncation, at either end, is refused', () => {
      const attempts = Array.from({ length: bytes.length }, (_, kept) => [
        storedAs(bytes.subarray(0, kept), storage),
        storedAs(bytes.subarray(bytes.length - kept), storage),
      ]).flat();
      expect(countRefused(attempts, cell, key)).toBe(bytes.length * 2);
    });

    test('every extension by 1 to 64 bytes is refused', () => {
      const attempts = Array.from({ length: 64 }, (_, at) => [
        storedAs(Buffer.concat([bytes, Buffer.alloc(at + 1)]), storage),
        storedAs(Buffer.concat([bytes, bytes.subarray(0, at + 1)]), storage),
        storedAs(Buffer.concat([Buffer.alloc(at + 1), bytes]), storage),
      ]).flat();
      expect(countRefused(attempts, cell, key)).toBe(192);
    });

    test('the untouched envelope still opens, so the refusals above mean something', () => {
      expect(keyturnFormat.decrypt(storedAs(bytes, storage), cell, key)).toEqual(plaintext);
    });
  });

  describe.each(goldenValues)('moving: $name', ({ key, cell, stored, plaintext }) => {
    const otherRow = Buffer.from('0003696e7400023433', 'hex');
    const elsewhere: readonly (readonly [string, CellAddress])[] = [
      ['tenant', { ...cell, tenant: flippedUuid(cell.tenant) }],
      ['target', { ...cell, target: flippedUuid(cell.target) }],
      ['column', { ...cell, column: flippedUuid(cell.column) }],
      ['target and column exchanged', { ...cell, target: cell.column, column: cell.target }],
      ['tenant and target exchanged', { ...cell, tenant: cell.target, target: cell.tenant }],
      ['row or binding', { ...cell, row: cell.row?.equals(otherRow) === true ? undefined : otherRow }],
      ['binding', { ...cell, row: cell.row === undefined ? Buffer.alloc(0) : undefined }],
    ];

    test.each(elsewhere)('at another %s it does not decrypt (I2)', (_, moved) => {
      expect(keyturnFormat.decrypt(stored, moved, key)).toBe('AUTHENTICATION_FAILED');
    });

    test('the same fields in other buffers still decrypt', () => {
      const copy = { ...cell, tenant: Buffer.from(cell.tenant), row: cell.row && Buffer.from(cell.row) };
      expect(keyturnFormat.decrypt(stored, copy, key)).toEqual(plaintext);
    });
  });

  describe('wrong keys', () => {
    test('no golden envelope opens under a key it does not name, and the reason says so (I1, I8)', () => {
      for (const { key, cell, stored } of goldenValues) {
        const identity = goldenKeys.find((one) => one.identity.id === key.id)?.identity;
        if (identity === undefined) throw new Error('every golden value has a golden key');
        const under = (other: ValueKey): unknown => keyturnFormat.decrypt(stored, cell, other);
        const algorithm = key.algorithm === 'aes-256-gcm' ? 'xaes-256-gcm' : 'aes-256-gcm';

        expect(under(createValueKey(identity, generateDataKey()))).toBe('KEY_CHECK_DIFFERS');
        expect(under(createValueKey({ ...identity, id: 99 }, key.material))).toBe('KEY_CHECK_DIFFERS');
        expect(under({ ...identity, commitment: key.commitment, material: key.material, id: 99 })).toBe(
          'KEY_CHECK_DIFFERS',
        );
        expect(under(createValueKey({ ...identity, algorithm }, key.material))).toBe('ALGORITHM_DIFFERS');
        // Right id, right key check, other key: the tag is what counts.
        expect(under({ ...identity, commitment: key.commitment, material: generateDataKey() })).toBe(
          'AUTHENTICATION_FAILED',
        );
      }
    });

    test('one key never reads a value of the other algorithm, also when the header is rewritten to match', () => {
      for (const { key, cell, stored } of goldenValues) {
        const algorithm = key.algorithm === 'aes-256-gcm' ? 'xaes-256-gcm' : 'aes-256-gcm';
        const rewritten = Buffer.from(bytesOf(stored));
        rewritten[3] = algorithm === 'aes-256-gcm' ? 1 : 2;
        const other = { id: key.id, algorithm, commitment: key.commitment, material: key.material } as const;
        expect(countRefused([rewritten], cell, other)).toBe(1);
      }
    });
  });

  describe('armour that is not canonical', () => {
    const texts = goldenValues.filter((value) => value.storage === 'text');

    test('every other character in every place is refused', () => {
      for (const { key, cell, stored } of texts.filter((value) => value.plaintext.length < 15)) {
        const text = String(stored);
        const attempts = function* () {
          for (let at = 0; at < text.length; at++) {
            for (const character of `${alphabet}+/=. \n`) {
              if (text[at] !== character) yield text.slice(0, at) + character + text.slice(at + 1);
            }
          }
        };
        expect(countRefused(attempts(), cell, key)).toBeGreaterThan(text.length * 60);
      }
    });

    test('other spellings of the same bytes are refused', () => {
      let tried = 0;
      for (const { key, cell, stored } of texts) {
        const text = String(stored);
        const armour = text.slice(4);
        const standard = Buffer.from(armour, 'base64url').toString('base64');
        const spellings = [
          `${text}=`,
          `${text}==`,
          `${text}\n`,
          ` ${text}`,
          `${text}.`,
          `\ufeff${text}`,
          `${text}\ud800`,
          armour,
          `KT1.${armour}`,
          `kt2.${armour}`,
          `kt1.kt1.${armour}`,
          `kt1.${armour.slice(0, 30)}\n${armour.slice(30)}`,
          `kt1.${armour.slice(0, 30)}!!${armour.slice(30)}`,
          `kt1.${Buffer.from(armour, 'base64url').toString('hex')}`,
          `kt1.${standard}`,
        ].filter((spelling) => spelling !== text);
        tried += countRefused(spellings, cell, key);
      }
      expect(tried).toBeGreaterThanOrEqual(texts.length * 14);
    });

    test('surplus bits in the last character are refused although they decode to the same bytes', () => {
      let tried = 0;
      for (const { key, cell, stored } of texts) {
        const text = String(stored);
        const decoded = bytesOf(stored);
        const twins = Array.from(alphabet)
          .map((character) => text.slice(0, -1) + character)
          .filter((twin) => twin !== text && bytesOf(twin).equals(decoded));
        tried += countRefused(twins, cell, key);
      }
      expect(tried).toBeGreaterThan(0);
    });
  });

  describe('absurd input', () => {
    const [{ key, cell }] = goldenValues as [(typeof goldenValues)[number]];
    const header = Buffer.from('4b54010200000007b0da085d', 'hex');

    test.each<readonly [string, Stored]>([
      ['nothing', Buffer.alloc(0)],
      ['empty text', ''],
      ['the header alone', header],
      ['the armoured header alone', 'kt1.S1QBAgAAAAew2ghd'],
      ['the prefix alone', 'kt1.'],
      ['one byte over the maximum', Buffer.concat([header, Buffer.alloc(24 + maxPlaintextBytes + 16 + 1)])],
      ['64 MiB', Buffer.concat([header, Buffer.alloc(64 * 1_048_576)])],
      ['64 million characters', `kt1.S1QBAgAAAAew2ghd${'A'.repeat(64_000_000)}`],
      ['half a surrogate pair', '\udfff'],
      ['a zero character', 'kt1.\0'],
      ['a name that objects inherit', '__proto__'],
    ])('%s is malformed', (_, stored) => {
      expect(keyturnFormat.decrypt(stored, cell, key)).toBe('MALFORMED');
    });

    test('the largest possible envelope with a wrong tag is read through and refused', () => {
      const largest = Buffer.concat([header, Buffer.alloc(24 + maxPlaintextBytes + 16)]);
      expect(keyturnFormat.decrypt(largest, cell, key)).toBe('AUTHENTICATION_FAILED');
    });

    test('a cell with fields of other lengths is a mistake of the caller, not a reason to decrypt', () => {
      const good = goldenValues.find((value) => value.key === key);
      for (const field of ['tenant', 'target', 'column'] as const) {
        for (const length of [0, 15, 17, 32]) {
          expect(() =>
            keyturnFormat.decrypt(good?.stored ?? '', { ...cell, [field]: Buffer.alloc(length) }, key),
          ).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
        }
      }
    });

    test('bytes of a row field cannot pass for another row by moving a boundary', () => {
      const material = createSecretKey(Buffer.alloc(32, 9));
      const identity = goldenKeys[0]?.identity;
      if (identity === undefined) throw new Error('there is a golden key');
      const own = createValueKey(identity, material);
      const stored = keyturnFormat.encrypt(
        Buffer.from('x'),
        { ...cell, row: Buffer.from('0003696e7400023432', 'hex') },
        own,
        'bytes',
      );
      for (const row of ['0003696e740002343200', '03696e7400023432', '0003696e74000234', '00090003696e7400023432']) {
        expect(keyturnFormat.decrypt(stored, { ...cell, row: Buffer.from(row, 'hex') }, own)).toBe(
          'AUTHENTICATION_FAILED',
        );
      }
    });
  });
});
