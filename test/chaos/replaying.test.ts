// Jobs delivered more often than once, out of order, too late, or side by side: the ledger has each slice once, and a run
// that is over is not touched any more.
import { describe, expect, test, vi } from 'vitest';
import { cancelRun } from '../../src/control/steer-runs.js';
import { openBatchQueue } from '../../src/queue/jobs.js';
import { availableBackends } from '../support/backends.js';
import {
  branchCells,
  branchTables,
  findWrongLetters,
  openBranchShop,
  queueAddressOfShop,
} from '../support/branches.js';
import { driveByHand, openBareWorker } from '../support/by-hand.js';
import { countRewrites, digestOf, findImbalances } from '../support/ledger.js';
import { everyJobOf, openRedelivery } from '../support/redelivery.js';
import { startHeldWorker } from '../support/held-worker.js';
import type { Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const deadlineMs = 60_000;

async function expectEachSliceOnce(shop: Shop): Promise<void> {
  expect(await findWrongLetters(shop, await shop.open())).toEqual([]);
  expect(await findImbalances(shop)).toEqual([]);
  expect(await countRewrites(shop)).toEqual({ rows: branchCells, most: 1 });
}

async function countDispatched(shop: Shop): Promise<number> {
  return (await shop.query(`SELECT 1 FROM keyturn.batch WHERE state = 'dispatched'`)).length;
}

describe.concurrent.each(availableBackends())('replaying over the %s queue', (backend) => {
  test(`I4 jobs delivered again, shuffled and under outdated generations do each slice once [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openBranchShop({ backend });
    onTestFinished(() => shop.close());
    const run = await shop.order();
    await shop.startSupervisor();
    await until(async () => (await countDispatched(shop)) >= 4, { what: 'the first window of jobs', deadlineMs });
    // As if the queue had seemed to lose them: the jobs of the first generation will arrive late.
    await shop.query(`UPDATE keyturn.batch SET state = 'pending' WHERE state = 'dispatched'`);
    await until(async () => (await shop.query('SELECT 1 FROM keyturn.batch WHERE generation >= 2')).length >= 4, {
      what: 'the second generation',
      deadlineMs,
    });

    const redelivery = await openRedelivery(shop);
    const queue = openBatchQueue(await queueAddressOfShop(shop));
    onTestFinished(() => redelivery.close());
    onTestFinished(() => queue.close());
    await Promise.all([shop.startWorker(), shop.startWorker()]);
    const finished = shop.waitForRun(run, deadlineMs);
    let isOver = false;
    const over = finished.finally(() => {
      isOver = true;
    });
    while (!isOver) {
      const jobs = await everyJobOf(shop);
      await queue.send(jobs);
      await redelivery.send(jobs, 1);
      await redelivery.waitUntilDrained();
    }
    expect(await over).toMatchObject({
      state: 'succeeded',
      rows_examined: branchCells,
      fields_reencrypted: branchCells,
      fields_conflicted: 0,
      fields_stale: 0,
    });
    await expectEachSliceOnce(shop);
  });

  test(`I4 of workers given the same job side by side one takes the batch and the others drop it [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openBranchShop({ backend });
    onTestFinished(() => shop.close());
    const driven = driveByHand(shop, await shop.order());
    onTestFinished(() => driven.close());
    const workers = await Promise.all([1, 2, 3, 4].map(() => openBareWorker(shop)));
    onTestFinished(async () => {
      await Promise.all(workers.map((worker) => worker.close()));
    });
    await driven.step();
    await driven.step();
    for (const job of await driven.dispatch()) {
      const ends = await Promise.all(workers.map((worker) => worker.work(job)));
      expect(ends.map(({ end }) => end).toSorted()).toEqual(['done', 'dropped', 'dropped', 'dropped']);
    }
    const [worker] = workers;
    if (worker === undefined) throw new Error('four workers were opened');
    const [active] = await shop.query(`SELECT id::int FROM keyturn.data_key WHERE state = 'active' AND purpose = 1`);
    expect(await driven.finish(worker)).toMatchObject({ state: 'succeeded', targetKeyId: active?.['id'] });
    await expectEachSliceOnce(shop);
  });

  test(`I3 I4 jobs of a finished run write nothing when they are delivered again [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openBranchShop({ backend });
    onTestFinished(() => shop.close());
    const run = await shop.order();
    await shop.startSupervisor();
    await shop.startWorker();
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'succeeded', fields_reencrypted: branchCells });
    const digest = await digestOf(shop, branchTables);
    const redelivery = await openRedelivery(shop);
    onTestFinished(() => redelivery.close());
    await redelivery.send(await everyJobOf(shop), 2);
    await redelivery.waitUntilDrained();
    expect(await digestOf(shop, branchTables)).toBe(digest);
    await expectEachSliceOnce(shop);
  });

  test(`I3 I4 jobs of a cancelled run write nothing when they are delivered again [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openBranchShop({ backend });
    onTestFinished(() => shop.close());
    const run = await shop.order();
    await shop.startSupervisor();
    const letGo = await startHeldWorker(shop);
    await cancelRun(shop.control.context, run, 'test');
    letGo();
    expect(await shop.waitForRun(run)).toMatchObject({
      state: 'cancelled',
      batches: { pending: 0, dispatched: 0, running: 0 },
    });
    const digest = await digestOf(shop, branchTables);
    const redelivery = await openRedelivery(shop);
    onTestFinished(() => redelivery.close());
    await redelivery.send(await everyJobOf(shop), 2);
    await redelivery.waitUntilDrained();
    expect(await digestOf(shop, branchTables)).toBe(digest);
    expect(await findWrongLetters(shop, await shop.open())).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
  });
});
