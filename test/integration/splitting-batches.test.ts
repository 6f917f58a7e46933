// A row whose write always takes too long: its batch is split, half by half, until the row stands alone in quarantine and all
// others are moved; mended, it is retried alone.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { beginRetry } from '../../src/control/quarantine.js';
import { readStatus } from '../../src/control/status.js';
import type { RunReport } from '../../src/control/runs.js';
import { LeaseLost } from '../../src/engine/batch-end.js';
import { splitBatch } from '../../src/engine/split-batch.js';
import { KeyturnError } from '../../src/errors.js';
import { claimIfDispatched } from '../../src/store/batches.js';
import { createCellStore } from '../../src/store/cells.js';
import { getTarget } from '../../src/store/registry.js';
import { driveByHand, openBareWorker } from '../support/by-hand.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import { openFilledShop } from '../support/filled-shop.js';
import { findImbalances } from '../support/ledger.js';
import { findDifferences, type Shop } from '../support/shop.js';

const noSupply = { require: async () => undefined, start: async () => undefined };
const rows = 260;
const slowRow = 133;

const idsTo = (last: number): readonly number[] => Array.from({ length: last }, (_, at) => at + 1);

describe('a row whose trigger sleeps longer than a statement may take', () => {
  let shop: Shop;
  let runner: DirectRunner;
  let report: RunReport;

  beforeAll(async () => {
    shop = await openFilledShop({ ids: idsTo(rows) });
    await shop.query(`CREATE FUNCTION oversleep() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN PERFORM pg_sleep(5); RETURN NEW; END $$`);
    await shop.query(`CREATE TRIGGER oversleep BEFORE UPDATE ON customer FOR EACH ROW WHEN (OLD.id = ${slowRow})
      EXECUTE FUNCTION oversleep()`);
    runner = await startDirectRunner(shop, { writeTimeoutMs: 250 });
    report = await runner.finish(await shop.order());
  });

  afterAll(async () => {
    await runner.close();
    await shop.close();
  });

  test('stands alone in quarantine, and all others are moved', async () => {
    expect(report).toMatchObject({
      state: 'completed_with_failures',
      rows_examined: rows,
      rows_updated: rows - 1,
      rows_failed: 1,
      fields_stale: 0,
      round: 0,
    });
    expect(
      await shop.query(`SELECT DISTINCT row_key, cause, key_id FROM keyturn.quarantine WHERE resolved_at IS NULL`),
    ).toEqual([{ row_key: [String(slowRow)], cause: 'TIMEOUT', key_id: null }]);
  });

  test('I4 every batch that was split adds up with those that took its place, and no row is visited twice', async () => {
    expect(await findImbalances(shop)).toEqual([]);
    const [split] = await shop.query(
      `SELECT count(*)::int AS parents, count(*) FILTER (WHERE last_error <> 'DATABASE_ERROR 57014' OR lease_token IS NOT NULL)::int AS odd,
         count(*) FILTER (WHERE (SELECT count(*) FROM keyturn.batch c WHERE c.follows = p.id) <> 2)::int AS childless
       FROM keyturn.batch p WHERE state = 'split'`,
    );
    expect(split).toMatchObject({ odd: 0, childless: 0 });
    // From at most 200 rows in a slice down to one.
    expect(Number(split?.['parents'])).toBeGreaterThanOrEqual(3);
    expect(Number(split?.['parents'])).toBeLessThanOrEqual(16);
    expect(await shop.query(`SELECT DISTINCT state FROM keyturn.batch ORDER BY 1`)).toEqual([
      { state: 'done' },
      { state: 'split' },
    ]);
  });

  test('is moved by a retry once it is mended, alone, which resolves it', async () => {
    await shop.query('DROP TRIGGER oversleep ON customer');
    const filter = { run: report.run_id, target: 'customer', cause: 'TIMEOUT', reason: 'trigger dropped' };
    const begun = await beginRetry(shop.control.context, filter, noSupply);
    const retried = await runner.finish(begun.report.run_id);
    expect(retried).toMatchObject({
      state: 'succeeded',
      rows_examined: 1,
      rows_updated: 1,
      verified_at: null,
      targets: ['public.customer'],
    });
    expect(
      await shop.query(`SELECT DISTINCT run_id::int, resolution, resolved_at IS NULL AS open FROM keyturn.quarantine`),
    ).toEqual([{ run_id: report.run_id, resolution: 'settled', open: false }]);
    expect(await findDifferences(shop, await shop.open())).toEqual([]);
    // It looked at one row, so it says nothing of the others.
    const { keyrings } = await readStatus(shop.control.context);
    expect(keyrings).toMatchObject([{ last_run: { run_id: report.run_id } }]);
  });
});

describe('a row that cannot even be read', () => {
  const unreadable = new KeyturnError('DATABASE_ERROR', 'the database refused a statement', { sqlstate: 'XX001' });

  test('I4 is quarantined by its key, of ranges and lists alike, and a lost lease leaves everything as it was', async ({
    onTestFinished,
  }) => {
    const shop = await openFilledShop({ ids: idsTo(10) });
    onTestFinished(() => shop.close());
    const driven = driveByHand(shop, await shop.order());
    onTestFinished(() => driven.close());
    const { services, close } = await openBareWorker(shop);
    onTestFinished(close);
    await driven.step();
    await driven.step();

    async function claim(): Promise<Parameters<typeof splitBatch>[0]> {
      const [job] = await driven.dispatch(1);
      if (job === undefined) throw new Error('nothing to dispatch');
      const batch = await claimIfDispatched(services.database, { ...job, memberId: services.memberId });
      if (batch === undefined) throw new Error('the batch was not claimed');
      const target = await getTarget(services.database, batch.targetId);
      return { services, batch, target, store: createCellStore(target) };
    }

    const whole = await claim();
    const stolen = { ...whole, batch: { ...whole.batch, leaseToken: '00000000-0000-4000-8000-000000000000' } };
    expect(await splitBatch(stolen, ['4'], 4, unreadable)).toEqual({ end: 'lost' });
    await expect(splitBatch(stolen, ['4'], 1, unreadable)).rejects.toBeInstanceOf(LeaseLost);
    expect(await shop.query('SELECT count(*)::int AS n FROM keyturn.batch')).toEqual([{ n: 1 }]);
    expect(await shop.query('SELECT FROM keyturn.quarantine')).toEqual([]);

    // The four rows behind 4 fail: 5 and 6 become a batch, 7 to 10 another.
    expect(await splitBatch(whole, ['4'], 4, unreadable)).toEqual({ end: 'split', cause: 'DATABASE_ERROR XX001' });
    const children = await shop.query(
      `SELECT after_key, upto_key FROM keyturn.batch WHERE state = 'pending' ORDER BY id`,
    );
    expect(children).toEqual([
      { after_key: ['4'], upto_key: ['6'] },
      { after_key: ['6'], upto_key: ['10'] },
    ]);

    const first = await claim();
    expect(await splitBatch(first, undefined, 1, unreadable)).toEqual({ passed: ['5'] });
    expect(await splitBatch(first, ['6'], 1, unreadable)).toEqual({ passed: ['6'] });
    const quarantined = `SELECT DISTINCT row_key[1]::int AS id, cause FROM keyturn.quarantine ORDER BY 1`;
    expect(await shop.query(quarantined)).toEqual([{ id: 5, cause: 'REFUSED_XX001' }]);

    const columns = whole.target.columns.map((column) => column.id);
    const cells = { columns, rows: ['7', '8', '9'].map((key) => ({ columns: [0, 2], key: [key] })) };
    const second = await claim();
    const list = { ...second, batch: { ...second.batch, cells } };
    expect(await splitBatch(list, ['2'], 20, unreadable)).toEqual({ passed: ['3'] });
    expect(await shop.query(quarantined)).toEqual([
      { id: 5, cause: 'REFUSED_XX001' },
      { id: 9, cause: 'REFUSED_XX001' },
    ]);
    expect(await splitBatch(list, ['1'], 20, unreadable)).toEqual({ end: 'split', cause: 'DATABASE_ERROR XX001' });
    expect(
      await shop.query(`SELECT cells -> 'rows' AS rows FROM keyturn.batch WHERE cells IS NOT NULL ORDER BY id`),
    ).toEqual([{ rows: [[[0, 2], '8']] }, { rows: [[[0, 2], '9']] }]);
    expect(await findImbalances(shop)).toEqual([]);
  });
});
