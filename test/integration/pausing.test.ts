// A run paused in each of its phases, driven by hand so that no phase is missed, and on both queue backends with the
// supervisor dead. Every verb here has the database alone: no root key, no queue.
import { describe, expect, test, type TestContext } from 'vitest';
import { openControl } from '../../src/app.js';
import { noConfigFile, type OpenControl } from '../../src/control/context.js';
import { orderRun, showRun, type RunReport } from '../../src/control/runs.js';
import { cancelRun, limitRun, pauseAllRuns, pauseRun, resumeRun, retryRun } from '../../src/control/steer-runs.js';
import { isFinished } from '../../src/rotation/run.js';
import { availableBackends } from '../support/backends.js';
import { driveByHand, openBareWorker, type HandDriven } from '../support/by-hand.js';
import { openFilledShop } from '../support/filled-shop.js';
import { startHeldWorker } from '../support/held-worker.js';
import { countRewrites, findImbalances } from '../support/ledger.js';
import type { Backend, Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const rows = 120;

interface Rotated {
  readonly shop: Shop;
  /** A context that knows DATABASE_URL and nothing else. */
  readonly bare: OpenControl['context'];
}

async function openRotated({ onTestFinished }: TestContext, backend: Backend = 'postgres'): Promise<Rotated> {
  const shop = await openFilledShop({ backend, ids: Array.from({ length: rows }, (_, at) => at + 1) });
  const control = openControl({ environment: { DATABASE_URL: shop.url }, file: noConfigFile });
  onTestFinished(async () => {
    await control.close();
    await shop.close();
  });
  return { shop, bare: control.context };
}

/** What a run is doing, in a word that a person would use. */
function phaseOf(report: RunReport): string {
  const work = report.batches.pending + report.batches.dispatched > 0 ? ' with batches waiting' : '';
  return `${report.state}${report.round > 0 ? `, round ${report.round + 1}` : ''}${work}`;
}

test('a run pauses in every phase, visibly, keeps its place, and moves no row twice', async (context) => {
  const { shop, bare } = await openRotated(context);
  const stale = await shop.query('SELECT email FROM customer WHERE id = 3');
  const run = await shop.order();
  const driven = driveByHand(shop, run);
  context.onTestFinished(() => driven.close());
  const worker = await openBareWorker(shop);
  context.onTestFinished(() => worker.close());

  const phases = new Set<string>();
  let hasConflicted = false;
  let hasGoneStale = false;
  for (;;) {
    const before = await showRun(bare, run);
    if (isFinished(before.state)) break;
    phases.add(phaseOf(before));
    expect(await pauseRun(bare, run, 'test')).toMatchObject({ state: 'pausing', held_back_by: 'test' });
    // Nobody has settled it: it is taken back, goes on as if nothing had been, and is asked for again.
    expect(await resumeRun(bare, run, 'test')).toMatchObject({ state: before.state });
    expect(await resumeRun(bare, run, 'again')).toMatchObject({ state: before.state });
    expect(await pauseRun(bare, run, 'test')).toMatchObject({ state: 'pausing' });
    expect(await pauseRun(bare, run, 'again')).toMatchObject({ state: 'pausing', held_back_by: 'test' });
    expect(await driven.dispatch()).toEqual([]);
    expect(await driven.step()).toMatchObject({ state: 'paused', resumeState: before.state });
    expect(await driven.step()).toMatchObject({ state: 'paused' });
    expect(await pauseRun(bare, run, 'again')).toMatchObject({ state: 'paused', held_back_by: 'test' });
    expect(await driven.dispatch()).toEqual([]);
    expect(await resumeRun(bare, run, 'test')).toMatchObject({ state: before.state, round: before.round });

    const { state, round } = await driven.step();
    if (state === 'verifying' && !hasGoneStale) {
      // As an application that was restored from before would: an envelope of the older key.
      await shop.query('UPDATE customer SET email = $1 WHERE id = 3', [stale[0]?.['email']]);
      hasGoneStale = true;
    }
    // A phase that has just begun is paused before its first batch, too.
    const jobs = state === before.state ? await driven.dispatch() : [];
    if (state === 'running' && round === 0 && jobs.length > 0 && !hasConflicted) {
      hasConflicted = true;
      await workWhileLocked(driven, () => worker.work(jobs[0] ?? { batchId: 0, generation: 0 }));
    } else {
      for (const job of jobs) await worker.work(job);
    }
  }
  expect(await showRun(bare, run)).toMatchObject({ state: 'succeeded', rows_conflicted: 1, fields_stale: 0, round: 1 });
  expect([...phases]).toEqual(
    expect.arrayContaining([
      'pending',
      'running',
      // The follow-up of the row that the application held.
      'running with batches waiting',
      'verifying',
      'running, round 2 with batches waiting',
      'verifying, round 2',
    ]),
  );
  expect(await findImbalances(shop)).toEqual([]);
  const often = await shop.query(
    'SELECT id::int FROM rewritten WHERE by_keyturn GROUP BY id HAVING count(*) > 1 ORDER BY id',
  );
  expect(often).toEqual([{ id: 3 }]);
});

/** The application holds one row locked meanwhile. */
async function workWhileLocked(driven: HandDriven, work: () => Promise<unknown>): Promise<void> {
  await driven.database.transaction(async (client) => {
    await client.query('SELECT 1 FROM customer WHERE id = 7 FOR UPDATE');
    await work();
  });
}

test('a run with a batch in a worker’s hands is pausing until the slice is written, and paused afterwards', async (context) => {
  const { shop, bare } = await openRotated(context);
  const run = await shop.order();
  const driven = driveByHand(shop, run);
  context.onTestFinished(() => driven.close());
  await driven.step();
  await driven.step();
  const [job] = await driven.dispatch();
  if (job === undefined) throw new Error('a run over a small table has one batch');
  const worker = await openBareWorker(shop, {
    reachPoint: async (point) => {
      if (point !== 'batch.before_update') return;
      await pauseRun(bare, run, 'test');
      // The supervisor comes by while the batch is in hand.
      expect(await driven.step()).toMatchObject({ state: 'pausing' });
    },
  });
  context.onTestFinished(() => worker.close());
  expect(await worker.work(job)).toMatchObject({ end: 'stopped' });
  expect(await showRun(bare, run)).toMatchObject({ state: 'pausing', rows_updated: 50 });
  expect(await driven.step()).toMatchObject({ state: 'paused' });
  expect(await countRewrites(shop)).toEqual({ rows: 50, most: 1 });
});

describe.each(availableBackends())('with the supervisor dead, over the %s queue', (backend) => {
  test(`workers stop within a slice, and the next supervisor settles the request [${backend}]`, async (context) => {
    const { shop, bare } = await openRotated(context, backend);
    const run = await shop.order();
    const supervisor = await shop.startSupervisor();
    const letGo = await startHeldWorker(shop);
    await supervisor.stop();
    expect(await pauseAllRuns(bare, 'test')).toMatchObject({ runs: [{ run_id: run, state: 'pausing' }] });
    expect(await pauseAllRuns(bare, 'test')).toMatchObject({ runs: [], left_alone: [{ run_id: run }] });
    letGo();
    const handedBack = await until(
      async () => {
        const report = await showRun(bare, run);
        return report.batches.running === 0 && report;
      },
      { what: 'the worker to hand its batch back', deadlineMs: 20_000 },
    );
    expect(handedBack).toMatchObject({ state: 'pausing', rows_updated: 50, batches: { pending: 1 } });
    await shop.startSupervisor();
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'paused', rows_updated: 50 });
    await resumeRun(bare, run, undefined);
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'succeeded', rows_updated: rows });
    expect(await countRewrites(shop)).toEqual({ rows, most: 1 });
    expect(await findImbalances(shop)).toEqual([]);
  });
});

test('a pause that is asked for while the supervisor moves the run is not lost', async (context) => {
  const { shop, bare } = await openRotated(context);
  const run = await shop.order();
  const paused = await bare.database.transaction(async (client) => {
    await client.query(`UPDATE keyturn.run SET state = 'running', pass = 1 WHERE id = $1`, [run]);
    const asked = pauseRun(bare, run, 'test');
    await until(
      async () =>
        (
          await shop.query(
            `SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()`,
          )
        ).length === 1,
      { what: 'the request to wait for the move', deadlineMs: 10_000 },
    );
    return { asked };
  });
  expect(await paused.asked).toMatchObject({ state: 'pausing' });
  expect(await shop.query('SELECT resume_state FROM keyturn.run')).toEqual([{ resume_state: 'running' }]);
});

test('pausing all pauses each run that can, in one go, and leaves the others and later ones alone', async (context) => {
  const { shop, bare } = await openRotated(context);
  const [waiting, moving, stopped, ending] = [
    await shop.order({ scope: 'tenant-0' }),
    await shop.order({ scope: 'tenant-1' }),
    await shop.order({ scope: 'tenant-2' }),
    await shop.order({ scope: 'tenant-0', kind: 'dry_run' }),
  ];
  await shop.query(`UPDATE keyturn.run SET state = 'running', pass = 1 WHERE id = $1`, [moving]);
  await shop.query(`UPDATE keyturn.run SET state = 'paused', resume_state = 'running' WHERE id = $1`, [stopped]);
  await cancelRun(bare, ending, 'test');
  const { runs, left_alone: others } = await pauseAllRuns(bare, undefined);
  expect(runs.map((report) => [report.run_id, report.state, report.held_back_by])).toEqual([
    [waiting, 'pausing', 'all runs paused by an operator'],
    [moving, 'pausing', 'all runs paused by an operator'],
  ]);
  expect(others.map((report) => [report.run_id, report.state])).toEqual([
    [stopped, 'paused'],
    [ending, 'cancelling'],
  ]);
  expect(await showRun(bare, stopped)).toMatchObject({ state: 'paused' });
  expect(await showRun(bare, ending)).toMatchObject({ state: 'cancelling' });
  expect(await showRun(bare, await shop.order({ scope: 'tenant-1' }))).toMatchObject({ state: 'pending' });
});

test('a finished run is retried with its scope and limits, once at a time; one that succeeded, or is not over, is not', async (context) => {
  const { shop, bare } = await openRotated(context);
  const steering = { rowsPerSecond: 50, hours: '22:00-06:00', zone: 'Europe/Berlin', priority: 4 };
  const run = (
    await orderRun(bare, {
      kind: 'reencrypt',
      keyring: undefined,
      target: 'customer',
      scope: 'tenant-1',
      deep: false,
      steering,
      reason: undefined,
    })
  ).id;
  await expect(retryRun(bare, run, { reason: undefined })).rejects.toMatchObject({ code: 'RUN_STATE_REFUSED' });
  await limitRun(bare, run, { hours: null, reason: 'test' });
  await cancelRun(bare, run, 'test');
  const driven = driveByHand(shop, run);
  expect(await driven.step()).toMatchObject({ state: 'cancelled' });
  await driven.close();
  await expect(limitRun(bare, run, { workers: 1, reason: 'test' })).rejects.toThrow(/cancelled.*nothing to limit/);

  const again = await retryRun(bare, run, { reason: undefined });
  expect(again).toMatchObject({
    state: 'pending',
    retries: run,
    scope: 'tenant-1',
    targets: ['public.customer'],
    limits: { rows_per_second: 50, workers: null, hours: null, zone: null },
    priority: 4,
    reason: `retries run ${run}`,
  });
  await expect(retryRun(bare, run, { reason: undefined })).rejects.toThrow(
    new RegExp(`run ${run} needs no retry: run ${again.run_id} covers the same`),
  );
  await shop.query(`UPDATE keyturn.run SET state = 'succeeded' WHERE id = $1`, [again.run_id]);
  await expect(retryRun(bare, again.run_id, { reason: undefined })).rejects.toThrow(/succeeded and left nothing/);
});
