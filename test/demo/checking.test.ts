// The checks of the demo can fail: what a rotation gone wrong would leave behind is counted, not overlooked.

import { appendFileSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, expect, test } from 'vitest';
import { check } from '../../src/cli/demo/check.js';
import {
  type ColumnName,
  columnNames,
  digestOf,
  shopConfig,
  shopTables,
  tableName,
  tenantOf,
  valueOf,
} from '../../src/cli/demo/customers.js';
import { countTouchedRows } from '../../src/cli/demo/evidence.js';
import { fill } from '../../src/cli/demo/fill.js';
import type { App } from '../../src/cli/demo/app-process.js';
import { openShop, type Shop } from '../support/shop.js';

const range = { from: 1, upto: 20 };
const cells = 20 * columnNames.length;
const folder = mkdtempSync(join(tmpdir(), 'keyturn-checking-'));
const log = join(folder, 'acknowledged-writes.log');

let shop: Shop;
let app: App & { pool: pg.Pool };

beforeAll(async () => {
  shop = await openShop({ config: shopConfig, ddl: shopTables });
  const keyturn = await shop.open('demo');
  app = {
    pool: new pg.Pool({ connectionString: shop.url }),
    column: (name) => keyturn.column(tableName, name),
  };
});

afterAll(async () => {
  await app?.pool.end();
  await shop?.close();
  rmSync(folder, { recursive: true });
});

beforeEach(async () => {
  writeFileSync(log, '');
  await app.pool.query('TRUNCATE customer, demo_ack');
  await fill(app, range);
});

/** What the writer does, with the envelope of another write if that is what went wrong. */
async function write(id: number, column: ColumnName, seq: number, storedSeq = seq): Promise<void> {
  const stored = await app.column(column).encrypt({ pk: id, scope: tenantOf(id) }, valueOf(id, column, storedSeq));
  await app.pool.query('UPDATE customer SET email = $2, updated_at = clock_timestamp() WHERE id = $1', [id, stored]);
  await app.pool.query(
    'INSERT INTO demo_ack SELECT id, $2, $3, updated_at FROM customer WHERE id = $1 ON CONFLICT (customer_id, column_name) DO UPDATE SET seq = excluded.seq, written_at = excluded.written_at',
    [id, column, seq],
  );
  appendFileSync(log, `${id} ${column} ${seq} ${digestOf(valueOf(id, column, seq))}\n`);
}

test('a filled shop with acknowledged writes checks clean, and its updated_at is the application’s own', async () => {
  await write(3, 'email', 1);
  await write(3, 'email', 2);
  expect(await check(app, range, log)).toEqual({ checked: cells, mismatches: 0, examples: [], lost: 0 });
  expect(await countTouchedRows(shop.control.context)).toBe(0);
});

test('I3 an acknowledged write that was overwritten with an earlier value counts as lost', async () => {
  await write(3, 'email', 1);
  await write(3, 'email', 2, 1);
  expect(await check(app, range, log)).toMatchObject({
    checked: cells,
    mismatches: 1,
    lost: 1,
    examples: [{ id: 3, column: 'email', expectedSeq: 2, seen: 1 }],
  });
});

test('I2 a value moved to another row counts as a mismatch that does not decrypt', async () => {
  await app.pool.query('UPDATE customer SET email = (SELECT email FROM customer WHERE id = 5) WHERE id = 4');
  expect(await check(app, range, log)).toMatchObject({
    mismatches: 1,
    lost: 0,
    examples: [{ id: 4, column: 'email', expectedSeq: 0, seen: 'DECRYPT_FAILED' }],
  });
});

test('a deleted row is not looked for, and one that is there all the same counts as lost', async () => {
  appendFileSync(log, '4 deleted\n');
  expect(await check(app, range, log)).toMatchObject({ checked: cells - columnNames.length, mismatches: 0, lost: 1 });
  await app.pool.query('DELETE FROM customer WHERE id = 4');
  expect(await check(app, range, log)).toMatchObject({ checked: cells - columnNames.length, mismatches: 0, lost: 0 });
});

test('a row that is gone is a cell that was not checked', async () => {
  await app.pool.query('DELETE FROM customer WHERE id = 4');
  expect(await check(app, range, log)).toMatchObject({ checked: cells - columnNames.length, mismatches: 0 });
});

test('a row whose updated_at somebody else changed is counted, written by the application or not', async () => {
  await write(3, 'email', 1);
  await app.pool.query('UPDATE customer SET updated_at = clock_timestamp() WHERE id IN (3, 4)');
  expect(await countTouchedRows(shop.control.context)).toBe(2);
});
