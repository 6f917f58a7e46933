// The queue wiped in the middle of a run: FLUSHALL of a private Redis, or TRUNCATE of BullMQ's tables. PostgreSQL knows
// what is outstanding, so the run goes on within a minute and misses nothing; what was paused stays paused.
import { describe, expect, test, vi, type TestContext } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import { pauseRun, resumeRun } from '../../src/control/steer-runs.js';
import { openBatchQueue } from '../../src/queue/jobs.js';
import { availableBackends } from '../support/backends.js';
import {
  branchCells,
  branchTables,
  findWrongLetters,
  openBranchShop,
  queueAddressOfShop,
} from '../support/branches.js';
import { startHeldWorker } from '../support/held-worker.js';
import { countRewrites, digestOf, findImbalances } from '../support/ledger.js';
import { startPrivateRedis } from '../support/redis.js';
import { openShop, type Backend, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const deadlineMs = 60_000;
/** The promise: a wiped queue is noticed and filled again within this time. */
const goesOnMs = 60_000;

interface MidRun {
  readonly shop: Shop;
  readonly run: number;
  /** Empties the queue of everything. */
  wipe(): Promise<void>;
  /** Lets the worker go on. */
  letGo(): void;
}

/** A run whose only worker is held in its first slice. */
async function openMidRun({ onTestFinished }: TestContext, backend: Backend): Promise<MidRun> {
  const redis = backend === 'redis' ? await startPrivateRedis() : undefined;
  if (backend === 'redis' && redis === undefined) throw new Error('a Redis to wipe needs redis-server on PATH');
  const shop = await openBranchShop({ backend, ...(redis === undefined ? {} : { redisUrl: redis.url }) });
  onTestFinished(async () => {
    await shop.close();
    await redis?.stop();
  });
  const run = await shop.order();
  await shop.startSupervisor();
  const letGo = await startHeldWorker(shop);
  return {
    shop,
    run,
    wipe: () => (redis === undefined ? truncateQueue(shop) : redis.flushAll()),
    letGo,
  };
}

/** All that BullMQ keeps, except which version its schema has. */
async function truncateQueue(shop: Shop): Promise<void> {
  const tables = await shop.query(
    `SELECT string_agg(format('bullmq.%I', tablename), ', ') AS names FROM pg_tables WHERE schemaname = 'bullmq' AND tablename <> 'migration'`,
  );
  await shop.query(`TRUNCATE ${String(tables[0]?.['names'])}`);
}

async function statesOf(shop: Shop): Promise<Record<string, number>> {
  const rows = await shop.query('SELECT state, count(*)::int AS batches FROM keyturn.batch GROUP BY state');
  return Object.fromEntries(rows.map((row) => [String(row['state']), Number(row['batches'])]));
}

async function waitForMarker(shop: Shop): Promise<void> {
  const queue = openBatchQueue(await queueAddressOfShop(shop));
  try {
    const [cluster] = await shop.query('SELECT queue_marker FROM keyturn.cluster');
    await until(async () => (await queue.findMarker()) === cluster?.['queue_marker'], {
      what: 'the supervisor to mark the queue again',
      deadlineMs,
    });
  } finally {
    await queue.close();
  }
}

describe.concurrent.each(availableBackends())('losing the queue over the %s queue', (backend) => {
  test(`I4 a queue wiped in the middle of a run is filled again within a minute and nothing is missed [${backend}]`, async (context) => {
    const { shop, run, wipe, letGo } = await openMidRun(context, backend);
    await until(async () => ((await statesOf(shop))['dispatched'] ?? 0) >= 3, {
      what: 'jobs to wait in the queue',
      deadlineMs,
    });
    await wipe();
    letGo();
    expect(await shop.waitForRun(run, goesOnMs)).toMatchObject({
      state: 'succeeded',
      rows_examined: branchCells,
      fields_reencrypted: branchCells,
      fields_conflicted: 0,
      fields_stale: 0,
    });
    expect(await findWrongLetters(shop, await shop.open())).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
    expect(await countRewrites(shop)).toEqual({ rows: branchCells, most: 1 });
    // Batches that waited in the queue were sent again, under a generation of their own.
    expect(await shop.query('SELECT id FROM keyturn.batch WHERE generation > 1')).not.toEqual([]);
  });

  test(`a paused run stays paused when the queue is wiped, and goes on when it is resumed [${backend}]`, async (context) => {
    const { shop, run, wipe, letGo } = await openMidRun(context, backend);
    await pauseRun(shop.control.context, run, 'test');
    letGo();
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'paused' });
    const digest = await digestOf(shop, branchTables);
    expect(await statesOf(shop)).not.toHaveProperty('running');

    await wipe();
    await waitForMarker(shop);
    expect(await showRun(shop.control.context, run)).toMatchObject({ state: 'paused' });
    expect(await digestOf(shop, branchTables)).toBe(digest);

    await resumeRun(shop.control.context, run, 'test');
    expect(await shop.waitForRun(run, goesOnMs)).toMatchObject({
      state: 'succeeded',
      fields_reencrypted: branchCells,
      fields_stale: 0,
    });
    expect(await findWrongLetters(shop, await shop.open())).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
    expect(await countRewrites(shop)).toEqual({ rows: branchCells, most: 1 });
  });
});

test('a supervisor whose Redis is not there says so and ends', async ({ onTestFinished }) => {
  const shop = await openShop({ backend: 'redis', redisUrl: 'redis://127.0.0.1:1' });
  onTestFinished(() => shop.close());
  await expect(shop.startSupervisor()).rejects.toMatchObject({ code: 'QUEUE_UNAVAILABLE' });
});
