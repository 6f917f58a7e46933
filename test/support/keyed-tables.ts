// One table per kind of primary key that a target may have, with keys that are awkward for it: shared by the tests that
// promise something "for every kind of key". Each has the encrypted column `secret`.
import type { ConfigFile } from '../../src/config.js';
import type { KeyValue } from '../../src/index.js';

export interface KeyedTable {
  readonly kind: string;
  /** As PostgreSQL has it, unquoted. */
  readonly name: string;
  readonly key: readonly { readonly name: string; readonly type: string }[];
  /** Column definitions and constraints. */
  readonly definition: string;
  /** Table options behind the definition, and further statements. */
  readonly options?: string;
  readonly partitions?: readonly string[];
  /** As an application names its rows: one value per key column. */
  readonly keys: readonly (readonly KeyValue[])[];
}

const awkwardTexts = [
  '',
  ' ',
  'a',
  'B',
  'Ä',
  'é',
  'e\u0301',
  'z',
  "it's",
  'a "quoted" word',
  'back\\slash',
  '{braces,and,commas}',
  'NULL',
  'line\nfeed',
  'tab\t',
  '%_',
  '$1',
  '日本語',
  '👋🏽',
  '\u{10FFFF}',
  'x'.repeat(300),
];

const uuids = [
  '00000000-0000-0000-0000-000000000000',
  '0191f2a4-7c1b-7000-8000-000000000001',
  'ABCDEF01-2345-4678-9ABC-DEF012345678',
  'ffffffff-ffff-ffff-ffff-ffffffffffff',
];

const bigints: KeyValue[] = [
  -9_223_372_036_854_775_808n,
  -9_007_199_254_740_993n,
  -1,
  0,
  7,
  '9007199254740993',
  9_223_372_036_854_775_807n,
];

const single = (values: readonly KeyValue[]): (readonly KeyValue[])[] => values.map((value) => [value]);

export const keyedTables: readonly KeyedTable[] = [
  {
    kind: 'smallint',
    name: 'by_smallint',
    key: [{ name: 'id', type: 'smallint' }],
    definition: 'id smallint PRIMARY KEY, secret text',
    keys: single([-32_768, -1, 0, '12', 32_767n]),
  },
  {
    kind: 'int',
    name: 'by_int',
    key: [{ name: 'id', type: 'integer' }],
    definition: 'id int PRIMARY KEY, secret text',
    keys: single([-2_147_483_648, -5, 0, 1, 2, 2_147_483_647]),
  },
  {
    kind: 'bigint',
    name: 'by_bigint',
    key: [{ name: 'id', type: 'bigint' }],
    definition: 'id bigint PRIMARY KEY, secret text',
    keys: single(bigints),
  },
  {
    kind: 'uuid',
    name: 'by_uuid',
    key: [{ name: 'id', type: 'uuid' }],
    definition: 'id uuid PRIMARY KEY, secret text',
    keys: single(uuids),
  },
  {
    kind: 'text',
    name: 'by_text',
    key: [{ name: 'id', type: 'text' }],
    definition: 'id text PRIMARY KEY, secret text',
    keys: single(awkwardTexts),
  },
  {
    kind: 'text in byte order',
    name: 'by_c_text',
    key: [{ name: 'id', type: 'text' }],
    definition: 'id text COLLATE "C" PRIMARY KEY, secret text',
    keys: single(awkwardTexts),
  },
  {
    kind: 'text in the order of a language',
    name: 'by_german_text',
    key: [{ name: 'id', type: 'text' }],
    definition: 'id text COLLATE "de-x-icu" PRIMARY KEY, secret text',
    keys: single(awkwardTexts),
  },
  {
    kind: 'varchar',
    name: 'by_varchar',
    key: [{ name: 'id', type: 'character varying' }],
    definition: 'id varchar(400) PRIMARY KEY, secret text',
    keys: single(awkwardTexts),
  },
  {
    kind: 'composite of text and int',
    name: 'by_text_and_int',
    key: [
      { name: 'region', type: 'text' },
      { name: 'id', type: 'integer' },
    ],
    definition: 'region text, id int, secret text, PRIMARY KEY (region, id)',
    keys: awkwardTexts.slice(0, 14).flatMap((region) => [-3, 0, 10].map((id) => [region, id])),
  },
  {
    kind: 'composite in another order than its columns',
    name: 'by_uuid_bigint_varchar',
    key: [
      { name: 'tenant', type: 'uuid' },
      { name: 'number', type: 'bigint' },
      { name: 'code', type: 'character varying' },
    ],
    definition: 'code varchar(20), secret text, number bigint, tenant uuid, PRIMARY KEY (tenant, number, code)',
    keys: uuids.flatMap((tenant) =>
      [-1n, 0n, 9_007_199_254_740_993n].flatMap((number) => ['', 'b', 'Ä'].map((code) => [tenant, number, code])),
    ),
  },
  {
    kind: 'int, partitioned by range',
    name: 'by_partitioned_int',
    key: [{ name: 'id', type: 'integer' }],
    definition: 'id int PRIMARY KEY, secret text',
    options: 'PARTITION BY RANGE (id)',
    partitions: ['FOR VALUES FROM (MINVALUE) TO (0)', 'FOR VALUES FROM (0) TO (10)', 'DEFAULT'],
    keys: single([-7, -1, 0, 9, 10, 11, 4_000]),
  },
  {
    kind: 'composite, partitioned by list',
    name: 'by_partitioned_pair',
    key: [
      { name: 'id', type: 'bigint' },
      { name: 'region', type: 'text' },
    ],
    definition: 'region text, id bigint, secret text, PRIMARY KEY (id, region)',
    options: 'PARTITION BY LIST (region)',
    partitions: ["FOR VALUES IN ('eu', 'us')", 'DEFAULT'],
    keys: ['eu', 'us', 'asia', ''].flatMap((region) => [1, 2, 3n].map((id) => [id, region])),
  },
  {
    kind: 'int, with every name quoted',
    name: 'Kunden "Liste" \\ \'alt\'',
    key: [{ name: 'Die "Nummer" \\', type: 'integer' }],
    definition: '"Die ""Nummer"" \\" int PRIMARY KEY, secret text',
    keys: single([3, 1, 2]),
  },
];

export function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

export function ddlOf(table: KeyedTable): readonly string[] {
  return [
    `CREATE TABLE ${quoted(table.name)} (${table.definition}) ${table.options ?? ''}`,
    ...(table.partitions ?? []).map(
      (bounds, at) => `CREATE TABLE ${quoted(`${table.name}_${at}`)} PARTITION OF ${quoted(table.name)} ${bounds}`,
    ),
  ];
}

export const keyedConfig: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: keyedTables.map((table) => ({
    table: `public.${table.name}`,
    keyring: 'customers',
    columns: { secret: {} },
  })),
};

/** `WHERE` of one row, with its parameters `$1…` cast to the key's types. */
export function whereKey(table: KeyedTable): string {
  return table.key.map(({ name, type }, at) => `${quoted(name)} = $${at + 1}::text::${type}`).join(' AND ');
}

/** As the driver takes it. */
export function keyParameters(key: readonly KeyValue[]): string[] {
  return key.map(String);
}
