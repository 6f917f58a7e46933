// An application that locks the very rows that move, in opposite order, and holds its locks: it never dies of a deadlock
// with a run, a run waits for it as long as it takes, and in the end every row is moved.
import pg from 'pg';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import type { BatchPoint } from '../../src/engine/services.js';
import { startDirectRunner } from '../support/direct-run.js';
import { findImbalances } from '../support/ledger.js';
import { customerTable, findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const rows = 240;
const deadlineMs = 30_000;

let shop: Shop;
let clients: pg.Client[];

beforeEach(async () => {
  shop = await openShop({
    ddl: [
      customerTable,
      'CREATE TABLE tally (id int PRIMARY KEY, changes int NOT NULL)',
      'INSERT INTO tally VALUES (1, 0)',
    ],
  });
  clients = [];
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: rows }, (_, at) => at + 1),
  );
  await keyturn.close();
  await shop.rotate();
});

afterEach(async () => {
  for (const client of clients) await client.end();
  await shop.close();
});

async function connect(): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: shop.url, application_name: 'application' });
  await client.connect();
  clients.push(client);
  return client;
}

const touch = 'UPDATE customer SET version = version + 1 WHERE id = $1';

async function countDeadlocks(): Promise<number> {
  const [row] = await shop.query('SELECT deadlocks::int FROM pg_stat_database WHERE datname = current_database()');
  return Number(row?.['deadlocks']);
}

async function waitUntilWaiting(name: string): Promise<void> {
  await until(
    async () =>
      (
        await shop.query(`SELECT FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'`, [
          name,
        ])
      ).length > 0,
    { what: `${name} to wait for a lock`, deadlineMs },
  );
}

async function expectAllMoved(run: number): Promise<void> {
  expect(await showRun(shop.control.context, run)).toMatchObject({
    state: 'succeeded',
    fields_failed: 0,
    fields_stale: 0,
  });
  expect(await findDifferences(shop, await shop.open())).toEqual([]);
  expect(await shop.query('SELECT FROM keyturn.quarantine')).toEqual([]);
  expect(await findImbalances(shop)).toEqual([]);
  expect(await countDeadlocks()).toBe(0);
}

test('a transaction that holds a row of a slice and then asks for an earlier one waits, and neither side dies', async () => {
  const application = await connect();
  await application.query('BEGIN');
  await application.query(touch, [40]);
  let asked: Promise<unknown> | undefined;
  const runner = await startDirectRunner(shop, {
    reachPoint: async (point: BatchPoint) => {
      // The slice has its locks, all but row 40; now the application wants one of them: the classic cycle.
      if (point !== 'batch.before_update' || asked !== undefined) return;
      asked = application.query(touch, [5]);
      await waitUntilWaiting('application');
    },
  });
  try {
    const run = await shop.order();
    await runner.step(run);
    await until(async () => (await runner.step(run), asked), { what: 'the slice to be in hand', deadlineMs });
    await asked;
    expect(await showRun(shop.control.context, run)).toMatchObject({ rows_conflicted: 1 });
    await application.query('COMMIT');
    await runner.finish(run);
    await expectAllMoved(run);
  } finally {
    await runner.close();
  }
});

test('a trigger of the table that needs a row the application holds makes the run give way at once and come back', async () => {
  await shop.query(`CREATE FUNCTION count_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE tally SET changes = changes + 1; RETURN NULL; END $$`);
  await shop.query(
    'CREATE TRIGGER counted AFTER UPDATE ON customer FOR EACH STATEMENT EXECUTE FUNCTION count_change()',
  );
  const application = await connect();
  await application.query('BEGIN');
  await application.query('UPDATE tally SET changes = changes');
  const runner = await startDirectRunner(shop);
  try {
    const run = await shop.order();
    await runner.step(run);
    const working = runner.step(run);
    // While the run waits for the tally it holds row 5: this is a cycle, and the run is the one to yield.
    await waitUntilWaiting('keyturn bare worker');
    expect((await application.query(touch, [5])).rowCount).toBe(1);
    await application.query('COMMIT');
    await working;
    await runner.finish(run);
    await expectAllMoved(run);
  } finally {
    await runner.close();
  }
});

test('a batch that was handed back for locks again and again is never a reason to pause or to quarantine', async () => {
  const runner = await startDirectRunner(shop);
  try {
    const run = await shop.order();
    await runner.step(run);
    await shop.query(
      `INSERT INTO keyturn.batch (run_id, pass, target_id, kind, after_key, upto_key, attempts, last_error)
      SELECT $1, 1, id, 'reencrypt', '{0}', '{${rows}}', 50, 'DATABASE_ERROR 55P03' FROM keyturn.target`,
      [run],
    );
    await runner.finish(run);
    expect(await shop.query(`SELECT FROM keyturn.audit WHERE action = 'run.pausing'`)).toEqual([]);
    await expectAllMoved(run);
  } finally {
    await runner.close();
  }
});

test('writers of single rows, and one that locks many in descending order, see no error while a run goes on', async () => {
  const errors: string[] = [];
  let isOver = false;
  let commits = 0;
  async function loop(next: () => readonly number[]): Promise<void> {
    const client = await connect();
    while (!isOver) {
      try {
        await client.query('BEGIN');
        for (const id of next()) await client.query(touch, [id]);
        await client.query('COMMIT');
        commits++;
      } catch (error) {
        errors.push(error instanceof pg.DatabaseError ? String(error.code) : 'no database error');
        await client.query('ROLLBACK');
      }
    }
  }
  const anyRow = (): number => 1 + Math.floor(Math.random() * rows);
  // One alone locks many rows, so that every deadlock would be the run's.
  const many = (): number[] => Array.from({ length: 8 }, anyRow).toSorted((a, b) => b - a);
  const writers = [loop(() => [anyRow()]), loop(() => [anyRow()]), loop(many)];
  const runner = await startDirectRunner(shop, {
    beforeBatch: async () => {
      const before = commits;
      await until(async () => commits > before + 3, { what: 'the application to go on', deadlineMs });
    },
  });
  try {
    const run = await shop.order();
    await runner.finish(run);
    isOver = true;
    await Promise.all(writers);
    expect(errors).toEqual([]);
    await expectAllMoved(run);
  } finally {
    isOver = true;
    await runner.close();
  }
});
