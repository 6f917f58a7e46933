// Lazy upgrades of two keyrings in one process: one that is slowed down or switched off does not hold up the other.
import { expect, test, type TestContext } from 'vitest';
import type { Keyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { rotateKey } from '../../src/control/keys.js';
import { setLazyUpgrades } from '../../src/control/lazy-upgrades.js';
import { openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const config: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' }, patients: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [
    { table: 'customer', keyring: 'customers', columns: { name: {} } },
    { table: 'patient', keyring: 'patients', columns: { name: {} } },
  ],
};
const tables = ['customer', 'patient'] as const;
type Table = (typeof tables)[number];

/** More than the rows of one keyring that a process remembers. */
const customers = 1_100;
const patients = 3;
const deadlineMs = 20_000;

/** Both tables full of values under an older key, and an application that has read none of them yet. */
async function openStale({ onTestFinished }: TestContext): Promise<{ shop: Shop; keyturn: Keyturn }> {
  const shop = await openShop({
    config,
    ddl: tables.map((table) => `CREATE TABLE ${table} (id int PRIMARY KEY, name text)`),
  });
  onTestFinished(() => shop.close());
  const writing = await shop.open('writing');
  for (const [table, rows] of [
    ['customer', customers],
    ['patient', patients],
  ] as const) {
    const ids = Array.from({ length: rows }, (_, at) => at + 1);
    const names = await Promise.all(
      ids.map((id) => writing.column(table, 'name').encrypt({ pk: id }, `${table} ${id}`)),
    );
    await shop.query(`INSERT INTO ${table} SELECT * FROM unnest($1::int[], $2::text[])`, [ids, names]);
  }
  await writing.close();
  await shop.query('CREATE TABLE stale_patient AS SELECT * FROM patient');
  for (const keyring of ['customers', 'patients'])
    await rotateKey(shop.control.context, { keyring, ifOlderThanMs: undefined, reason: 'test' });
  return { shop, keyturn: await shop.open() };
}

function readAll(keyturn: Keyturn, table: Table, rows: number): void {
  for (let id = 1; id <= rows; id++) keyturn.column(table, 'name').upgrade({ pk: id });
}

async function countStale(shop: Shop, keyturn: Keyturn, table: Table): Promise<number> {
  let stale = 0;
  for (const { id, name } of await shop.query(`SELECT id, name FROM ${table}`))
    if ((await keyturn.column(table, 'name').decrypt({ pk: Number(id) }, String(name))).stale) stale++;
  return stale;
}

async function waitForPatients(shop: Shop, keyturn: Keyturn): Promise<void> {
  await until(async () => (await countStale(shop, keyturn, 'patient')) === 0, {
    what: 'the patients to be upgraded',
    deadlineMs,
  });
}

test('I9 a keyring with more stale reads than its rate lets through leaves room and time for those of another', async (context) => {
  const { shop, keyturn } = await openStale(context);
  await setLazyUpgrades(shop.control.context, 'customers', { rowsPerSecond: 1 }, 'busy week');
  readAll(keyturn, 'customer', customers);
  expect(keyturn.parts.upgrades.counts()).toMatchObject({ queued: 1_000, dropped: customers - 1_000 });
  readAll(keyturn, 'patient', patients);
  expect(keyturn.parts.upgrades.counts()).toMatchObject({
    queued: 1_000 + patients,
    dropped: customers - 1_000,
  });
  await waitForPatients(shop, keyturn);
  expect(keyturn.parts.upgrades.counts().queued).toBeGreaterThan(900);
});

test('I9 a keyring whose lazy upgrades are switched off while its stale reads wait does not take those of another along', async (context) => {
  const { shop, keyturn } = await openStale(context);
  await setLazyUpgrades(shop.control.context, 'customers', { isOn: false }, 'busy week');
  readAll(keyturn, 'customer', customers);
  readAll(keyturn, 'patient', patients);
  await waitForPatients(shop, keyturn);
  expect(await countStale(shop, keyturn, 'customer')).toBe(customers);
  // Its next offers are dropped as they come; the other's are not.
  readAll(keyturn, 'customer', customers);
  expect(keyturn.parts.upgrades.counts()).toMatchObject({ queued: 0, rowsUpdated: patients });
  await shop.query('UPDATE patient p SET name = s.name FROM stale_patient s WHERE s.id = p.id');
  readAll(keyturn, 'patient', patients);
  await waitForPatients(shop, keyturn);
  expect(await countStale(shop, keyturn, 'customer')).toBe(customers);
});
