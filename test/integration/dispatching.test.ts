import { afterEach, describe, expect, test } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import { limitRun } from '../../src/control/steer-runs.js';
import { claimIfDispatched, dispatchDue, insertBatch } from '../../src/store/batches.js';
import { availableBackends } from '../support/backends.js';
import { samplesOf, textOf } from '../support/health.js';
import { insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

let shop: Shop;
afterEach(() => shop.close());

// A busy application leaves a follow-up of a few cells behind every slice. They have lower ids than the ranges planned
// after them, and each took a place in the window of ranges: workers idled while the run waited for tick after tick.
test('the follow-ups of a busy application do not keep ranges from being handed out', async () => {
  shop = await openShop();
  const { database } = shop.control.context;
  await insertCustomers(shop, await shop.open(), [1, 2, 3, 4]);
  const runId = await shop.order();
  const [target] = await shop.query('SELECT id FROM keyturn.target');
  const targetId = String(target?.['id']);
  await shop.query(`UPDATE keyturn.run SET state = 'running', pass = 1 WHERE id = $1`, [runId]);
  const cells = { columns: [], rows: [{ columns: [], key: ['1'] }] };
  for (let made = 0; made < 40; made++)
    await insertBatch(database, { runId, pass: 1, targetId, kind: 'reencrypt', cells });
  for (const upto of ['2', '4'])
    await insertBatch(database, { runId, pass: 1, targetId, kind: 'reencrypt', upto: [upto] });

  await shop.startSupervisor();
  const handedOut = `SELECT count(*) FILTER (WHERE cells IS NULL)::int AS ranges, count(*) FILTER (WHERE cells IS NOT NULL)::int AS lists
    FROM keyturn.batch WHERE state = 'dispatched'`;
  const [out] = await until(
    async () => {
      const rows = await shop.query(handedOut);
      return Number(rows[0]?.['lists']) > 0 && rows;
    },
    { what: 'the supervisor to hand out batches', deadlineMs: 10_000 },
  );
  expect(out?.['ranges']).toBe(2);
  expect(out?.['lists']).toBeLessThan(40);
});

/** Runs at work, each with so many batches that wait, planned one run after the other. */
async function orderWithBatches(counts: readonly number[]): Promise<number[]> {
  const runs: number[] = [];
  for (const count of counts) {
    const runId = await shop.order({ kind: 'dry_run' });
    const [target] = await shop.query(
      `UPDATE keyturn.run SET state = 'running', pass = 1 WHERE id = $1 RETURNING (SELECT id FROM keyturn.target) AS id`,
      [runId],
    );
    const targetId = String(target?.['id']);
    for (let made = 0; made < count; made++)
      await insertBatch(shop.control.context.database, { runId, pass: 1, targetId, kind: 'dry_run', upto: ['1'] });
    runs.push(runId);
  }
  return runs;
}

/** The runs whose batches are handed out, in order. */
async function handOut(limit: number, resting: readonly number[] = []): Promise<unknown[]> {
  const due = await dispatchDue(shop.control.context.database, limit, { resting });
  const rows = await shop.query('SELECT id::int, run_id::int FROM keyturn.batch');
  return due.map(({ id }) => rows.find((row) => row['id'] === id)?.['run_id']);
}

describe('batches of several runs', () => {
  test('are handed out in turn, and a run that has some out waits for the others', async () => {
    shop = await openShop();
    const [a, b, c] = await orderWithBatches([4, 2, 1]);
    expect(await handOut(4)).toEqual([a, b, c, a]);
    const [d] = await orderWithBatches([3]);
    // a has two out, b one, d none.
    expect(await handOut(4)).toEqual([d, b, d, a]);
  });

  test('are handed out to the higher priority first, as long as it has any', async () => {
    shop = await openShop();
    const [a, b, c] = await orderWithBatches([2, 2, 2]);
    const { context } = shop.control;
    await limitRun(context, b ?? 0, { priority: 3, reason: 'test' });
    await limitRun(context, c ?? 0, { priority: 9, reason: 'test' });
    expect(await handOut(5)).toEqual([c, c, b, b, a]);
    expect(await handOut(5)).toEqual([a]);
  });

  test('are not handed out to a run that rests, nor beyond what a run is allowed', async () => {
    shop = await openShop();
    const [a, b, c] = await orderWithBatches([3, 3, 3]);
    const { context } = shop.control;
    await limitRun(context, b ?? 0, { workers: 2, reason: 'test' });
    await limitRun(context, c ?? 0, { rowsPerSecond: 1, workers: 2, reason: 'test' });
    expect(await handOut(9, [a ?? 0])).toEqual([b, c, b]);
    expect(await handOut(9, [a ?? 0])).toEqual([]);
    await limitRun(context, b ?? 0, { workers: null, reason: 'test' });
    expect(await handOut(9, [a ?? 0])).toEqual([b]);
  });

  test('tell the worker how many come before it, and how many workers share the rows per second', async () => {
    shop = await openShop();
    const [a, b] = await orderWithBatches([2, 1]);
    const { context } = shop.control;
    await limitRun(context, a ?? 0, { workers: 2, rowsPerSecond: 10, reason: 'test' });
    await limitRun(context, b ?? 0, { priority: 9, reason: 'test' });
    const standings = [];
    for (const { id, generation } of await dispatchDue(context.database, 9)) {
      const [member] = await shop.query('SELECT gen_random_uuid() AS id');
      const claimed = await claimIfDispatched(context.database, {
        batchId: id,
        generation,
        memberId: String(member?.['id']),
      });
      standings.push([claimed?.runId, claimed?.standing]);
    }
    expect(standings).toMatchObject([
      [b, { ahead: 0, aheadInRun: 0, sharers: 1, limits: { workers: undefined } }],
      [a, { ahead: 1, aheadInRun: 0, sharers: 1, limits: { workers: 2, rowsPerSecond: 10 } }],
      [a, { ahead: 2, aheadInRun: 1, sharers: 2 }],
    ]);
  });
});

test.each(availableBackends())(
  'an emergency run overtakes runs of any priority, which say so, and go on afterwards by priority [%s]',
  async (backend) => {
    shop = await openShop({ backend });
    const { context } = shop.control;
    const writer = await shop.open();
    await insertCustomers(shop, writer, [1, 2, 3, 4, 5, 6]);
    await writer.close();
    await shop.rotate();
    const low = await shop.order();
    const { healthUrl } = await shop.startSupervisor();
    const isQueued = async (run: number): Promise<boolean> => (await showRun(context, run)).batches.dispatched === 1;
    await until(() => isQueued(low), { what: 'a batch to be queued', deadlineMs: 20_000 });

    const high = await shop.order({ scope: 'tenant-2', steering: { priority: 5 } });
    const emergency = await shop.order({ scope: 'tenant-1', steering: { isEmergency: true } });
    await until(async () => (await isQueued(emergency)) && !(await isQueued(low)) && !(await isQueued(high)), {
      what: 'the emergency run to have the queue for itself',
      deadlineMs: 20_000,
    });
    for (const run of [low, high]) {
      expect(await showRun(context, run)).toMatchObject({
        emergency: false,
        held_back_by: `run ${emergency} (emergency) goes first`,
      });
    }

    const held = await until(
      async () => {
        const samples = samplesOf(await textOf(healthUrl));
        return [...samples.keys()].filter((name) => name.startsWith('keyturn_run_held')).length === 3 && samples;
      },
      { what: 'the metrics to say what holds the runs back', deadlineMs: 20_000 },
    );
    const reasons = [low, high, emergency].map((run) =>
      ['emergency', 'no_worker'].filter(
        (reason) =>
          held.get(`keyturn_run_held{run="${run}",keyring="customers",kind="reencrypt",reason="${reason}"}`) === 1,
      ),
    );
    expect(reasons).toEqual([['emergency'], ['emergency'], ['no_worker']]);
    const batches = ['pending', 'dispatched', 'running'].map((state) => held.get(`keyturn_batches{state="${state}"}`));
    expect(batches).toEqual([0, 1, 0]);

    await shop.startWorker();
    for (const run of [emergency, high, low])
      expect(await shop.waitForRun(run)).toMatchObject({ state: 'succeeded', held_back_by: null });
    const begun = await shop.query(
      'SELECT run_id::int AS run FROM keyturn.batch GROUP BY run_id ORDER BY min(started_at)',
    );
    expect(begun.map((row) => row['run'])).toEqual([emergency, high, low]);
  },
);
