// A real streaming replica falls behind, comes back, dies and returns while a run moves rows: the run stands still for as
// long, says which replica and why, and goes on by itself.
import { expect, test, vi } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import { canReplicate, startReplicatedPostgres } from '../support/replicated-postgres.js';
import { findDifferences, insertCustomers, openShop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 300_000 });

const rows = 6_000;
const deadlineMs = 90_000;

test.skipIf(!canReplicate())(
  'a run stands still while a replica lags or is gone, and ends with every row moved',
  async ({ onTestFinished }) => {
    const servers = await startReplicatedPostgres();
    onTestFinished(() => servers.stop());
    const shop = await openShop({ adminUrl: servers.primaryUrl });
    onTestFinished(() => shop.close());
    const keyturn = await shop.open();
    await insertCustomers(
      shop,
      keyturn,
      Array.from({ length: rows }, (_, at) => at + 1),
    );
    await shop.startSupervisor({ isPaced: true });
    await shop.startWorker();
    const rotated = shop.rotate();
    await rotated;

    const heldBy = (words: RegExp, what: string): Promise<string> =>
      until(
        async () => {
          const { held_back_by: held } = await showRun(shop.control.context, run);
          return held !== null && words.test(held) && held;
        },
        { what, deadlineMs },
      );
    const movedNow = async (): Promise<number> => (await showRun(shop.control.context, run)).rows_examined;
    // So slow that it lasts as long as the test wants.
    await shop.query(
      'CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$',
    );
    await shop.query('CREATE TRIGGER slow BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION slow()');
    const run = await shop.order();
    await until(async () => (await movedNow()) > 0, { what: 'rows to move', deadlineMs });

    await servers.freezeReceiver();
    expect(
      await heldBy(
        /^replica r1@127\.0\.0\.1 is [\d.]+ s behind \(hard limit 5 s\); held for \d+ s/,
        'the lag to hold it',
      ),
    ).toBeDefined();
    await until(async () => (await shop.query(`SELECT 1 FROM keyturn.batch WHERE state = 'running'`)).length === 0, {
      what: 'the worker to hand its batch back',
      deadlineMs,
    });
    const stood = await movedNow();
    expect(stood).toBeLessThan(rows);
    expect((await showRun(shop.control.context, run)).pace).toMatchObject({ target_workers: 0 });
    await heldBy(/held for 20 s/, 'the hold to be renewed');
    expect(await movedNow()).toBe(stood);
    servers.thawReceiver();
    await until(async () => (await movedNow()) > stood, { what: 'rows to move again', deadlineMs });

    await servers.killReplica();
    await heldBy(/replica r1@127\.0\.0\.1 was there \d+ s ago and is gone/, 'its death to hold it');
    await servers.startReplica();
    await shop.query('DROP TRIGGER slow ON customer');
    const report = await shop.waitForRun(run, 200_000);
    expect(report).toMatchObject({ state: 'succeeded', rows_failed: 0 });
    expect(await findDifferences(shop, keyturn)).toEqual([]);
  },
);
