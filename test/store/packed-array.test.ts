// Packed arrays against PostgreSQL itself: what array_recv takes from us is what we put in.
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { packArray } from '../../src/store/packed-array.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

let database: TestDatabase;

beforeAll(async () => {
  database = await createTestDatabase();
});

afterAll(() => database.drop());

/** As PostgreSQL read it: the elements, how many dimensions, the lower bound. */
async function received(
  element: 'text' | 'bytea',
  packed: Buffer,
): Promise<{ values: (string | Buffer | null)[]; shape: unknown }> {
  const { rows } = await database.pool.query<{ values: (string | Buffer | null)[]; shape: unknown }>(
    `SELECT ARRAY(SELECT u FROM unnest($1::${element}[]) WITH ORDINALITY AS e(u, i) ORDER BY i) AS values, jsonb_build_array(array_ndims($1::${element}[]), array_lower($1::${element}[], 1), cardinality($1::${element}[])) AS shape`,
    [packed],
  );
  return rows[0] ?? { values: [], shape: undefined };
}

// PostgreSQL keeps no NUL in text; every other character may come.
const text = fc
  .oneof(
    fc.string({ unit: 'binary', maxLength: 40 }),
    fc.constantFrom('', 'NULL', '{}', '"', '\\', 'ü', '日本', '👋🏽', '\u{10FFFF}', 'x'.repeat(5_000)),
  )
  .filter((value) => !value.includes('\0'));
const bytes = fc.uint8Array({ maxLength: 60 }).map((value) => Buffer.from(value));

describe('packed arrays', () => {
  test('any list of texts and NULLs arrives as it was, in one dimension from 1 on', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.option(text), { maxLength: 30 }), async (values) => {
        const { values: arrived, shape } = await received('text', packArray('text', values));
        expect(arrived).toEqual(values);
        expect(shape).toEqual(values.length === 0 ? [null, null, 0] : [1, 1, values.length]);
      }),
      { numRuns: 150 },
    );
  });

  test('any list of bytes and NULLs arrives as it was', async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(fc.option(bytes), { maxLength: 30 }), async (values) => {
        expect((await received('bytea', packArray('bytea', values))).values).toEqual(values);
      }),
      { numRuns: 150 },
    );
  });

  test('thousands of values arrive in order', async () => {
    const values = Array.from({ length: 5_000 }, (_, at) => (at % 7 === 0 ? null : `ключ ${at}`));
    expect((await received('text', packArray('text', values))).values).toEqual(values);
  });

  test('bytes are half as long on the way as the hexadecimal text that the driver would send', () => {
    const values = Array.from({ length: 100 }, () => Buffer.alloc(1_000, 1));
    expect(packArray('bytea', values).length).toBe(20 + 100 * 1_004);
  });
});
