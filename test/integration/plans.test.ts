// What the slices cost: for every kind of primary key the statements of the engine walk the key's index by a range or by
// its keys, and never read, skip or sort a whole table. Plans come from the very statements, explained in place of run.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RowKey, Target } from '../../src/rotation/target.js';
import type { PackedReplacements } from '../../src/store/cell-row.js';
import { createCellStore, sliceSettings, type CellStore } from '../../src/store/cells.js';
import type { Queryable } from '../../src/store/database.js';
import { packArray } from '../../src/store/packed-array.js';
import { listTargets } from '../../src/store/registry.js';
import { ddlOf, keyedConfig, keyedTables, quoted, type KeyedTable } from '../support/keyed-tables.js';
import { openShop, type Shop } from '../support/shop.js';

interface PlanNode {
  readonly 'Node Type': string;
  readonly 'Index Name'?: string;
  readonly 'Index Cond'?: string;
  readonly Plans?: readonly PlanNode[];
}

interface Explained {
  readonly plan: PlanNode;
  readonly text: string;
}

const rows = 4_000;

/** SQL for the value of a key column in row `g`; keys of several columns share their first one among many rows. */
const valueOf: Readonly<Record<string, (g: string) => string>> = {
  smallint: (g) => `${g}::smallint`,
  integer: (g) => `${g}::int`,
  bigint: (g) => `${g}::bigint`,
  uuid: (g) => `md5((${g})::text)::uuid`,
  text: (g) => `md5((${g})::text)`,
  'character varying': (g) => `substring(md5((${g})::text) FROM 1 FOR 20)`,
};

function fill(table: KeyedTable): string {
  const last = table.key.length - 1;
  const values = table.key.map(({ type }, at) => valueOf[type]?.(at === last ? 'g' : `g % 40`));
  return `INSERT INTO ${quoted(table.name)} (${table.key.map(({ name }) => quoted(name)).join(', ')}, secret)
    SELECT ${values.join(', ')}, 'kt1.' || g FROM generate_series(1, ${rows}) g`;
}

let shop: Shop;
let targets: readonly Target[];

beforeAll(async () => {
  shop = await openShop({ config: keyedConfig, ddl: keyedTables.flatMap(ddlOf) });
  for (const table of keyedTables) await shop.query(fill(table));
  targets = await listTargets(shop.control.context.database);
});

afterAll(() => shop.close());

function nodesOf(node: PlanNode): readonly PlanNode[] {
  return [node, ...(node.Plans ?? []).flatMap(nodesOf)];
}

/** Explains what `use` would run, under the settings of a slice, and answers plan and text. */
async function explain(
  target: Target,
  use: (store: CellStore, client: Queryable) => Promise<unknown>,
  settings = sliceSettings,
): Promise<Explained> {
  return shop.control.context.database.transaction(async (client) => {
    const found: Explained[] = [];
    const explaining: Queryable = {
      async query(text, parameters) {
        const explained = await client.query(`EXPLAIN (FORMAT JSON) ${text}`, parameters);
        const [{ Plan: plan }] = (explained.rows[0] ?? [])[0] as [{ Plan: PlanNode }];
        found.push({ plan, text });
        return { rows: [], rowCount: 0 };
      },
    };
    await use(createCellStore(target), explaining);
    const [only, ...others] = found;
    if (only === undefined || others.length > 0) throw new Error(`expected one statement, got ${found.length}`);
    return only;
  }, `BEGIN; ${settings}`);
}

/**
 * What is not as it should be: a scan other than of the key's index, bounded by `condition` on every partition alike, or
 * a sort of more than a slice, which comes out of a LIMIT or of the arrays of a statement.
 */
function faultsOf({ plan, text }: Explained, condition: RegExp): readonly string[] {
  const nodes = nodesOf(plan);
  const scans = nodes.filter((node) => /^Index (Only )?Scan/.test(node['Node Type']));
  const sorts = nodes.filter((node) => node['Node Type'].endsWith('Sort'));
  const isSlice = (sort: PlanNode): boolean =>
    nodesOf(sort).some((node) => /^(Limit|Function Scan)$/.test(node['Node Type']));
  return [
    ...(/\bOFFSET\b/i.test(text) ? ['OFFSET'] : []),
    ...nodes
      .map((node) => node['Node Type'])
      .filter((kind) => /Seq Scan|Bitmap|Hash|Merge Join|Materialize/.test(kind)),
    ...(scans.length === 0 ? ['no index scan'] : []),
    ...scans
      .filter((scan) => !/_pkey$/.test(scan['Index Name'] ?? ''))
      .map((scan) => `scan of ${scan['Index Name'] ?? '?'}`),
    ...scans
      .filter((scan) => !condition.test(scan['Index Cond'] ?? ''))
      .map((scan) => `condition ${scan['Index Cond'] ?? 'missing'}`),
    ...sorts.filter((sort) => !isSlice(sort)).map(() => 'a sort of the whole table'),
  ];
}

function packSlice(keys: readonly RowKey[]): PackedReplacements {
  const envelopes = packArray(
    'text',
    keys.map(() => 'kt1.'),
  );
  const parts =
    keys[0]?.map((_, part) =>
      packArray(
        'text',
        keys.map((key) => key[part] ?? null),
      ),
    ) ?? [];
  return { rows: keys.length, keys: parts, columns: [{ read: envelopes, replacement: envelopes }] };
}

const nothing = /^$/;
const byKey = /= \(?u\.k0/;

type Use = (store: CellStore, client: Queryable) => Promise<unknown>;

/** The statements that the engine sends for a slice, with the condition that must bound their scan of the key's index. */
function usesOf(table: KeyedTable, keys: readonly RowKey[]): Readonly<Record<string, readonly [Use, RegExp]>> {
  const [after, upto] = [keys[1_000], keys[2_000]];
  const between = table.key.length === 1 ? /> .* AND .*<= / : /ROW\(.*\) > ROW\(.*\).*AND.*ROW\(.*\) <= ROW\(/;
  const slice = keys.slice(1_000, 1_200);
  const packed = packSlice(slice);
  return {
    'reading a range': [(store, client) => store.readRange(client, { after, upto }, 500, undefined), between],
    'reading from the first key on': [
      (store, client) => store.readRange(client, { after: undefined, upto: undefined }, 500, undefined),
      nothing,
    ],
    'planning the next range': [
      (store, client) => store.lastKeyOfNext(client, { after, upto }, 500, undefined),
      between,
    ],
    'planning the first range': [
      (store, client) => store.lastKeyOfNext(client, { after: undefined, upto }, 500, undefined),
      /<= /,
    ],
    'counting a range': [
      (store, client) => store.countNot(client, { after, upto }, undefined, (cell) => `${cell} IS NULL`),
      between,
    ],
    'the bound of a pass': [(store, client) => store.highestKey(client), nothing],
    'reading listed rows': [(store, client) => store.readRows(client, slice), byKey],
    'locking rows': [(store, client) => store.lockUnlessBusy(client, packed), byKey],
    'rewriting rows': [(store, client) => store.replaceIfUnchanged(client, packed, 'all'), byKey],
    'rewriting those that were locked': [
      (store, client) => store.replaceIfUnchanged(client, packed, new Set([0])),
      byKey,
    ],
  };
}

async function keysOf(table: KeyedTable): Promise<readonly RowKey[]> {
  const names = table.key.map(({ name }) => quoted(name));
  const texts = names.map((name, at) => `${name}::text AS k${at}`).join(', ');
  const found = await shop.query(`SELECT ${texts} FROM ${quoted(table.name)} ORDER BY ${names.join(', ')}`);
  return found.map((row) => Object.values(row) as RowKey);
}

function targetOf(name: string): Target {
  const found = targets.find((target) => target.table === name);
  if (found === undefined) throw new Error(`no target ${name}`);
  return found;
}

for (const statistics of ['before the first ANALYZE', 'after an ANALYZE'] as const) {
  describe(`plans ${statistics}`, () => {
    beforeAll(async () => {
      if (statistics === 'after an ANALYZE') await shop.query('ANALYZE');
    });

    for (const table of keyedTables) {
      test(`${table.kind}: every statement of a slice scans the index of the key, bounded by range or by key`, async () => {
        const faults: string[] = [];
        for (const [what, [use, condition]] of Object.entries(usesOf(table, await keysOf(table)))) {
          const found = faultsOf(await explain(targetOf(table.name), use), condition);
          faults.push(...found.map((fault) => `${what}: ${fault}`));
        }
        expect(faults).toEqual([]);
      });
    }
  });
}

test('the bound of a pass comes from the end of the index, with the settings of any session too', async () => {
  for (const name of ['by_bigint', 'by_text_and_int', 'by_uuid_bigint_varchar']) {
    const explained = await explain(targetOf(name), (store, client) => store.highestKey(client), 'SET LOCAL jit = off');
    expect(faultsOf(explained, nothing)).toEqual([]);
    expect(nodesOf(explained.plan).map((node) => node['Node Type'])).toContain('Limit');
  }
});
