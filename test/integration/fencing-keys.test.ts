// I6: a fence refuses every new value that names its key, by whatever way it comes, and lets everything else pass. Whoever
// takes a fence away, or exchanges it, is seen.
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ConfigFile } from '../../src/config.js';
import { examineEverything } from '../../src/control/doctor.js';
import { init } from '../../src/control/init.js';
import { activate, restore, retire, stageKey } from '../../src/control/keys.js';
import { readStatus } from '../../src/control/status.js';
import { convergeFences, listFenceTroubles } from '../../src/engine/fence.js';
import { serverVersion } from '../../src/store/catalog.js';
import { markFenced } from '../../src/store/fences.js';
import { createTestRole } from '../support/roles.js';
import { openShop, type Shop } from '../support/shop.js';

const config: ConfigFile = {
  keyrings: { payments: { root: 'env:KEYTURN_ROOT_KEY' }, customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [
    { table: 'customer', keyring: 'customers', columns: { email: {}, phone: {}, facts: { paths: { ssn: ['ssn'] } } } },
    { table: 'visit', keyring: 'customers', columns: { note: {} } },
    { table: 'payment', keyring: 'payments', columns: { iban: {} } },
  ],
};

/** Ids as they come: 1 payments, 2 customers before its rotation, 3 customers now. */
const fencedId = 2;

let shop: Shop;
let old: { text: string; bytes: Buffer };
let current: string;
let payment: string;

const converge = (): Promise<void> =>
  convergeFences(shop.control.context.database, { patienceMs: 5_000, onProgress: () => undefined });

async function mark(isFenced: boolean): Promise<void> {
  await shop.control.context.database.transaction((client) => markFenced(client, fencedId, isFenced, 'test'));
}

beforeAll(async () => {
  shop = await openShop({
    config,
    ddl: [
      'CREATE TABLE customer (id int PRIMARY KEY, email text, phone bytea, facts jsonb, note text)',
      'CREATE TABLE visit (id int PRIMARY KEY, note text) PARTITION BY RANGE (id)',
      'CREATE TABLE visit_1 PARTITION OF visit FOR VALUES FROM (0) TO (100)',
      'CREATE TABLE payment (id int PRIMARY KEY, iban text)',
    ],
  });
  const envelopes = async (): Promise<[string, Buffer]> => {
    const keyturn = await shop.open();
    const text = await keyturn.column('customer', 'email').encrypt({ pk: 1 }, 'CANARY');
    const bytes = await keyturn.column('customer', 'phone').encrypt({ pk: 1 }, 'CANARY');
    payment = String(await keyturn.column('payment', 'iban').encrypt({ pk: 1 }, 'CANARY'));
    await keyturn.close();
    return [String(text), Buffer.from(bytes as Buffer)];
  };
  const [text, bytes] = await envelopes();
  old = { text, bytes };
  await activate(shop.control.context, 'customers', String(await stage()), 'test');
  [current] = await envelopes();
  await shop.query('INSERT INTO customer VALUES (1, $1, $2, $3), (2, $4, NULL, NULL)', [
    old.text,
    old.bytes,
    { ssn: old.text },
    current,
  ]);
  await shop.query('INSERT INTO visit VALUES (1, $1)', [old.text]);
});

async function stage(): Promise<number> {
  return (await stageKey(shop.control.context, 'customers', 'test')).key.id;
}

afterAll(() => shop.close());

async function connect(url: string = shop.url): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  return client;
}

/** What came of the statement: `done`, or the SQLSTATE. */
async function tryOn(
  client: { query(text: string, values?: unknown[]): Promise<unknown> },
  text: string,
  values?: unknown[],
): Promise<string> {
  try {
    await client.query(text, values);
    return 'done';
  } catch (error) {
    return String((error as { code?: unknown }).code);
  }
}

describe('a fence that stands', () => {
  let early: pg.Client;

  beforeAll(async () => {
    early = await connect();
    await early.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
    await early.query('SELECT count(*) FROM customer');
    await mark(true);
    await converge();
  });
  afterAll(() => early.end());

  test('has nothing amiss', async () => {
    expect(await listFenceTroubles(shop.control.context.database)).toEqual([]);
  });

  const refused: readonly { how: string; sql: string; values: () => unknown[] }[] = [
    {
      how: 'an INSERT into a text column',
      sql: 'INSERT INTO customer (id, email) VALUES (10, $1)',
      values: () => [old.text],
    },
    {
      how: 'an INSERT into a bytea column',
      sql: 'INSERT INTO customer (id, phone) VALUES (10, $1)',
      values: () => [old.bytes],
    },
    {
      how: 'an INSERT into a jsonb path',
      sql: 'INSERT INTO customer (id, facts) VALUES (10, $1)',
      values: () => [{ ssn: old.text }],
    },
    { how: 'an UPDATE', sql: 'UPDATE customer SET email = $1 WHERE id = 2', values: () => [old.text] },
    {
      how: 'an UPDATE of a jsonb path',
      sql: `UPDATE customer SET facts = jsonb_build_object('ssn', $1::text) WHERE id = 2`,
      values: () => [old.text],
    },
    {
      how: 'an INSERT that ends as an UPDATE',
      sql: 'INSERT INTO customer (id, email) VALUES (2, NULL) ON CONFLICT (id) DO UPDATE SET email = $1',
      values: () => [old.text],
    },
    {
      how: 'a copy of a row in SQL',
      sql: 'INSERT INTO customer SELECT 10, email FROM customer WHERE id = 1',
      values: () => [],
    },
    {
      how: 'a write into a partition by the table',
      sql: 'INSERT INTO visit VALUES (10, $1)',
      values: () => [old.text],
    },
    {
      how: 'a write into a partition by its own name',
      sql: 'INSERT INTO visit_1 VALUES (10, $1)',
      values: () => [old.text],
    },
    {
      how: 'a write into a table of another keyring',
      sql: 'INSERT INTO payment VALUES (10, $1)',
      values: () => [old.text],
    },
  ];

  test.each(refused)('I6 refuses $how, and says the id alone', async ({ sql, values }) => {
    const error: unknown = await shop.query(sql, values()).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      code: 'KTF01',
      message: expect.stringMatching(
        /^keyturn fence: a value for public\.\w+ names key 2, which is retired or about to be$/,
      ) as string,
      detail: undefined,
    });
    expect(JSON.stringify(error)).not.toContain(old.text.slice(24, 40));
  });

  test('I6 refuses a REPEATABLE READ transaction that was open before it', async () => {
    expect(await tryOn(early, 'INSERT INTO customer (id, email) VALUES (11, $1)', [old.text])).toBe('KTF01');
    await early.query('ROLLBACK');
  });

  test('I6 refuses a session that plays a replica', async () => {
    const client = await connect();
    await client.query('SET session_replication_role = replica');
    expect(await tryOn(client, 'INSERT INTO customer (id, email) VALUES (12, $1)', [old.text])).toBe('KTF01');
    expect(await tryOn(client, 'INSERT INTO visit_1 VALUES (12, $1)', [old.text])).toBe('KTF01');
    await client.end();
  });

  test('I6 refuses the writes of keyturn itself as well', async () => {
    const client = await connect();
    await client.query(`BEGIN; SET LOCAL keyturn.active = '1'`);
    expect(await tryOn(client, 'UPDATE customer SET email = $1 WHERE id = 2', [old.text])).toBe('KTF01');
    await client.end();
  });

  test('I6 refuses COPY', async () => {
    const copy = `COPY customer (id, email) FROM PROGRAM 'printf "13\\t${old.text}\\n"'`;
    expect(await tryOn(shop, copy)).toBe('KTF01');
  });

  test('I6 refuses MERGE', async ({ skip }) => {
    if ((await serverVersion(shop.control.context.database)) < 150_000) skip('MERGE came with PostgreSQL 15');
    const merge = (id: number): string =>
      `MERGE INTO customer c USING (SELECT ${id} AS id, $1::text AS email) s ON c.id = s.id
       WHEN MATCHED THEN UPDATE SET email = s.email WHEN NOT MATCHED THEN INSERT (id, email) VALUES (s.id, s.email)`;
    expect(await tryOn(shop, merge(2), [old.text])).toBe('KTF01');
    expect(await tryOn(shop, merge(14), [old.text])).toBe('KTF01');
  });

  test('I6 refuses writes into partitions that come later', async () => {
    await shop.query('CREATE TABLE visit_2 PARTITION OF visit FOR VALUES FROM (100) TO (200)');
    await shop.query('CREATE TABLE visit_3 (id int PRIMARY KEY, note text)');
    await shop.query('ALTER TABLE visit ATTACH PARTITION visit_3 FOR VALUES FROM (200) TO (300)');
    for (const id of [100, 200])
      expect(await tryOn(shop, 'INSERT INTO visit VALUES ($1, $2)', [id, old.text])).toBe('KTF01');
    expect(await tryOn(shop, 'INSERT INTO visit_3 VALUES (201, $1)', [old.text])).toBe('KTF01');
    expect(await listFenceTroubles(shop.control.context.database)).toEqual([]);
  });

  test('I6 refuses what another trigger puts into the row', async () => {
    await shop.query(
      `CREATE FUNCTION put_old() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.email := '${old.text}'; RETURN NEW; END $$`,
    );
    await shop.query('CREATE TRIGGER put_old BEFORE INSERT ON customer FOR EACH ROW EXECUTE FUNCTION put_old()');
    expect(await tryOn(shop, 'INSERT INTO customer (id) VALUES (15)')).toBe('KTF01');
    await shop.query('ALTER TRIGGER put_old ON customer RENAME TO zzz_put_old');
    expect(await listFenceTroubles(shop.control.context.database)).toEqual([
      { table: 'public.customer', troubles: ['trigger zzz_put_old fires after it and could change what it let pass'] },
    ]);
    await shop.query('DROP TRIGGER zzz_put_old ON customer');
  });

  test('I6 refuses a login that has no right on the schema keyturn', async () => {
    const role = await createTestRole();
    await shop.query(`GRANT INSERT ON customer TO ${role.name}`);
    const client = await connect(role.urlFor(shop.url));
    expect(await tryOn(client, 'INSERT INTO customer (id, email) VALUES (16, $1)', [old.text])).toBe('KTF01');
    expect(await tryOn(client, 'INSERT INTO customer (id, email) VALUES (16, $1)', [current])).toBe('done');
    await client.end();
    await shop.query(`REVOKE ALL ON customer FROM ${role.name}`);
    await role.drop();
  });

  test('through our own connections it is KEY_FENCED, with the id and no more', async () => {
    await expect(
      shop.control.context.database.query('INSERT INTO customer (id, email) VALUES (17, $1)', [old.text]),
    ).rejects.toMatchObject({
      code: 'KEY_FENCED',
      kind: 'refused',
      message:
        'public.customer takes no value that names key 2, which is retired or about to be; encrypt with the active key, and update or restart whatever still writes with another',
      details: { sqlstate: 'KTF01', keyId: '2' },
    });
  });

  test('lets pass what does not change a value: other columns, the same value again, values of other keys, older ones of other keyrings, NULL', async () => {
    const passing: readonly [string, unknown[]][] = [
      [`UPDATE customer SET note = 'x' WHERE id = 1`, []],
      ['UPDATE customer SET email = email, phone = phone, facts = facts WHERE id = 1', []],
      [`UPDATE customer SET facts = facts || '{"more": 1}' WHERE id = 1`, []],
      ['UPDATE visit SET id = 2 WHERE id = 1', []],
      ['UPDATE customer SET email = $1 WHERE id = 2', [current]],
      ['INSERT INTO payment VALUES (1, $1)', [payment]],
      ['INSERT INTO customer (id, email) VALUES (18, $1)', [current]],
      [
        `INSERT INTO customer (id, email, phone, facts) VALUES (19, NULL, NULL, 'null'), (20, '', '', '[]'), (21, 'kt1.', 'KT', '5')`,
        [],
      ],
      ['UPDATE customer SET email = NULL WHERE id = 1', []],
    ];
    for (const [sql, values] of passing)
      expect({ sql, end: await tryOn(shop, sql, values) }).toEqual({ sql, end: 'done' });
  });

  const meddling: readonly { how: string; sql: string; seen: RegExp }[] = [
    {
      how: 'dropped',
      sql: 'DROP TRIGGER zz_keyturn_fence_insert ON customer',
      seen: /has no trigger zz_keyturn_fence_insert/,
    },
    {
      how: 'switched off',
      sql: 'ALTER TABLE customer DISABLE TRIGGER zz_keyturn_fence_update',
      seen: /does not fire always/,
    },
    {
      how: 'switched off for replicas',
      sql: 'ALTER TABLE visit ENABLE TRIGGER zz_keyturn_fence_update',
      seen: /does not fire always/,
    },
    {
      how: 'switched off on one partition',
      sql: 'ALTER TABLE visit_1 DISABLE TRIGGER zz_keyturn_fence_insert',
      seen: /visit_1 does not fire always/,
    },
    {
      how: 'dropped and created anew',
      sql: `DO $$ DECLARE ddl text; BEGIN
        SELECT pg_get_triggerdef(oid) INTO ddl FROM pg_trigger WHERE tgrelid = 'customer'::regclass AND tgname = 'zz_keyturn_fence_insert';
        DROP TRIGGER zz_keyturn_fence_insert ON customer; EXECUTE ddl;
        ALTER TABLE customer ENABLE ALWAYS TRIGGER zz_keyturn_fence_insert; END $$`,
      seen: /was dropped and created anew/,
    },
    {
      how: 'altered',
      sql: `DO $$ DECLARE ddl text; BEGIN
        SELECT replace(pg_get_triggerdef(oid), 'WHEN (', 'WHEN (false AND ') INTO ddl FROM pg_trigger WHERE tgrelid = 'payment'::regclass AND tgname = 'zz_keyturn_fence_insert';
        EXECUTE replace(ddl, 'CREATE TRIGGER', 'CREATE OR REPLACE TRIGGER');
        ALTER TABLE payment ENABLE ALWAYS TRIGGER zz_keyturn_fence_insert; END $$`,
      seen: /was altered/,
    },
  ];

  test.each(meddling)('that was $how is seen by status and doctor, and raised again by init', async ({ sql, seen }) => {
    await shop.query(sql);
    const { context } = shop.control;
    expect(JSON.stringify((await readStatus(context)).fence_troubles)).toMatch(seen);
    expect((await examineEverything(context)).filter(({ check }) => check === 'fence')).toMatchObject([
      { level: 'warn', reason: expect.stringMatching(seen) as string, remedy: 'keyturn init' },
    ]);
    const { warnings } = await init(context);
    expect(warnings.filter(({ check }) => check === 'fence')).toEqual([]);
    expect(await listFenceTroubles(context.database)).toEqual([]);
    expect(await tryOn(shop, 'INSERT INTO customer (id, email) VALUES (22, $1)', [old.text])).toBe('KTF01');
  });

  test('a function that was replaced is seen', async () => {
    const [row] = await shop.query(`SELECT pg_get_functiondef('keyturn.refuse_envelope()'::regprocedure) AS ddl`);
    await shop.query(
      'CREATE OR REPLACE FUNCTION keyturn.refuse_envelope() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$',
    );
    expect(JSON.stringify(await listFenceTroubles(shop.control.context.database))).toMatch(
      /refuse_envelope was altered/,
    );
    await shop.query(String(row?.['ddl']));
    expect(await listFenceTroubles(shop.control.context.database)).toEqual([]);
  });

  test('after a rename of a column it still refuses, and init names the column anew', async () => {
    await shop.query('ALTER TABLE payment RENAME COLUMN iban TO account');
    expect(await tryOn(shop, 'INSERT INTO payment VALUES (10, $1)', [old.text])).toBe('KTF01');
    await shop.query('ALTER TABLE payment RENAME COLUMN account TO iban');
    expect(await listFenceTroubles(shop.control.context.database)).toEqual([]);
  });

  test('I6 rolling back to the fenced key lowers the fence first, and only its own', async () => {
    await activate(shop.control.context, 'customers', 'v1', 'back');
    expect(await tryOn(shop, 'UPDATE customer SET email = $1 WHERE id = 2', [old.text])).toBe('done');
    expect(await shop.query(`SELECT FROM pg_trigger WHERE tgname LIKE 'zz_keyturn%'`)).toEqual([]);
    await activate(shop.control.context, 'customers', 'v2', 'and forth');
  });
});

describe('retirement', () => {
  test('I6 leaves the fence up, and restore takes it down', async () => {
    const { context } = shop.control;
    await shop.query('DELETE FROM customer');
    await shop.query('DELETE FROM visit');
    expect(await retire(context, 'customers', 'v1', 'done')).toMatchObject({ key: { state: 'retired' } });
    expect(await tryOn(shop, 'INSERT INTO customer (id, email) VALUES (30, $1)', [old.text])).toBe('KTF01');
    await restore(context, 'customers', 'v1', 'not yet');
    expect(await tryOn(shop, 'INSERT INTO customer (id, email) VALUES (30, $1)', [old.text])).toBe('done');
    await expect(retire(context, 'customers', 'v1', 'done')).rejects.toMatchObject({ code: 'KEY_IN_USE' });
    expect(await shop.query('SELECT FROM keyturn.data_key WHERE fenced_at IS NOT NULL')).toEqual([]);
  });
});
