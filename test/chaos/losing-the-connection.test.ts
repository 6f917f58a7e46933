// Worker and supervisor behind a connection to the database that is cut, is slow, or is lost without a word: both go on after
// it, nothing is lost and nothing is moved twice. A queue in PostgreSQL is lost with it, one in Redis goes on delivering.
import { describe, expect, test, vi } from 'vitest';
import { startSupervisorProcess, startWorker, type LongRunning } from '../../src/app-runners.js';
import { showRun } from '../../src/control/runs.js';
import { availableBackends } from '../support/backends.js';
import { startFaultProxy, type FaultProxy } from '../support/fault-proxy.js';
import { findImbalances } from '../support/ledger.js';
import { findDifferences, insertCustomers, openShop, type Backend, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000 });

const rows = 600;
const deadlineMs = 200_000;

/** A shop whose supervisor and worker reach the database through the proxy, in the middle of a run. */
async function midRun(
  backend: Backend,
  onTestFinished: (clean: () => Promise<void>) => void,
): Promise<{ shop: Shop; proxy: FaultProxy; run: number }> {
  const shop = await openShop({ backend });
  const proxy = await startFaultProxy(shop.url);
  const running: LongRunning[] = [];
  onTestFinished(async () => {
    proxy.heal();
    await Promise.all(running.map((process) => process.stop()));
    await proxy.close();
    await shop.close();
  });
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: rows }, (_, at) => at + 1),
  );
  await shop.rotate();
  const environment = { ...shop.environment(), DATABASE_URL: proxy.url };
  running.push(await startSupervisorProcess({ environment, name: 'supervisor' }));
  running.push(await startWorker({ environment: { ...environment }, name: 'worker' }));
  // So slow that the fault meets a slice in hand.
  await shop.query(
    `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$`,
  );
  await shop.query('CREATE TRIGGER slow BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION slow()');
  const run = await shop.order();
  await until(async () => (await showRun(shop.control.context, run)).rows_examined > 0, {
    what: 'rows to move',
    deadlineMs,
  });
  return { shop, proxy, run };
}

async function expectAllMoved(shop: Shop, run: number): Promise<void> {
  expect(await shop.waitForRun(run, deadlineMs)).toMatchObject({ state: 'succeeded', rows_failed: 0, fields_stale: 0 });
  expect(await findImbalances(shop)).toEqual([]);
  expect(await findDifferences(shop, await shop.open())).toEqual([]);
}

describe.concurrent.each(availableBackends())('the connection to the database, with the %s queue', (backend) => {
  test(`I4 is cut in the middle of a slice: worker and supervisor go on when it is back [${backend}]`, async ({
    onTestFinished,
  }) => {
    const { shop, proxy, run } = await midRun(backend, onTestFinished);
    proxy.cut();
    await until(
      async () =>
        (
          await shop.query(
            `SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'keyturn %' AND application_name NOT LIKE 'keyturn appl%'`,
          )
        ).length === 0,
      { what: 'the server to notice', deadlineMs },
    );
    expect((await showRun(shop.control.context, run)).state).toBe('running');
    proxy.heal();
    await expectAllMoved(shop, run);
  });

  test(`is slow in both directions: the run goes on and loses no lease [${backend}]`, async ({ onTestFinished }) => {
    const { shop, proxy, run } = await midRun(backend, onTestFinished);
    proxy.slowDown(30);
    await expectAllMoved(shop, run);
    expect(await shop.query(`SELECT 1 FROM keyturn.batch WHERE last_error = 'LEASE_EXPIRED'`)).toEqual([]);
  });

  test(`is lost without a word: what waits for an answer is given up, and the run goes on [${backend}]`, async ({
    onTestFinished,
  }) => {
    const { shop, proxy, run } = await midRun(backend, onTestFinished);
    proxy.loseSilently();
    proxy.heal();
    expect((await showRun(shop.control.context, run)).state).toBe('running');
    await expectAllMoved(shop, run);
  });
});
