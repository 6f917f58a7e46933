// Workers that hear from the ledger how to rest: the fleet's pace, the share of a run's rows per second, and when to hand
// a batch back. Driven by hand, so that the pace changes exactly between two slices. Times are compared from below only:
// a slow machine rests longer, never shorter.
import { expect, test, type TestContext } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import type { BatchPoint } from '../../src/engine/services.js';
import { readPace, writePace, type PaceRow } from '../../src/store/pace.js';
import { availableBackends } from '../support/backends.js';
import { driveByHand, openBareWorker, type BareWorker, type HandDriven } from '../support/by-hand.js';
import { openFilledShop } from '../support/filled-shop.js';
import { countRewrites, findImbalances } from '../support/ledger.js';
import type { Delivery } from '../support/redelivery.js';
import { openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

/** Three slices: 50 rows, then up to 200, then the rest. */
const rows = 260;
const pace: PaceRow = { targetWorkers: undefined, nice: 0, reason: undefined, signals: {} };

interface Prepared {
  readonly shop: Shop;
  readonly run: number;
  readonly driven: HandDriven;
  readonly job: Delivery;
}

/** A run with its one batch dispatched and nobody at work. */
async function prepare({ onTestFinished }: TestContext): Promise<Prepared> {
  const shop = await openFilledShop({ ids: Array.from({ length: rows }, (_, at) => at + 1) });
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
  at?: { readonly point: BatchPoint; readonly act: () => Promise<void> },
): Promise<BareWorker> {
  const worker = await openBareWorker(shop, {
    reachPoint: async (point) => {
      if (point === at?.point) await at.act();
    },
  });
  onTestFinished(() => worker.close());
  return worker;
}

async function timed(work: Promise<unknown>): Promise<number> {
  const startedAtMs = performance.now();
  await work;
  return performance.now() - startedAtMs;
}

/** Time that the slices' write transactions took, as the ledger has it. */
async function writeMs(shop: Shop): Promise<number> {
  const [sum] = await shop.query('SELECT sum(write_ms)::float8 AS ms FROM keyturn.ledger');
  return Number(sum?.['ms']);
}

test('the pace is one row that the next one replaces, and tells its age', async ({ onTestFinished }) => {
  const shop = await openShop();
  onTestFinished(() => shop.close());
  const { database } = shop.control.context;
  expect(await readPace(database)).toBeUndefined();
  const measured = { targetWorkers: 3, nice: 1.5, reason: 'replica lag', signals: { lagSeconds: 2 } };
  await writePace(database, measured);
  await shop.query(`UPDATE keyturn.pace SET measured_at = measured_at - interval '20 s'`);
  const old = await readPace(database);
  expect(old).toMatchObject(measured);
  expect(old?.ageSeconds).toBeGreaterThanOrEqual(20);
  await writePace(database, pace);
  const renewed = await readPace(database);
  expect(renewed).toMatchObject(pace);
  expect(renewed?.ageSeconds).toBeLessThan(20);
});

test('a worker rests as long as the pace says, and half of its time when nobody renews the pace', async (context) => {
  const { shop, driven, job } = await prepare(context);
  await writePace(driven.database, { ...pace, nice: 3 });
  const worker = await openWorker(context, shop);
  expect(await timed(worker.work(job))).toBeGreaterThan(4 * (await writeMs(shop)));

  await shop.query(`UPDATE keyturn.pace SET nice = 0, measured_at = measured_at - interval '1 h'`);
  await shop.query('TRUNCATE keyturn.ledger');
  await shop.query(`UPDATE keyturn.batch SET state = 'pending', cursor_key = NULL`);
  const [again] = await driven.dispatch();
  if (again === undefined) throw new Error('a pending batch is due at once');
  expect(await timed(worker.work(again))).toBeGreaterThan(2 * (await writeMs(shop)));
});

test('I4 a batch beyond the fleet’s target goes back after the slice in hand, or before the first, and loses nothing', async (context) => {
  const { shop, run, driven, job } = await prepare(context);
  const worker = await openWorker(context, shop, {
    point: 'batch.before_commit',
    act: () => writePace(driven.database, { ...pace, targetWorkers: 0 }),
  });
  expect(await worker.work(job)).toMatchObject({ end: 'stopped' });
  expect(await countRewrites(shop)).toEqual({ rows: 50, most: 1 });

  const [early] = await driven.dispatch();
  if (early === undefined) throw new Error('a batch that was handed back is due at once');
  expect(await worker.work(early)).toMatchObject({ end: 'stopped' });
  expect(await countRewrites(shop)).toEqual({ rows: 50, most: 1 });

  const patient = await openWorker(context, shop);
  await writePace(driven.database, { ...pace, targetWorkers: 1 });
  await driven.finish(patient);
  expect(await showRun(shop.control.context, run)).toMatchObject({ state: 'succeeded', rows_updated: rows });
  expect(await countRewrites(shop)).toEqual({ rows, most: 1 });
  expect(await findImbalances(shop)).toEqual([]);
});

test.for(availableBackends())(
  'a supervisor hands out no more batches than the fleet’s target, and none at 0 [%s]',
  async (backend, { onTestFinished }) => {
    const shop = await openFilledShop({ backend, ids: [1] });
    onTestFinished(() => shop.close());
    const { database } = shop.control.context;
    const run = await shop.order();
    await writePace(database, { ...pace, targetWorkers: 0 });
    await shop.startSupervisor();
    const states = () => shop.query('SELECT state FROM keyturn.batch');
    await until(async () => (await states()).length === 1, { what: 'a batch to be planned', deadlineMs: 20_000 });
    const [lead] = await shop.query('SELECT expires_at FROM keyturn.leadership');
    await until(
      async () => {
        const [now] = await shop.query('SELECT expires_at FROM keyturn.leadership');
        return String(now?.['expires_at']) !== String(lead?.['expires_at']);
      },
      { what: 'another tick', deadlineMs: 20_000 },
    );
    expect(await states()).toEqual([{ state: 'pending' }]);
    await writePace(database, { ...pace, targetWorkers: 1 });
    await until(async () => (await states())[0]?.['state'] === 'dispatched', {
      what: 'the batch to be handed out',
      deadlineMs: 20_000,
    });
    expect(await showRun(shop.control.context, run)).toMatchObject({ batches: { dispatched: 1 } });
  },
);

test('a worker keeps its run below so many rows per second, also after its last slice', async (context) => {
  const { shop, run, driven, job } = await prepare(context);
  await shop.query('UPDATE keyturn.run SET max_rows_per_second = 200 WHERE id = $1', [run]);
  const worker = await openWorker(context, shop);
  expect(await timed(worker.work(job))).toBeGreaterThanOrEqual((rows / 200) * 1_000);
  await driven.finish(await openWorker(context, shop));
  expect(await findImbalances(shop)).toEqual([]);
});

test('a rest ends when the worker is asked to stop', async (context) => {
  const { shop, job, driven } = await prepare(context);
  await writePace(driven.database, { ...pace, nice: 1_000_000 });
  const stopping = new AbortController();
  const worker = await openWorker(context, shop, {
    point: 'batch.after_commit',
    act: async () => void setImmediate(() => stopping.abort()),
  });
  expect(await worker.work(job, stopping.signal)).toMatchObject({ end: 'stopped' });
  expect(await countRewrites(shop)).toEqual({ rows: 50, most: 1 });
});
