// The registry: tables and columns keep their ids, and so their envelopes readable, through renames and rebuilds; what
// envelopes are bound to cannot change under them; where only a person can know, init asks.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { init, type InitReport } from '../../src/control/init.js';
import { rotateKey } from '../../src/control/keys.js';
import { listTargetListings, renameTargetTo, takeCensus, type TargetListing } from '../../src/control/targets.js';
import type { Keyturn } from '../../src/index.js';
import { startDirectRunner } from '../support/direct-run.js';
import { createTestRole } from '../support/roles.js';
import { openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

type TargetFile = NonNullable<ConfigFile['targets']>[number];

const keyrings = { customers: { root: 'env:KEYTURN_ROOT_KEY' }, patients: { root: 'env:KEYTURN_ROOT_KEY' } };
const customerFile: TargetFile = {
  table: 'public.customer',
  keyring: 'customers',
  scope: 'tenant',
  columns: { email: {}, phone: { bind: 'column' }, profile: { paths: { ssn: ['ssn'], iban: ['bank', 'iban'] } } },
};
const address = { pk: ['eu', 7], scope: 'acme' };
const values = { email: 'ada@example.com', phone: '+49 30 1', 'profile.ssn': '123', 'profile.iban': 'DE1' };

const createTable = (name: string): string =>
  `CREATE TABLE ${name} (id int, region text, tenant text, email text, phone text, profile jsonb, PRIMARY KEY (region, id))`;
/** The same table from another hand: columns in another order, so under other attribute numbers. */
const createRebuilt = (name: string): string =>
  `CREATE TABLE ${name} (profile jsonb, phone text, email text, note text, tenant text, region text, id bigint, PRIMARY KEY (region, id))`;
const copyRows = (from: string, to: string): string =>
  `INSERT INTO ${to} (id, region, tenant, email, phone, profile) SELECT id, region, tenant, email, phone, profile FROM ${from}`;

let shop: Shop;

beforeEach(async () => {
  shop = await openShop({ config: { keyrings, targets: [customerFile] }, ddl: [createTable('customer')] });
  const keyturn = await shop.open();
  const [email, phone, ssn, iban] = await Promise.all(
    Object.entries(values).map(([name, value]) => keyturn.column('customer', name).encrypt(address, value)),
  );
  await shop.query(`INSERT INTO customer VALUES (7, 'eu', 'acme', $1, $2, $3)`, [
    email,
    phone,
    { ssn, bank: { iban } },
  ]);
  await keyturn.close();
});

afterEach(() => shop.close());

async function withFile<T>(targets: readonly TargetFile[], work: (file: ConfigFile) => Promise<T>): Promise<T> {
  return work({ keyrings, targets: [...targets] });
}

function initWith(...targets: readonly TargetFile[]): Promise<InitReport> {
  return withFile(targets, async (file) => {
    const control = openControl({ environment: shop.environment(), file });
    return init(control.context).finally(control.close);
  });
}

function rename(from: string, to: string): Promise<TargetListing> {
  return renameTargetTo(shop.control.context, from, to, 'test');
}

/** Reads every cell of the row under the names given, then rotates the keys and reads again. */
async function expectReadable(table: string, columns: Readonly<Record<keyof typeof values, string>>): Promise<void> {
  const read = async (keyturn: Keyturn): Promise<unknown> => {
    const [row] = await shop.query(`SELECT * FROM ${table}`);
    const stored = (name: string): string => {
      const [column, path] = name.split('.');
      const document = row?.[column ?? ''] as { ssn: string; bank: { iban: string } };
      return path === 'ssn' ? document.ssn : path === 'iban' ? document.bank.iban : String(document);
    };
    const found: Record<string, string> = {};
    for (const [before, now] of Object.entries(columns)) {
      found[before] = String((await keyturn.column(table, now).decrypt(address, stored(now))).plaintext);
    }
    return found;
  };
  const found: unknown[] = [];
  for (const isRotated of [false, true]) {
    if (isRotated) await rotateAndRun();
    const keyturn = await openKeyturn({ config: { keyrings }, environment: shop.environment() });
    found.push(await read(keyturn).finally(keyturn.close));
  }
  expect(found).toEqual([values, values]);
}

async function rotateAndRun(): Promise<void> {
  await rotateKey(shop.control.context, { keyring: 'customers', ifOlderThanMs: undefined, reason: 'test' });
  const runner = await startDirectRunner(shop);
  const report = await runner.finish(await shop.order({ keyring: 'customers' })).finally(runner.close);
  expect(report).toMatchObject({ state: 'succeeded', fields_reencrypted: 4, fields_failed: 0 });
}

const sameColumns = { email: 'email', phone: 'phone', 'profile.ssn': 'profile.ssn', 'profile.iban': 'profile.iban' };

async function ids(): Promise<unknown> {
  return [
    await shop.query('SELECT id FROM keyturn.target ORDER BY 1'),
    await shop.query('SELECT id FROM keyturn.target_column ORDER BY 1'),
  ];
}

describe('what keeps its ids', () => {
  test('a renamed table, renamed columns and a renamed key are followed by init, and every envelope stays readable', async () => {
    const before = await ids();
    await shop.query('CREATE SCHEMA crm');
    for (const change of [
      'RENAME COLUMN email TO mail',
      'RENAME COLUMN profile TO facts',
      'RENAME COLUMN id TO number',
      'RENAME COLUMN tenant TO owner',
      'RENAME TO client',
      'SET SCHEMA crm',
    ]) {
      await shop.query(`ALTER TABLE ${change === 'SET SCHEMA crm' ? 'client' : 'customer'} ${change}`);
    }
    const moved = {
      ...customerFile,
      table: 'crm.client',
      scope: 'owner',
      columns: {
        mail: {},
        phone: { bind: 'column' as const },
        facts: { paths: { ssn: ['ssn'], iban: ['bank', 'iban'] } },
      },
    };
    const report = await initWith(moved);
    expect(report.targets).toEqual([
      { name: 'crm.client', columns: ['mail', 'phone', 'facts.ssn', 'facts.iban'], change: 'renamed' },
    ]);
    expect(await ids()).toEqual(before);
    const audit = await shop.query(
      `SELECT action, count(*)::int AS n FROM keyturn.audit WHERE action LIKE 'target.%rename' GROUP BY 1 ORDER BY 1`,
    );
    expect(audit).toEqual([
      { action: 'target.column.rename', n: 3 },
      { action: 'target.rename', n: 1 },
    ]);
    expect(await initWith(moved)).toMatchObject({ targets: [{ change: 'unchanged' }] });
    await expectReadable('crm.client', {
      email: 'mail',
      phone: 'phone',
      'profile.ssn': 'facts.ssn',
      'profile.iban': 'facts.iban',
    });
  });

  test('between the rename and the next init, library and runs find table and columns by what they are', async () => {
    await shop.query('ALTER TABLE customer RENAME COLUMN email TO mail');
    await shop.query('ALTER TABLE customer RENAME TO client');
    const keyturn = await openKeyturn({ config: { keyrings }, environment: shop.environment() });
    const [row] = await shop.query('SELECT mail FROM client');
    expect(await keyturn.column('client', 'email').decrypt(address, String(row?.['mail']))).toMatchObject({
      plaintext: values.email,
    });
    await keyturn.close();
    await rotateAndRun();
  });

  test('a key widened from int to bigint keeps its envelopes', async () => {
    await shop.query('ALTER TABLE customer ALTER COLUMN id TYPE bigint');
    expect(await initWith(customerFile)).toMatchObject({ targets: [{ change: 'unchanged' }] });
    await expectReadable('public.customer', sameColumns);
  });

  test('a table dropped and created anew under its name is taken over by init, whatever the order of its columns', async () => {
    const before = await ids();
    for (const statement of [
      'ALTER TABLE customer RENAME TO old',
      createRebuilt('customer'),
      copyRows('old', 'customer'),
      'DROP TABLE old',
    ])
      await shop.query(statement);
    expect(await initWith(customerFile)).toMatchObject({ targets: [{ name: 'public.customer', change: 'renamed' }] });
    expect(await ids()).toEqual(before);
    await expectReadable('public.customer', sameColumns);
  });

  test('target rename points a target at a table created anew under another name', async () => {
    const before = await ids();
    for (const statement of [createRebuilt('client'), copyRows('customer', 'client'), 'DROP TABLE customer'])
      await shop.query(statement);
    const listing = await rename('customer', 'client');
    expect(listing).toMatchObject({
      table: 'public.client',
      primary_key: ['region text', 'id bigint'],
      scope: 'tenant',
    });
    expect(await ids()).toEqual(before);
    expect(
      await shop.query(
        `SELECT reason, before ->> 'table' AS before, after ->> 'table' AS after FROM keyturn.audit WHERE action = 'target.rename'`,
      ),
    ).toEqual([{ reason: 'test', before: 'public.customer', after: 'public.client' }]);
    await expectReadable('public.client', sameColumns);
  });

  test('a column added to the file is registered, one left out of it stays registered with a warning', async () => {
    await shop.query('ALTER TABLE customer ADD COLUMN note text');
    const report = await initWith({ ...customerFile, columns: { email: {}, note: {} } });
    expect(report.targets).toMatchObject([{ change: 'extended' }]);
    expect(report.warnings.map(({ check, subject }) => [check, subject])).toEqual([
      ['registry', 'public.customer.phone'],
      ['registry', 'public.customer.profile.iban'],
      ['registry', 'public.customer.profile.ssn'],
    ]);
    const [target] = await listTargetListings(shop.control.context);
    expect(target?.columns.map(({ name }) => name)).toEqual(['email', 'phone', 'profile.iban', 'profile.ssn', 'note']);
  });
});

describe('what init refuses, changing nothing', () => {
  const refusals: readonly { what: string; file: TargetFile; says: string; ddl?: string }[] = [
    {
      what: 'another keyring',
      file: { ...customerFile, keyring: 'patients' },
      says: 'its keyring cannot change, because every envelope is bound to it',
    },
    {
      what: 'another scope column',
      file: { ...customerFile, scope: 'region' },
      says: 'its scope column cannot change',
    },
    {
      what: 'no scope column any more',
      file: { table: 'customer', keyring: 'customers', columns: customerFile.columns },
      says: 'its scope column cannot change',
    },
    {
      what: 'another binding',
      file: { ...customerFile, columns: { email: { bind: 'column' } } },
      says: 'column public.customer.email is registered with format keyturn, bind row; its envelopes depend on both, so they cannot become keyturn, column',
    },
    {
      what: 'another path under a registered name',
      file: { ...customerFile, columns: { profile: { paths: { ssn: ['number'] } } } },
      says: 'column public.customer.profile.ssn is registered with another path, under which its envelopes lie',
    },
    {
      what: 'another primary key',
      file: customerFile,
      ddl: 'ALTER TABLE customer DROP CONSTRAINT customer_pkey, ADD PRIMARY KEY (id, region)',
      says: 'its primary key cannot change',
    },
    {
      what: 'a key of another kind',
      file: customerFile,
      ddl: 'ALTER TABLE customer ALTER COLUMN id TYPE text',
      says: 'its primary key cannot change',
    },
    {
      what: 'a table created anew with another key',
      file: customerFile,
      ddl: 'DROP TABLE customer; CREATE TABLE customer (id int PRIMARY KEY, region text, tenant text, email text, phone text, profile jsonb)',
      says: 'its primary key cannot change',
    },
  ];

  for (const { what, file, says, ddl } of refusals) {
    test(`${what} is refused`, async () => {
      if (ddl !== undefined) await shop.query(ddl);
      const before = await imageOf(shop, 'keyturn');
      await expect(initWith(file)).rejects.toMatchObject({
        code: 'TARGET_INVALID',
        message: expect.stringContaining(says) as string,
      });
      expect(await imageOf(shop, 'keyturn')).toEqual(before);
    });
  }

  test('a second target that is refused keeps the first from being registered too', async () => {
    await shop.query('CREATE TABLE fine (id int PRIMARY KEY, email text)');
    const fine: TargetFile = { table: 'fine', keyring: 'customers', columns: { email: {} } };
    // A transaction that was rolled back leaves a gap in the numbers of the record, and nothing else.
    const counters = ['audit_id_seq'];
    const before = await imageOf(shop, 'keyturn', counters);
    await expect(initWith(fine, { ...customerFile, scope: 'region' })).rejects.toMatchObject({
      code: 'TARGET_INVALID',
    });
    await expect(initWith(fine, { ...fine, table: 'missing' })).rejects.toMatchObject({ code: 'PREFLIGHT_REFUSED' });
    expect(await imageOf(shop, 'keyturn', counters)).toEqual(before);
  });

  test('a second table under the registered name: init asks, and either answer of target rename settles it', async () => {
    for (const statement of [
      'ALTER TABLE customer RENAME TO kept',
      createRebuilt('customer'),
      copyRows('kept', 'customer'),
    ])
      await shop.query(statement);
    await expect(initWith(customerFile)).rejects.toMatchObject({
      code: 'TARGET_INVALID',
      message:
        'target public.customer is registered for the table that is now called public.kept, and public.customer is another table; say where its rows are with: keyturn target rename public.customer public.kept, or: keyturn target rename public.customer public.customer',
    });
    await rename('public.customer', 'public.kept');
    expect(await initWith({ ...customerFile, table: 'kept' })).toMatchObject({ targets: [{ change: 'unchanged' }] });
    await rename('public.kept', 'public.customer');
    expect(await initWith(customerFile)).toMatchObject({ targets: [{ change: 'unchanged' }] });
    await shop.query('DROP TABLE kept');
    await expectReadable('public.customer', sameColumns);
  });

  test('a second column under the registered name: init says how to go on, and that way works', async () => {
    await shop.query('ALTER TABLE customer RENAME COLUMN email TO old_email');
    await shop.query('ALTER TABLE customer ADD COLUMN email text');
    await expect(initWith(customerFile)).rejects.toMatchObject({
      code: 'TARGET_INVALID',
      message:
        'column public.customer.email is registered for the column that is now called old_email, and email is another column; list old_email in its place and run keyturn init, then add email',
    });
    const { email, ...others } = customerFile.columns;
    await initWith({ ...customerFile, columns: { ...others, old_email: email ?? {} } });
    const report = await initWith({ ...customerFile, columns: { ...customerFile.columns, old_email: {} } });
    expect(report.targets).toMatchObject([{ change: 'extended' }]);
    await expectReadable('public.customer', { ...sameColumns, email: 'old_email' });
  });
});

describe('what target rename refuses', () => {
  test('tables that lack what the envelopes are bound to, and names that lead nowhere', async () => {
    for (const statement of [
      'CREATE TABLE no_columns (region text, id int, tenant text, email text, PRIMARY KEY (region, id))',
      createTable('other_key').replace('(region, id)', '(id, region)'),
      createTable('other_kind').replace('id int', 'id text'),
      createTable('no_scope').replace('tenant text, ', ''),
      createTable('taken'),
    ]) {
      await shop.query(statement);
    }
    await initWith(customerFile, { table: 'taken', keyring: 'customers', columns: { email: {} } });
    const before = await imageOf(shop, 'keyturn');
    const attempts: readonly [string, string, string, string][] = [
      [
        'customer',
        'no_columns',
        'TARGET_INVALID',
        'table no_columns lacks phone, profile, profile, which target customer encrypts',
      ],
      [
        'customer',
        'other_key',
        'TARGET_INVALID',
        'table other_key has not what the envelopes of customer are bound to: its primary key must be as in the registered table',
      ],
      ['customer', 'other_kind', 'TARGET_INVALID', 'its primary key must be as in the registered table'],
      ['customer', 'no_scope', 'TARGET_INVALID', 'its scope column must be as in the registered table'],
      ['customer', 'taken', 'TARGET_INVALID', 'table taken is registered already as target public.taken'],
      ['customer', 'nowhere', 'TARGET_NOT_FOUND', 'there is no table public.nowhere to rename to'],
      ['nobody', 'no_scope', 'TARGET_NOT_FOUND', 'there is no target "nobody"; known: public.customer, public.taken'],
    ];
    for (const [from, to, code, says] of attempts) {
      await expect(rename(from, to)).rejects.toMatchObject({
        code,
        message: expect.stringContaining(says) as string,
      });
    }
    expect(await imageOf(shop, 'keyturn')).toEqual(before);
  });
});

describe('looking at targets', () => {
  test('list tells keys, tenant column, columns with their ids; census counts every cell by the key it names', async () => {
    const [target] = await listTargetListings(shop.control.context);
    expect(target).toMatchObject({
      table: 'public.customer',
      keyring: 'customers',
      primary_key: ['region text', 'id integer'],
      scope: 'tenant',
    });
    expect(target?.columns).toHaveLength(4);
    await shop.query(
      `INSERT INTO customer VALUES (8, 'eu', 'acme', 'in clear', NULL, '{"ssn": "kt1.S1QBAgAAAGPAqqru"}')`,
    );
    const census = await takeCensus(shop.control.context, 'customer');
    const key = { key_id: 1, key: 'customers v1 (id 1)', state: 'active', cells: 1 };
    expect(census).toHaveLength(6);
    for (const column of Object.keys(values))
      expect(census).toContainEqual({ target: 'public.customer', column, ...key });
    expect(census).toContainEqual({
      target: 'public.customer',
      column: 'email',
      key_id: null,
      key: 'not an envelope',
      state: null,
      cells: 1,
    });
    expect(census).toContainEqual({
      target: 'public.customer',
      column: 'profile.ssn',
      key_id: 99,
      key: 'unknown key 99',
      state: null,
      cells: 1,
    });
  });

  test('census fails rather than counting only the rows that row-level security shows', async () => {
    const role = await createTestRole();
    const control = openControl({ environment: { DATABASE_URL: role.urlFor(shop.url) }, file: { keyrings } });
    try {
      await shop.query('ALTER TABLE customer ENABLE ROW LEVEL SECURITY');
      await shop.query('CREATE POLICY none ON customer USING (false)');
      await shop.query(
        `GRANT USAGE ON SCHEMA keyturn TO ${role.name}; GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO ${role.name}; GRANT SELECT ON customer TO ${role.name}`,
      );
      await expect(takeCensus(control.context, undefined)).rejects.toMatchObject({
        code: 'FORBIDDEN',
        details: { sqlstate: '42501' },
      });
    } finally {
      await control.close();
      await shop.query(`DROP OWNED BY ${role.name}`);
      await role.drop();
    }
  });
});
