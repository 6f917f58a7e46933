// Limits changed while a run is on: hours that close and open, fewer workers; each within a slice, none of them a pause.
import { describe, expect, test, type TestContext } from 'vitest';
import { showRun, type RunReport } from '../../src/control/runs.js';
import { limitRun } from '../../src/control/steer-runs.js';
import { insertBatch } from '../../src/store/batches.js';
import { availableBackends } from '../support/backends.js';
import { driveByHand, openBareWorker } from '../support/by-hand.js';
import { openFilledShop } from '../support/filled-shop.js';
import { countRewrites, findImbalances } from '../support/ledger.js';
import type { Backend, Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const rows = 120;

async function openRotated({ onTestFinished }: TestContext, backend: Backend = 'postgres'): Promise<Shop> {
  const shop = await openFilledShop({ backend, ids: Array.from({ length: rows }, (_, at) => at + 1) });
  onTestFinished(() => shop.close());
  return shop;
}

/** Hours that begin and end so many hours from now, by the database's clock, in UTC. */
async function hoursFromNow(shop: Shop, from: number, to: number): Promise<string> {
  const [row] = await shop.query(
    `SELECT string_agg(to_char((clock_timestamp() AT TIME ZONE 'UTC') + make_interval(hours => h), 'HH24:MI'), '-' ORDER BY h) AS hours
     FROM unnest($1::int[]) h`,
    [[from, to]],
  );
  return String(row?.['hours']);
}

async function waitUntilHeldBack(shop: Shop, run: number): Promise<RunReport> {
  return until(
    async () => {
      const report = await showRun(shop.control.context, run);
      return report.held_back_by?.startsWith('outside its hours') === true && report;
    },
    { what: 'the run to be held back by its hours', deadlineMs: 20_000 },
  );
}

describe.each(availableBackends())('hours over the %s queue', (backend) => {
  test(`a run whose hours end settles within a slice, says until when it waits, and goes on by itself when they begin [${backend}]`, async (context) => {
    const shop = await openRotated(context, backend);
    const { context: control } = shop.control;
    const closed = await hoursFromNow(shop, 2, 3);
    const open = await hoursFromNow(shop, -1, 2);
    let hasClosed = false;
    const run = await shop.order();
    await shop.startSupervisor();
    await shop.startWorker(async (point) => {
      if (point !== 'batch.before_commit' || hasClosed) return;
      hasClosed = true;
      await limitRun(control, run, { hours: closed, zone: 'UTC', reason: 'office hours' });
    });
    expect(await waitUntilHeldBack(shop, run)).toMatchObject({
      state: 'running',
      held_back_by: expect.stringMatching(
        new RegExp(`^outside its hours ${closed} UTC; goes on at \\d{4}-\\d\\d-\\d\\dT${closed.slice(0, 5)}:00Z$`),
      ) as unknown,
      limits: { hours: closed, zone: 'UTC' },
      rows_updated: 50,
      batches: { pending: 1, dispatched: 0, running: 0 },
    });
    await limitRun(control, run, { hours: open, reason: 'night shift' });
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'succeeded', held_back_by: null, rows_updated: rows });
    expect(await countRewrites(shop)).toEqual({ rows, most: 1 });
    expect(await findImbalances(shop)).toEqual([]);
    const moves = await shop.query(`SELECT action, reason FROM keyturn.audit WHERE action LIKE 'run.%' ORDER BY id`);
    // Waiting for its hours is no move of the run; each change of limits is on record.
    expect(moves).toEqual(
      ['run.create', 'run.running', 'run.limit', 'run.limit', 'run.verifying', 'run.succeeded'].map((action, at) => ({
        action,
        reason: { 0: 'test', 2: 'office hours', 3: 'night shift' }[at] ?? null,
      })),
    );
  });

  test(`a run ordered outside its hours does not begin, and a batch that was sent before they ended is handed back untouched [${backend}]`, async (context) => {
    const shop = await openRotated(context, backend);
    const { context: control } = shop.control;
    const hours = await hoursFromNow(shop, 2, 3);
    const run = await shop.order({ steering: { hours, zone: 'UTC' } });
    const supervisor = await shop.startSupervisor();
    expect(await waitUntilHeldBack(shop, run)).toMatchObject({ state: 'pending', batches: { pending: 0 } });
    await limitRun(control, run, { hours: null, reason: 'test' });
    await until(async () => (await showRun(control, run)).batches.dispatched === 1, {
      what: 'the batch to be sent',
      deadlineMs: 20_000,
    });
    await supervisor.stop();
    await limitRun(control, run, { hours, zone: 'UTC', reason: 'test' });
    const [batch] = await shop.query('SELECT id::int, generation FROM keyturn.batch');
    const worker = await openBareWorker(shop);
    context.onTestFinished(() => worker.close());
    expect(
      await worker.work({ batchId: Number(batch?.['id']), generation: Number(batch?.['generation']) }),
    ).toMatchObject({ end: 'stopped' });
    expect(await countRewrites(shop)).toEqual({ rows: 0, most: 0 });
  });
});

test('a limit on rows per second comes and goes in the middle of a batch', async (context) => {
  const shop = await openRotated(context);
  const { context: control } = shop.control;
  const run = await shop.order();
  const driven = driveByHand(shop, run);
  context.onTestFinished(() => driven.close());
  await driven.step();
  await driven.step();
  const [job] = await driven.dispatch();
  if (job === undefined) throw new Error('a run over a small table has one batch');
  let slices = 0;
  const worker = await openBareWorker(shop, {
    reachPoint: async (point) => {
      if (point === 'batch.before_commit' && ++slices === 1)
        await limitRun(control, run, { rowsPerSecond: 20, reason: 'slow' });
      if (point === 'batch.before_commit' && slices === 3)
        await limitRun(control, run, { rowsPerSecond: null, reason: 'fast' });
    },
  });
  context.onTestFinished(() => worker.close());
  await worker.work(job);
  const ledger = await shop.query('SELECT rows_examined::int AS rows FROM keyturn.ledger ORDER BY slice');
  expect(ledger.map((entry) => entry['rows']).slice(0, 3)).toEqual([50, 20, 20]);
  expect(await showRun(control, run)).toMatchObject({ rows_updated: rows, batches: { done: 1 } });
});

test('rows per second hold for the run, whatever the number of its workers', async (context) => {
  const shop = await openRotated(context);
  const rowsPerSecond = 60;
  const runId = await shop.order({ steering: { rowsPerSecond } });
  const driven = driveByHand(shop, runId);
  context.onTestFinished(() => driven.close());
  await driven.step();
  const [target] = await shop.query('UPDATE keyturn.run_target SET is_planned = true RETURNING target_id AS id');
  const shared = { runId, pass: 1, targetId: String(target?.['id']), kind: 'reencrypt' } as const;
  await insertBatch(driven.database, { ...shared, upto: ['60'] });
  await insertBatch(driven.database, { ...shared, after: ['60'], upto: ['120'] });
  const jobs = await driven.dispatch();
  const workers = await Promise.all(jobs.map(() => openBareWorker(shop)));
  context.onTestFinished(async () => {
    await Promise.all(workers.map((worker) => worker.close()));
  });
  const startedAtMs = performance.now();
  const worked = await Promise.all(jobs.map(async (job, at) => workers[at]?.work(job)));
  expect(worked).toMatchObject([{ end: 'done' }, { end: 'done' }]);
  expect(performance.now() - startedAtMs).toBeGreaterThanOrEqual((rows / rowsPerSecond) * 999);
  expect(await showRun(shop.control.context, runId)).toMatchObject({ rows_updated: rows, batches: { done: 2 } });
});

test('limits that make no sense are refused in words, and change nothing', async (context) => {
  const shop = await openRotated(context);
  const { context: control } = shop.control;
  const run = await shop.order();
  const before = await shop.query('SELECT * FROM keyturn.run');
  const attempts = [
    [{ hours: '25:00-06:00', zone: 'UTC' }, /hours such as 22:00-06:00/],
    [{ hours: '22:00-06:00' }, /which time zone/],
    [{ rowsPerSecond: 0 }, /rows per second/],
    [{ priority: 10 }, /a priority, a whole number from 1 to 9/],
    [{ priority: 3, isEmergency: true }, /a priority says nothing/],
  ] as const;
  for (const [change, why] of attempts) {
    const refused = limitRun(control, run, { ...change, reason: 'test' });
    await expect(refused).rejects.toThrow(why);
    await expect(refused).rejects.toMatchObject({ code: 'LIMIT_INVALID' });
  }
  await expect(shop.order({ steering: { workers: 0 } })).rejects.toMatchObject({ code: 'LIMIT_INVALID' });
  expect(await shop.query('SELECT * FROM keyturn.run')).toEqual(before);
});
