// Each guard of the write path shown on its own, driven by hand so that the losing side of every race loses for certain.
// The mutation list removes the guards one by one and expects these tests to fail.
import { randomUUID } from 'node:crypto';
import pg from 'pg';
import { expect, test, type TestContext } from 'vitest';
import { openControl } from '../../src/app.js';
import { activate, stageKey } from '../../src/control/keys.js';
import { showRun } from '../../src/control/runs.js';
import { advanceRun } from '../../src/engine/advance-run.js';
import type { BatchPoint } from '../../src/engine/services.js';
import { maxFollowUps } from '../../src/rotation/pace.js';
import { expireLeases } from '../../src/store/batches.js';
import { holdLeadership } from '../../src/store/leadership.js';
import { getRun } from '../../src/store/runs.js';
import { driveByHand, openBareWorker, type BareWorker, type HandDriven } from '../support/by-hand.js';
import { openFilledShop } from '../support/filled-shop.js';
import { countRewrites, findImbalances } from '../support/ledger.js';
import type { Delivery } from '../support/redelivery.js';
import { customer, findDifferences, openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

/** Three slices: 50 rows, then up to 200, then the rest. */
const ids = Array.from({ length: 260 }, (_, at) => at + 1);

interface Prepared {
  readonly shop: Shop;
  readonly run: number;
  readonly driven: HandDriven;
  readonly job: Delivery;
}

/** A run with its one batch dispatched and nobody at work. */
async function prepare(
  { onTestFinished }: TestContext,
  rows: readonly number[] = ids,
  ddl: readonly string[] = [],
): Promise<Prepared> {
  const shop = await openFilledShop({ ids: rows, ddl });
  onTestFinished(() => shop.close());
  const run = await shop.order();
  const driven = driveByHand(shop, run);
  onTestFinished(() => driven.close());
  await driven.step();
  await driven.step();
  const [job] = await driven.dispatch();
  if (job === undefined) throw new Error('a run over a small table has one batch');
  return { shop, run, driven, job };
}

async function openWorker(
  { onTestFinished }: TestContext,
  shop: Shop,
  reachPoint?: (point: BatchPoint) => Promise<void>,
): Promise<BareWorker> {
  const worker = await openBareWorker(shop, { reachPoint });
  onTestFinished(() => worker.close());
  return worker;
}

/** Calls `act` the first time `wanted` is reached. */
function onceAt(wanted: BatchPoint, act: () => Promise<void>): (point: BatchPoint) => Promise<void> {
  let isOver = false;
  return async (point) => {
    if (point !== wanted || isOver) return;
    isOver = true;
    await act();
  };
}

async function overwriteEmail(shop: Shop, id: number, email: string): Promise<void> {
  const keyturn = await shop.open();
  const { tenant } = customer(id);
  await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [
    id,
    await keyturn.column('public.customer', 'email').encrypt({ pk: id, scope: tenant }, email),
  ]);
}

test('I3 a value that the application writes between read and write of its slice stays', async (context) => {
  const { shop, run, driven, job } = await prepare(context);
  const worker = await openWorker(
    context,
    shop,
    onceAt('batch.after_read', () => overwriteEmail(shop, 3, 'newer')),
  );
  await worker.work(job);
  await driven.finish(worker);
  expect(
    await findDifferences(shop, await shop.open(), (id) => ({
      ...customer(id),
      ...(id === 3 ? { email: 'newer' } : {}),
    })),
  ).toEqual([]);
  // The row's other cells were moved by a follow-up batch, not by a second round.
  expect(await showRun(shop.control.context, run)).toMatchObject({
    state: 'succeeded',
    rows_conflicted: 1,
    fields_stale: 0,
    round: 0,
  });
  expect(await findImbalances(shop)).toEqual([]);
});

test('I3 a row that the application holds locked is visited again in a follow-up batch', async (context) => {
  const { shop, run, driven, job } = await prepare(context);
  let release: () => void = () => undefined;
  const untilReleased = new Promise<void>((resolve) => {
    release = resolve;
  });
  let isLocked: () => void = () => undefined;
  const untilLocked = new Promise<void>((resolve) => {
    isLocked = resolve;
  });
  const application = driven.database.transaction(async (client) => {
    await client.query('SELECT 1 FROM customer WHERE id = 3 FOR UPDATE');
    isLocked();
    await untilReleased;
  });
  await untilLocked;
  const worker = await openWorker(context, shop);
  await worker.work(job);
  expect(await showRun(shop.control.context, run)).toMatchObject({ rows_conflicted: 1, rows_updated: ids.length - 1 });
  release();
  await application;
  await driven.finish(worker);
  expect(await showRun(shop.control.context, run)).toMatchObject({
    state: 'succeeded',
    rows_updated: ids.length,
    round: 0,
  });
  expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
});

test('a row that the application keeps locked is waited for without limit, one that it changes at every visit is quarantined', async (context) => {
  const { shop, run, driven, job } = await prepare(context, ids.slice(0, 8));
  const [before] = await shop.query('SELECT email FROM customer WHERE id = 5');
  const changeRow5 = (email: unknown): Promise<unknown> =>
    shop.query('UPDATE customer SET email = $1 WHERE id = 5', [email]);
  const worker = await openWorker(context, shop, async (point) => {
    if (point === 'batch.after_read') await changeRow5(null);
  });
  const application = new pg.Client({ connectionString: shop.url });
  await application.connect();
  await application.query('BEGIN');
  await application.query('SELECT FROM customer WHERE id = 3 FOR UPDATE');
  let jobs: readonly Delivery[] = [job];
  for (let visits = 0; visits < maxFollowUps + 5; visits++) {
    await changeRow5(before?.['email']);
    for (const each of jobs) await worker.work(each);
    // The pause before a follow-up is for the application; here there is none to wait for.
    await shop.query(`UPDATE keyturn.batch SET not_before = '-infinity' WHERE state = 'pending'`);
    jobs = await driven.dispatch();
  }
  expect(await shop.query('SELECT DISTINCT row_key, cause FROM keyturn.quarantine')).toEqual([
    { row_key: ['5'], cause: 'CONFLICTED_TOO_OFTEN' },
  ]);
  expect(await driven.step()).toMatchObject({
    state: 'running',
    heldBackBy: 'waiting for the application, which keeps the last row locked',
  });
  await application.end();
  for (const each of jobs) await worker.work(each);
  await changeRow5(before?.['email']);
  await driven.finish(await openWorker(context, shop));
  expect(await showRun(shop.control.context, run)).toMatchObject({
    state: 'completed_with_failures',
    round: 0,
    rows_updated: 7,
    rows_failed: 1,
  });
  expect(await findDifferences(shop, await shop.open())).toEqual([]);
  expect(await findImbalances(shop)).toEqual([]);
});

test('I4 a slice whose lease another worker holds by now is rolled back', async (context) => {
  const { shop, run, driven, job } = await prepare(context);
  const heir = await openWorker(
    context,
    shop,
    onceAt('batch.after_read', () => new Promise(() => undefined)),
  );
  const late = await openWorker(
    context,
    shop,
    onceAt('batch.before_update', async () => {
      await shop.query('UPDATE keyturn.batch SET lease_until = clock_timestamp()');
      await expireLeases(driven.database);
      const [again] = await driven.dispatch();
      if (again === undefined) throw new Error('an expired batch is due at once');
      // Takes the batch, and its first slice, and keeps it.
      void heir.work(again);
      await until(async () => (await shop.query(`SELECT 1 FROM keyturn.batch WHERE state = 'running'`)).length === 1, {
        what: 'the heir to claim the batch',
        deadlineMs: 10_000,
      });
    }),
  );
  expect(await late.work(job)).toMatchObject({ end: 'lost' });
  expect(await countRewrites(shop)).toEqual({ rows: 0, most: 0 });
  expect(await showRun(shop.control.context, run)).toMatchObject({ rows_examined: 0, batches: { running: 1 } });
  expect(await findImbalances(shop)).toEqual([]);
});

test('I4 a batch that is handed back goes on behind its last slice', async (context) => {
  const { shop, run, driven, job } = await prepare(context);
  const stopping = new AbortController();
  const first = await openWorker(
    context,
    shop,
    onceAt('batch.after_commit', async () => stopping.abort()),
  );
  expect(await first.work(job, stopping.signal)).toMatchObject({ end: 'stopped' });
  expect(await countRewrites(shop)).toEqual({ rows: 50, most: 1 });
  await driven.finish(await openWorker(context, shop));
  expect(await showRun(shop.control.context, run)).toMatchObject({
    state: 'succeeded',
    rows_examined: ids.length,
    rows_updated: ids.length,
  });
  expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
  expect(await findImbalances(shop)).toEqual([]);
});

test('I4 when a commit fails neither rows nor ledger have moved', async (context) => {
  const refuseSeven = [
    `CREATE FUNCTION refuse_seven() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not seven'; END $$`,
    'CREATE CONSTRAINT TRIGGER refuse_seven AFTER UPDATE ON customer DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.id = 7) EXECUTE FUNCTION refuse_seven()',
  ];
  const { shop, run, driven, job } = await prepare(context, ids.slice(0, 40), refuseSeven);
  const worker = await openWorker(context, shop);
  await worker.work(job);
  await driven.finish(worker);
  expect(await showRun(shop.control.context, run)).toMatchObject({
    state: 'completed_with_failures',
    rows_examined: 40,
    rows_updated: 39,
    rows_failed: 1,
    failures: expect.arrayContaining([
      expect.objectContaining({ field: 'email', cause: 'REFUSED_P0001', cells: 1 }),
    ]) as unknown,
  });
  expect(await countRewrites(shop)).toEqual({ rows: 39, most: 1 });
  expect(await findDifferences(shop, await shop.open())).toEqual([]);
  expect(await findImbalances(shop)).toEqual([]);
});

test('I4 each dispatch has a generation of its own, and the job of an earlier one is dropped', async (context) => {
  const { shop, driven, job } = await prepare(context, [1]);
  await shop.query(`UPDATE keyturn.batch SET state = 'pending'`);
  const [again] = await driven.dispatch();
  expect(again).toEqual({ batchId: job.batchId, generation: job.generation + 1 });
  const worker = await openWorker(context, shop);
  expect(await worker.work(job)).toEqual({ end: 'dropped' });
  expect(await worker.work({ ...job, generation: job.generation + 1 })).toMatchObject({ end: 'done' });
});

test('a supervisor that has been replaced changes nothing', async (context) => {
  const { shop, run, driven } = await prepare(context, [1]);
  const deposed = await holdLeadership(driven.database, randomUUID());
  expect(deposed).toBeUndefined();
  await shop.query('UPDATE keyturn.leadership SET expires_at = clock_timestamp()');
  const before = await holdLeadership(driven.database, randomUUID());
  await shop.query('UPDATE keyturn.leadership SET expires_at = clock_timestamp()');
  expect(await holdLeadership(driven.database, randomUUID())).toBeDefined();
  if (before === undefined) throw new Error('an expired leadership is free');
  await shop.query(`UPDATE keyturn.batch SET state = 'done'`);
  const state = await getRun(driven.database, run);
  await advanceRun({ database: driven.database, leadership: before }, state);
  expect(await getRun(driven.database, run)).toMatchObject({ state: state.state, pass: state.pass });
});

/** A member that nothing will ever tell of a new key, unless the test does. */
async function insertSleeper(shop: Shop, heldKeyIds: readonly number[], writeKeyId: number): Promise<void> {
  await shop.query(
    `WITH sleeper AS (INSERT INTO keyturn.member (id, kind, name, host, pid, version, formats, algorithms)
       VALUES (gen_random_uuid(), 'application', 'sleeper', 'elsewhere', 1, '1', '{keyturn}', '{xaes-256-gcm,aes-256-gcm}') RETURNING id)
     INSERT INTO keyturn.member_keyring SELECT s.id, k.id, k.generation, $2, $1 FROM sleeper s, keyturn.keyring k`,
    [heldKeyIds, writeKeyId],
  );
}

test('I5 a key is not activated before every live member holds it', async (context) => {
  const shop = await openShop();
  context.onTestFinished(() => shop.close());
  await insertSleeper(shop, [1], 1);
  let says: (words: string) => void = () => undefined;
  const said = new Promise<string>((resolve) => {
    says = resolve;
  });
  const control = openControl({
    environment: shop.environment(),
    file: shopConfig,
    onProgress: (words) => says(words),
  });
  context.onTestFinished(() => control.close());
  const { key } = await stageKey(control.context, undefined, 'test');
  const activated = activate(control.context, undefined, String(key.id), 'test');
  expect(await Promise.race([said, activated.then(() => 'activated')])).toMatch(
    /waiting until every live member can decrypt with .*sleeper/,
  );
  expect(await shop.query('SELECT state FROM keyturn.data_key WHERE purpose = 1 ORDER BY id')).toEqual([
    { state: 'active' },
    { state: 'staged' },
  ]);
  await shop.query('UPDATE keyturn.member_keyring SET held_key_ids = $1, write_key_id = $2', [[1, key.id], key.id]);
  await activated;
  expect(await shop.query('SELECT state FROM keyturn.data_key WHERE purpose = 1 ORDER BY id')).toEqual([
    { state: 'decrypt_only' },
    { state: 'active' },
    { state: 'staged' },
  ]);
});

test('I5 a run moves nothing while a live member still writes with another key', async (context) => {
  const shop = await openShop();
  context.onTestFinished(() => shop.close());
  const keyId = await shop.rotate();
  await insertSleeper(shop, [1, keyId], 1);
  const driven = driveByHand(shop, await shop.order());
  context.onTestFinished(() => driven.close());
  await driven.step();
  expect(await driven.step()).toMatchObject({
    state: 'pending',
    heldBackBy: expect.stringContaining('sleeper') as unknown,
  });
  await shop.query('UPDATE keyturn.member_keyring SET write_key_id = $1', [keyId]);
  expect(await driven.step()).toMatchObject({ state: 'running' });
});
