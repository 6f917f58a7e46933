// One target's rows in SQL: walking visits each key once whatever comes and goes, and a rewrite touches exactly the cells
// whose envelope is still the one that was read (I3).
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { KeyValue } from '../../src/index.js';
import type { RowKey, Target } from '../../src/rotation/target.js';
import type { PackedReplacements } from '../../src/store/cell-row.js';
import { createCellStore, type CellStore } from '../../src/store/cells.js';
import type { Database } from '../../src/store/database.js';
import { packArray } from '../../src/store/packed-array.js';
import { listTargets } from '../../src/store/registry.js';
import {
  ddlOf,
  keyedConfig,
  keyedTables,
  keyParameters,
  quoted,
  whereKey,
  type KeyedTable,
} from '../support/keyed-tables.js';
import { openShop, type Shop } from '../support/shop.js';

function targetOf(targets: readonly Target[], table: string): Target {
  const found = targets.find((target) => target.table === table);
  if (found === undefined) throw new Error(`no target ${table}`);
  return found;
}

describe('walking a table by its primary key', () => {
  let shop: Shop;
  let targets: readonly Target[];

  beforeAll(async () => {
    shop = await openShop({ config: keyedConfig, ddl: keyedTables.flatMap(ddlOf) });
    targets = await listTargets(shop.control.context.database);
  });

  afterAll(() => shop.close());

  const insert = (table: KeyedTable, key: readonly KeyValue[]): Promise<unknown> =>
    shop.query(
      `INSERT INTO ${quoted(table.name)} (${table.key.map(({ name }) => quoted(name)).join(', ')}) SELECT ${table.key.map(({ type }, at) => `$${at + 1}::text::${type}`).join(', ')} ON CONFLICT DO NOTHING`,
      keyParameters(key),
    );
  const remove = (table: KeyedTable, key: readonly KeyValue[]): Promise<unknown> =>
    shop.query(`DELETE FROM ${quoted(table.name)} WHERE ${whereKey(table)}`, keyParameters(key));

  for (const table of keyedTables) {
    test(`${table.kind}: ranges of any size cover each key that stays exactly once, while others come and go`, async () => {
      const store = createCellStore(targetOf(targets, table.name));
      const { database } = shop.control.context;
      const nameOf = (key: RowKey): string => JSON.stringify(key);
      const names = new Map<string, readonly KeyValue[]>();
      for (const key of table.keys) {
        await insert(table, key);
        const [row] = await store
          .readRange(database, { after: undefined, upto: undefined }, 1_000, undefined)
          .then((rows) => rows.filter((one) => !names.has(nameOf(one.key))));
        if (row !== undefined) names.set(nameOf(row.key), key);
      }
      expect(names.size).toBe(table.keys.length);

      const sizes = fc.array(fc.integer({ min: 1, max: 5 }), { minLength: 1, maxLength: 6 });
      const goers = fc.subarray([...names.keys()], { maxLength: Math.floor(table.keys.length / 2) });
      await fc.assert(
        fc.asyncProperty(sizes, goers, async (ranges, comingAndGoing) => {
          for (const key of table.keys) await insert(table, key);
          const bound = await store.highestKey(database);
          const visited: string[] = [];
          let after: RowKey | undefined;
          for (let step = 0; ; step++) {
            // One that may have been visited goes, and comes back a step later.
            const moving = names.get(comingAndGoing[step % Math.max(1, comingAndGoing.length)] ?? '');
            if (moving !== undefined) await (step % 2 === 0 ? remove(table, moving) : insert(table, moving));
            const upto = await store.lastKeyOfNext(
              database,
              { after, upto: bound },
              ranges[step % ranges.length] ?? 1,
              undefined,
            );
            if (upto === undefined) break;
            for (const row of await store.readRange(database, { after, upto }, 1_000, undefined))
              visited.push(nameOf(row.key));
            after = upto;
          }
          expect(visited.length).toBe(new Set(visited).size);
          const stayed = [...names.keys()].filter((name) => !comingAndGoing.includes(name));
          expect(stayed.filter((name) => !visited.includes(name))).toEqual([]);
        }),
        { numRuns: 8 },
      );
    });
  }

  test('an empty table has no highest key and no range', async () => {
    await shop.query('TRUNCATE by_int');
    const store = createCellStore(targetOf(targets, 'by_int'));
    const { database } = shop.control.context;
    expect(await store.highestKey(database)).toBeUndefined();
    expect(await store.lastKeyOfNext(database, { after: undefined, upto: undefined }, 10, undefined)).toBeUndefined();
  });
});

describe('I3 rewriting', () => {
  let shop: Shop;
  let store: CellStore;
  let database: Database;

  beforeAll(async () => {
    shop = await openShop({
      config: {
        keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
        targets: [
          {
            table: 'person',
            keyring: 'customers',
            columns: { email: {}, phone: {}, facts: { paths: { ssn: ['ssn'], iban: ['iban'] } } },
          },
        ],
      },
      ddl: [
        `CREATE COLLATION ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
        'CREATE TABLE person (id int PRIMARY KEY, email text COLLATE ignore_case, phone bytea, facts jsonb, note text)',
      ],
    });
    database = shop.control.context.database;
    store = createCellStore(targetOf(await listTargets(database), 'person'));
  });

  afterAll(() => shop.close());

  type Cell = { readonly read: string; readonly replacement: string } | null;

  /** `cells`: email, phone (hexadecimal), facts.iban, facts.ssn of each row. */
  function pack(rows: readonly { readonly id: number; readonly cells: readonly Cell[] }[]): PackedReplacements {
    const kinds = ['text', 'bytea', 'text', 'text'] as const;
    const value = (kind: 'text' | 'bytea', of: string | undefined): string | Buffer | null =>
      of === undefined ? null : kind === 'bytea' ? Buffer.from(of, 'hex') : of;
    return {
      rows: rows.length,
      keys: [
        packArray(
          'text',
          rows.map(({ id }) => String(id)),
        ),
      ],
      columns: kinds.map((kind, at) => {
        if (rows.every(({ cells }) => (cells[at] ?? null) === null)) return undefined;
        return {
          read: packArray(
            kind,
            rows.map(({ cells }) => value(kind, cells[at]?.read)),
          ),
          replacement: packArray(
            kind,
            rows.map(({ cells }) => value(kind, cells[at]?.replacement)),
          ),
        };
      }),
    };
  }

  async function rewrite(rows: Parameters<typeof pack>[0]): Promise<number[] | 'all'> {
    const rewritten = await database.transaction((client) => store.replaceIfUnchanged(client, pack(rows), 'all'));
    return rewritten === 'all' ? 'all' : [...rewritten];
  }

  const rowsNow = (): Promise<unknown> =>
    shop.query(`SELECT id, email, encode(phone, 'hex') AS phone, facts::text, note FROM person ORDER BY id`);

  async function fill(
    ...rows: readonly (readonly [number, string | null, string | null, string | null])[]
  ): Promise<void> {
    await shop.query('TRUNCATE person');
    for (const [id, email, phone, facts] of rows)
      await shop.query(`INSERT INTO person VALUES ($1, $2, decode($3, 'hex'), $4, 'kept')`, [id, email, phone, facts]);
  }

  test('replaces every kind of cell of a row at once and leaves the rest of row and document alone', async () => {
    await fill([1, 'old', 'aa', '{"ssn": "s", "iban": "i", "n": 1.50, "l": [null]}'], [2, 'old', null, null]);
    expect(
      await rewrite([
        {
          id: 1,
          cells: [
            { read: 'old', replacement: 'new' },
            { read: 'aa', replacement: 'bb' },
            { read: 'i', replacement: 'I' },
            { read: 's', replacement: 'S' },
          ],
        },
        { id: 2, cells: [{ read: 'old', replacement: 'two' }, null, null, null] },
      ]),
    ).toBe('all');
    expect(await rowsNow()).toEqual([
      { id: 1, email: 'new', phone: 'bb', facts: '{"l": [null], "n": 1.50, "ssn": "S", "iban": "I"}', note: 'kept' },
      { id: 2, email: 'two', phone: null, facts: null, note: 'kept' },
    ]);
  });

  test('a row of which one cell changed since it was read is left as it is, all of it', async () => {
    await fill([1, 'newer', 'aa', null], [2, 'old', 'aa', '{"ssn": "s"}'], [3, null, 'aa', null]);
    const stale: Cell = { read: 'old', replacement: 'new' };
    const phone: Cell = { read: 'aa', replacement: 'bb' };
    expect(
      await rewrite([
        { id: 1, cells: [stale, phone, null, null] },
        { id: 2, cells: [stale, phone, null, { read: 's', replacement: 'S' }] },
        { id: 3, cells: [stale, phone, null, null] },
        { id: 4, cells: [stale, phone, null, null] },
      ]),
    ).toEqual([1]);
    expect(await rowsNow()).toEqual([
      { id: 1, email: 'newer', phone: 'aa', facts: null, note: 'kept' },
      { id: 2, email: 'new', phone: 'bb', facts: '{"ssn": "S"}', note: 'kept' },
      { id: 3, email: null, phone: 'aa', facts: null, note: 'kept' },
    ]);
  });

  test('a path that is gone, null or no text any more is left as it is: nothing is put back', async () => {
    await fill(
      [1, null, null, '{}'],
      [2, null, null, '{"ssn": null}'],
      [3, null, null, '{"ssn": 5}'],
      [4, null, null, '[1]'],
      [5, null, null, null],
    );
    const before = await rowsNow();
    const cells: Cell[] = [null, null, null, { read: 's', replacement: 'S' }];
    expect(await rewrite([1, 2, 3, 4, 5].map((id) => ({ id, cells })))).toEqual([]);
    expect(await rowsNow()).toEqual(before);
  });

  test('an envelope that differs in case alone was not read, whatever the collation of the column says', async () => {
    await fill([1, 'kt1.ABC', null, null]);
    expect(await shop.query(`SELECT email = 'kt1.abc' AS equal FROM person`)).toEqual([{ equal: true }]);
    expect(await rewrite([{ id: 1, cells: [{ read: 'kt1.abc', replacement: 'new' }, null, null, null] }])).toEqual([]);
    expect(await rowsNow()).toMatchObject([{ email: 'kt1.ABC' }]);
  });

  test('rows in the hands of another transaction are not waited for, and are not rewritten without the lock', async () => {
    await fill([1, 'old', null, null], [2, 'old', null, null], [3, 'old', null, null]);
    const rows = pack(
      [1, 2, 3, 4].map((id) => ({ id, cells: [{ read: 'old', replacement: 'new' }, null, null, null] })),
    );
    await database.transaction(async (busy) => {
      await busy.query('UPDATE person SET note = $1 WHERE id = 2', ['busy']);
      await database.transaction(async (client) => {
        const locked = await store.lockUnlessBusy(client, rows);
        expect(locked === 'all' ? locked : [...locked].toSorted((a, b) => a - b)).toEqual([0, 2]);
        const rewritten = await store.replaceIfUnchanged(client, rows, locked);
        expect(rewritten === 'all' ? rewritten : [...rewritten].toSorted((a, b) => a - b)).toEqual([0, 2]);
      });
    });
    expect(await rowsNow()).toMatchObject([{ email: 'new' }, { email: 'old', note: 'busy' }, { email: 'new' }]);
  });
});
