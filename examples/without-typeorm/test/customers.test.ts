// The same promises for every library. Customers stay in the table, so a second run after a rotation meets stale values.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { drizzle } from 'drizzle-orm/node-postgres';
import { openKeyturn, type Keyturn } from 'keyturn';
import { Kysely, PostgresDialect } from 'kysely';
import pg from 'pg';
import type { Customers } from '../src/customers.js';
import { createDrizzleCustomers } from '../src/drizzle.js';
import { createKyselyCustomers } from '../src/kysely.js';
import { createPgCustomers } from '../src/pg.js';

const libraries: Readonly<Record<string, (pool: pg.Pool, keyturn: Keyturn) => Customers>> = {
  pg: createPgCustomers,
  kysely: (pool, keyturn) => createKyselyCustomers(new Kysely({ dialect: new PostgresDialect({ pool }) }), keyturn),
  drizzle: (pool, keyturn) => createDrizzleCustomers(drizzle(pool), keyturn),
};

let keyturn: Keyturn;
let pool: pg.Pool;

before(async () => {
  keyturn = await openKeyturn({ name: 'shop' });
  pool = new pg.Pool({ connectionString: process.env['DATABASE_URL'] });
});

after(async () => {
  await pool.end();
  // Writes the lazy upgrades that wait, and leaves the membership.
  await keyturn.close();
});

async function storedEmail(id: string): Promise<string> {
  const { rows } = await pool.query<{ email: string }>('SELECT email FROM customer WHERE id = $1', [id]);
  return rows[0]?.email ?? '';
}

for (const [library, createCustomers] of Object.entries(libraries)) {
  describe(library, () => {
    const ada = { tenant: library, nickname: 'ada', email: 'ada@example.com' };
    let customers: Customers;

    before(() => {
      customers = createCustomers(pool, keyturn);
    });

    test('what is created is found again, and the database holds an envelope', async () => {
      const id = await customers.create(ada);
      assert.deepEqual(await customers.find(id), { ...ada, id });
      assert.match(await storedEmail(id), /^kt1\./);
    });

    test('an unchanged e-mail keeps its envelope, a changed one gets another', async () => {
      const id = await customers.create(ada);
      const envelope = await storedEmail(id);
      await customers.update(id, { nickname: 'countess', email: ada.email });
      assert.equal(await storedEmail(id), envelope);
      await customers.update(id, { nickname: 'countess', email: 'countess@example.com' });
      assert.notEqual(await storedEmail(id), envelope);
      assert.deepEqual(await customers.find(id), { ...ada, id, nickname: 'countess', email: 'countess@example.com' });
    });

    test('customers of earlier runs are found, whatever key their e-mail is under', async () => {
      const { rows } = await pool.query<{ id: string }>('SELECT id FROM customer WHERE tenant = $1', [library]);
      assert.ok(rows.length > 0);
      for (const { id } of rows) assert.match((await customers.find(id))?.email ?? '', /@example\.com$/);
    });
  });
}
