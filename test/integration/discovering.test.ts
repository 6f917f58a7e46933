// target discover on a real database: it finds what is encrypted, registered or not, and shows no value.
import { createCipheriv, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { parse } from 'yaml';
import { discoverTargets } from '../../src/control/discover.js';
import { openControl } from '../../src/app.js';
import { createTestDatabase } from '../support/database.js';
import { insertCustomers, openShop, type Shop } from '../support/shop.js';

let shop: Shop;

beforeAll(async () => {
  shop = await openShop();
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: 30 }, (_, at) => at + 1),
  );
  await shop.query('CREATE TABLE copy_of_customer (id bigint PRIMARY KEY, moved text, plain text, profile jsonb)');
  await shop.query('INSERT INTO copy_of_customer SELECT id, email, tenant_id, profile FROM customer');
  await shop.query('CREATE TABLE legacy (id uuid PRIMARY KEY, secret text, message bytea)');
  await shop.query('CREATE EXTENSION IF NOT EXISTS pgcrypto');
  for (let at = 0; at < 20; at++) {
    const iv = randomBytes(16);
    const cipher = createCipheriv('aes-256-cbc', randomBytes(32), iv);
    const secret = Buffer.concat([iv, cipher.update('s'.repeat(at + 1)), cipher.final()]).toString('base64');
    await shop.query(`INSERT INTO legacy VALUES (gen_random_uuid(), $1, pgp_sym_encrypt('m', 'p'))`, [secret]);
  }
  await shop.query('CREATE TABLE keyless (token text)');
  await shop.query('INSERT INTO keyless SELECT email FROM customer');
});

afterAll(() => shop.close());

test('it proposes registered columns as they are, strays beside them, and foreign formats as comments', async () => {
  const report = await discoverTargets(shop.control.context);
  expect(report.unread).toEqual([]);
  const told = report.discoveries.map(
    ({ table, column, path, found, certain, registered }) =>
      `${table}.${[column, ...(path ?? [])].join('.')} ${found}${certain ? '' : '?'}${registered ? ' registered' : ''}`,
  );
  expect(told.toSorted()).toEqual(
    [
      'public.copy_of_customer.moved keyturn',
      'public.copy_of_customer.profile.bank.iban keyturn',
      'public.copy_of_customer.profile.ssn keyturn',
      'public.customer.email keyturn registered',
      'public.customer.phone keyturn registered',
      'public.customer.profile.bank.iban keyturn registered',
      'public.customer.profile.ssn keyturn registered',
      'public.keyless.token keyturn',
      'public.legacy.message pgcrypto',
      'public.legacy.secret cbc?',
    ].toSorted(),
  );
  expect(parse(report.config)).toEqual({
    keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
    targets: [
      {
        table: 'public.copy_of_customer',
        keyring: 'customers',
        columns: { moved: {}, profile: { paths: { ssn: ['ssn'], bank_iban: ['bank', 'iban'] } } },
      },
      {
        table: 'public.customer',
        keyring: 'customers',
        scope: 'tenant_id',
        columns: { email: {}, phone: {}, profile: { paths: { ssn: ['ssn'], bank_iban: ['bank', 'iban'] } } },
      },
    ],
  });
  expect(report.config).toContain('needs a primary key');
  expect(report.config).toContain('AES-CBC, as typeorm-encrypted writes it');
});

test('what the entities of an application encrypt is listed with what is found, without connecting their data source', async () => {
  const { context } = shop.control;
  const entities = join(import.meta.dirname, '../support/entities/data-source.ts');
  const { config } = await discoverTargets(context, entities);
  const { targets } = parse(config) as { targets: { table: string; columns: Record<string, unknown> }[] };
  const columnsOf = (table: string): unknown => targets.find((target) => target.table === table)?.columns;
  expect(columnsOf('public.customer')).toMatchObject({ email: {}, phone: {}, nickname: {}, profile: { paths: {} } });
  expect(columnsOf('public.legacy')).toEqual({ secret: { bind: 'column' } });
  expect(config).toMatch(/secret: \{ bind: column \} {2}# a guess: AES-CBC/);
  expect(columnsOf('public.fresh')).toEqual({ note: {} });
  for (const [path, words] of [
    ['./no-such-module.js', /cannot be read: \w/],
    [join(import.meta.dirname, '../support/formats/rot47.mjs'), /exports no TypeORM DataSource/],
  ] as const)
    await expect(discoverTargets(context, path)).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringMatching(words) as unknown,
    });
});

test('I7 it shows no value, and it writes nothing', async () => {
  const [before] = await shop.query('SELECT pg_current_xact_id_if_assigned() AS id, count(*)::int FROM keyturn.audit');
  const report = JSON.stringify(await discoverTargets(shop.control.context));
  expect(report).not.toMatch(/kt1\.|@example|DE00/);
  expect(await shop.query('SELECT pg_current_xact_id_if_assigned() AS id, count(*)::int FROM keyturn.audit')).toEqual([
    before,
  ]);
});

test('it works in a database that init has not seen', async () => {
  const database = await createTestDatabase();
  await database.pool.query('CREATE TABLE empty (id int PRIMARY KEY, name text)');
  const control = openControl({ environment: { DATABASE_URL: database.url }, file: 'none' });
  expect(await discoverTargets(control.context)).toEqual({
    discoveries: [],
    unread: [],
    config: 'keyrings:\n  main: { root: env:KEYTURN_ROOT_KEY }\ntargets: []\n',
  });
  await control.close();
  await database.drop();
});
