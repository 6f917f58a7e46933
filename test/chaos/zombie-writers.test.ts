// Workers stopped (SIGSTOP) past their lease and continued: what a zombie writes late must change nothing, whether it was
// stopped with its write transaction open or between reading and writing, and whoever has the batch by then.
import { describe, expect, test, vi } from 'vitest';
import { availableBackends } from '../support/backends.js';
import type { Child } from '../support/child.js';
import { openFilledShop } from '../support/filled-shop.js';
import { holdInsert } from '../support/held-statement.js';
import { countRewrites, digestOf, findImbalances } from '../support/ledger.js';
import { memberIdOf, passLease, startWorkerProcess, waitForStop, type SelfSignal } from '../support/processes.js';
import { customer, findDifferences, type Backend, type Customer, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const deadlineMs = 60_000;
const ids = Array.from({ length: 150 }, (_, at) => at + 1);

/** What the workers of this database left open, while only a stopped one is there. */
const openTransactions = `SELECT pid FROM pg_stat_activity
  WHERE datname = current_database() AND application_name = 'keyturn worker' AND state = 'idle in transaction'`;

interface Haunted {
  readonly shop: Shop;
  readonly run: number;
  readonly zombie: Child;
}

/** A run whose only worker has stopped itself. */
async function openHaunted(backend: Backend, self: Omit<SelfSignal, 'signal'>): Promise<Haunted> {
  const shop = await openFilledShop({ backend, ids });
  const run = await shop.order();
  await shop.startSupervisor();
  const zombie = startWorkerProcess(shop, { ...self, signal: 'SIGSTOP' });
  await waitForStop(zombie);
  return { shop, run, zombie };
}

async function expectEachCellOnce({ shop, run }: Haunted, expected?: (id: number) => Customer): Promise<void> {
  expect(await shop.waitForRun(run, deadlineMs)).toMatchObject({
    state: 'succeeded',
    fields_failed: 0,
    fields_stale: 0,
  });
  expect(await findDifferences(shop, await shop.open(), expected)).toEqual([]);
  expect(await findImbalances(shop)).toEqual([]);
}

/** Continues the zombie, waits until it has found out that its work is void, and ends it. */
async function wakeUntil({ zombie }: Haunted, says: 'batch lost' | 'trouble'): Promise<void> {
  zombie.kill('SIGCONT');
  await until(async () => zombie.stderr().includes(`"msg":"${says}"`), {
    what: `pid ${zombie.pid} to log "${says}"`,
    deadlineMs,
  });
  zombie.kill('SIGTERM');
  expect(await zombie.waitForExit(deadlineMs)).toEqual({ code: 0, signal: null });
}

describe.concurrent.each(availableBackends())('zombie writers over the %s queue', (backend) => {
  test(`I3 I4 a worker stopped in its write transaction is ended by the server, replaced after its lease, and wakes up to nothing [${backend}]`, async ({
    onTestFinished,
  }) => {
    const haunted = await openHaunted(backend, { point: 'batch.before_update', time: 2 });
    const { shop } = haunted;
    onTestFinished(() => shop.close());
    const open = await shop.query(openTransactions);
    expect(open).not.toEqual([]);

    // Nothing is turned forward here: the lease runs out by itself, after the server has given up on the transaction.
    await shop.startWorker();
    await expectEachCellOnce(haunted);
    // Its connection for writing is gone, and with it whatever else it had open.
    const backends = open.map((row) => row['pid']);
    expect(await shop.query('SELECT pid FROM pg_stat_activity WHERE pid = ANY ($1)', [backends])).toEqual([]);
    expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
    const digest = await digestOf(shop, ['customer']);
    await wakeUntil(haunted, 'batch lost');
    expect(await digestOf(shop, ['customer'])).toBe(digest);
  });

  test(`I3 I4 a worker stopped between reading and writing writes nothing over what others wrote since [${backend}]`, async ({
    onTestFinished,
  }) => {
    const haunted = await openHaunted(backend, { point: 'batch.after_read', time: 1 });
    const { shop, zombie } = haunted;
    onTestFinished(() => shop.close());
    await passLease(shop, await memberIdOf(shop, zombie));
    await shop.startWorker();
    const newer = (id: number): Customer => ({
      ...customer(id),
      ...(id % 2 === 0 ? {} : { email: `newer-${id}@example.com` }),
    });
    const writer = await shop.open();
    for (const id of ids.filter((odd) => odd % 2 === 1)) {
      const email = await writer
        .column('public.customer', 'email')
        .encrypt({ pk: id, scope: customer(id).tenant }, `newer-${id}@example.com`);
      await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [id, email]);
    }
    await expectEachCellOnce(haunted, newer);
    const digest = await digestOf(shop, ['customer']);
    await wakeUntil(haunted, 'batch lost');
    expect(await digestOf(shop, ['customer'])).toBe(digest);
  });

  test(`I4 a worker that wakes up before anybody else took its batch may not write under the lease it lost [${backend}]`, async ({
    onTestFinished,
  }) => {
    const haunted = await openHaunted(backend, { point: 'batch.after_read', time: 1 });
    const { shop, run, zombie } = haunted;
    onTestFinished(() => shop.close());
    expect(await passLease(shop, await memberIdOf(shop, zombie))).toBe(1);
    await until(
      async () => (await shop.query(`SELECT 1 FROM keyturn.batch WHERE last_error = 'LEASE_EXPIRED'`)).length === 1,
      { what: 'the lease to be found expired', deadlineMs },
    );
    // The rows are still as the zombie read them: the lease alone stands between it and them.
    zombie.kill('SIGCONT');
    await until(async () => zombie.stderr().includes('"msg":"batch lost"'), {
      what: `pid ${zombie.pid} to find its batch lost`,
      deadlineMs,
    });
    await expectEachCellOnce(haunted);
    expect(await shop.waitForRun(run)).toMatchObject({
      rows_examined: ids.length,
      rows_updated: ids.length,
      fields_conflicted: 0,
    });
    expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
    zombie.kill('SIGTERM');
    expect(await zombie.waitForExit(deadlineMs)).toEqual({ code: 0, signal: null });
  });

  test(`a worker frozen while it records a part of the scan is ended by the server, and the run goes on without it [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openFilledShop({ backend, ids });
    onTestFinished(() => shop.close());
    const run = await shop.order();
    await shop.startSupervisor();
    const isScan = `EXISTS (SELECT 1 FROM keyturn.batch b WHERE b.id = NEW.batch_id AND b.kind = 'verify')`;
    const { waitUntilHeld, letGo } = await holdInsert(shop, 'keyturn.ledger', isScan);
    const zombie = startWorkerProcess(shop);
    await waitUntilHeld();
    zombie.kill('SIGSTOP');
    await letGo();
    // Nothing is turned forward here either: its transaction holds the batch, and the supervisor must not wait for it.
    await shop.startWorker();
    await expectEachCellOnce({ shop, run, zombie });
    expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
    const digest = await digestOf(shop, ['customer']);
    // Its statement had succeeded and its commit cannot: the connection is gone.
    await wakeUntil({ shop, run, zombie }, 'trouble');
    expect(await digestOf(shop, ['customer'])).toBe(digest);
  });
});
