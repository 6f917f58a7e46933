// The two paths to OpenSSL are one format: each opens what the other wrote, and each refuses the same things with the same words.
import { createSecretKey } from 'node:crypto';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { algorithmNames } from '../../src/crypto/algorithms.js';
import { createValueKey } from '../../src/crypto/data-key.js';
import type { CellAddress, Format, Storage, Stored } from '../../src/formats/format.js';
import { bytesOf, storedAs } from '../formats/golden.js';
import { cryptoPaths } from '../support/crypto-paths.js';

const [node, native] = cryptoPaths.map(({ format }) => format) as [Format, Format];
const keys = algorithmNames.flatMap((algorithm) =>
  [1, 2].map((id) =>
    createValueKey(
      {
        id,
        algorithm,
        purpose: 1,
        cluster: '00112233-4455-6677-8899-aabbccddeeff',
        scope: '11111111-1111-4111-8111-111111111111',
      },
      createSecretKey(Buffer.alloc(32, id)),
    ),
  ),
);

const bytes = (minLength: number, maxLength: number): fc.Arbitrary<Buffer> =>
  fc.uint8Array({ minLength, maxLength }).map((array) => Buffer.from(array));
const uuid = bytes(16, 16);
const cell: fc.Arbitrary<CellAddress> = fc.record({
  tenant: uuid,
  target: uuid,
  column: uuid,
  row: fc.option(bytes(0, 300), { nil: undefined }),
});
const key = fc.constantFrom(...keys);
const storage: fc.Arbitrary<Storage> = fc.constantFrom('text', 'bytes');

/** Another byte at one place, one byte more or one less. */
function mutate(bytesOfValue: Buffer, at: number, flip: number, how: 'flip' | 'cut' | 'grow'): Buffer {
  const place = at % bytesOfValue.length;
  const [before, after] = [bytesOfValue.subarray(0, place), bytesOfValue.subarray(place + 1)];
  const changed = Buffer.from([(bytesOfValue[place] ?? 0) ^ flip]);
  return Buffer.concat([before, ...(how === 'cut' ? [] : [changed]), ...(how === 'grow' ? [changed] : []), after]);
}

describe.runIf(native !== undefined)('node:crypto and the native path', () => {
  test('each opens what the other encrypted (I8)', () => {
    fc.assert(
      fc.property(bytes(0, 600), cell, key, storage, (plaintext, address, valueKey, kept) => {
        for (const [writes, reads] of [
          [node, native],
          [native, node],
        ] as const)
          expect(reads.decrypt(writes.encrypt(plaintext, address, valueKey, kept), address, valueKey)).toEqual(
            plaintext,
          );
      }),
      { numRuns: 500 },
    );
  });

  test('both refuse any other byte anywhere with the same failure (I1)', () => {
    fc.assert(
      fc.property(
        fc.tuple(bytes(0, 60), cell, key, storage),
        fc.nat(),
        fc.integer({ min: 1, max: 255 }),
        fc.constantFrom('flip', 'cut', 'grow'),
        ([plaintext, address, valueKey, kept], at, flip, how) => {
          const written = node.encrypt(plaintext, address, valueKey, kept);
          const altered = storedAs(mutate(bytesOf(written), at, flip, how), kept);
          const refused = node.decrypt(altered, address, valueKey);
          expect(typeof refused).toBe('string');
          expect(native.decrypt(altered, address, valueKey)).toBe(refused);
          const [under] = keys.filter((other) => other !== valueKey);
          if (under === undefined) throw new Error('there are four keys');
          expect(native.reencryptAll?.([{ stored: altered, cell: address }], valueKey, under, kept)).toEqual([
            { failure: refused },
          ]);
        },
      ),
      { numRuns: 2_000 },
    );
  });

  test('what was reencrypted at a stroke opens on node:crypto under the new key, at its cell alone, and the rest says why not (I2)', () => {
    const entry = fc.record({
      plaintext: bytes(0, 300),
      cell,
      damage: fc.option(fc.record({ at: fc.nat(), flip: fc.integer({ min: 1, max: 255 }) }), { nil: undefined }),
    });
    fc.assert(
      fc.property(fc.array(entry, { maxLength: 40 }), key, key, storage, (entries, from, to, kept) => {
        const values = entries.map(({ plaintext, cell: address, damage }): { stored: Stored; cell: CellAddress } => {
          const written = node.encrypt(plaintext, address, from, kept);
          if (damage === undefined) return { stored: written, cell: address };
          return { stored: storedAs(mutate(bytesOf(written), damage.at, damage.flip, 'flip'), kept), cell: address };
        });
        const results = native.reencryptAll?.(values, from, to, kept) ?? [];
        expect(results).toHaveLength(entries.length);
        for (const [index, result] of results.entries()) {
          const { stored, cell: address } = values[index] ?? { stored: '', cell: undefined };
          if (address === undefined) throw new Error('a result without a value');
          const opened = node.decrypt(stored, address, from);
          const elsewhere = { ...address, row: Buffer.from('elsewhere') };
          const seen =
            'failure' in result
              ? [result.failure]
              : [
                  node.decrypt(result.replacement, address, to),
                  node.nameKey(result.replacement),
                  result.replacement.toString() === stored.toString(),
                  node.decrypt(result.replacement, elsewhere, to),
                ];
          expect(seen).toEqual(Buffer.isBuffer(opened) ? [opened, to.id, false, 'AUTHENTICATION_FAILED'] : [opened]);
        }
      }),
      { numRuns: 300 },
    );
  });
});
