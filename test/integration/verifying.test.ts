// The second scan: it finds what the moving missed, has it moved in another round, gives up after three, and never writes
// to an application table. A deep one decrypts every value.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import { insertBatch } from '../../src/store/batches.js';
import { damage } from '../support/damage.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import { findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

const rows = 40;
let shop: Shop;
let runner: DirectRunner;
/** Rows as they were under the first key, and the one of them that tests put back. */
let under1: Record<string, unknown>[];

beforeEach(async () => {
  shop = await openShop();
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: rows }, (_, at) => at + 1),
  );
  await keyturn.close();
  under1 = await shop.query('SELECT id::int, email FROM customer WHERE email IS NOT NULL ORDER BY id');
  await shop.rotate();
  runner = await startDirectRunner(shop);
});

afterEach(async () => {
  await runner.close();
  await shop.close();
});

/** Puts cells back to their envelopes under the first key, as a writer that lags behind would. */
async function putBack(count: number): Promise<void> {
  for (const { id, email } of under1.slice(0, count))
    await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [id, email]);
}

async function moveUntil(run: number, state: string): Promise<void> {
  while ((await showRun(shop.control.context, run)).state !== state) await runner.step(run);
}

/** All of the table, as a fast run has it: more rows than a slice. */
async function planAsOneBatch(run: number): Promise<void> {
  const [planned] = await shop.query(
    'UPDATE keyturn.run_target SET is_planned = true WHERE run_id = $1 RETURNING pass, target_id',
    [run],
  );
  await insertBatch(runner.services.database, {
    runId: run,
    pass: Number(planned?.['pass']),
    targetId: String(planned?.['target_id']),
    kind: 'verify',
  });
}

describe('a verification of its own', () => {
  test('counts every cell by the key it names, rewrites nothing and succeeds when all are under the active key', async () => {
    const moved = await runner.finish(await shop.order());
    const before = await imageOf(shop, 'public');
    for (const deep of [false, true]) {
      const report = await runner.finish(await shop.order({ kind: 'verify', deep }));
      expect(report).toMatchObject({
        kind: 'verify',
        state: 'succeeded',
        rows_examined: rows,
        rows_updated: 0,
        fields_examined: moved.fields_examined,
        fields_skipped_on_target: moved.fields_examined,
        fields_stale: 0,
        failures: [],
      });
      expect(report.verified_at).not.toBeNull();
    }
    expect(await imageOf(shop, 'public')).toEqual(before);
  });

  test('with stale cells it completes with failures and says how many; it moves none of them', async () => {
    await runner.finish(await shop.order());
    await putBack(3);
    const before = await imageOf(shop, 'public');
    for (const deep of [false, true]) {
      const report = await runner.finish(await shop.order({ kind: 'verify', deep }));
      expect(report).toMatchObject({
        state: 'completed_with_failures',
        fields_stale: 3,
        fields_conflicted: 3,
        fields_failed: 0,
        held_back_by: '3 stale cells',
        verified_at: null,
      });
    }
    expect(await imageOf(shop, 'public')).toEqual(before);
  });

  test('only a deep one sees a value that names the right key and does not decrypt', async () => {
    await runner.finish(await shop.order());
    const [row] = await shop.query('SELECT email FROM customer WHERE id = 5');
    await shop.query('UPDATE customer SET email = $1 WHERE id = 5', [damage.bitFlipped(String(row?.['email']))]);
    expect(await runner.finish(await shop.order({ kind: 'verify' }))).toMatchObject({ state: 'succeeded' });
    const deep = await runner.finish(await shop.order({ kind: 'verify', deep: true }));
    expect(deep).toMatchObject({
      state: 'completed_with_failures',
      rows_failed: 1,
      failures: [{ target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 2, cells: 1 }],
    });
  });

  test('what is no envelope or names a key that nobody has is a failure, with or without decrypting', async () => {
    await runner.finish(await shop.order());
    const [row] = await shop.query('SELECT email FROM customer WHERE id = 5');
    await shop.query(`UPDATE customer SET email = CASE id WHEN 5 THEN $1 ELSE 'in clear' END WHERE id IN (5, 6)`, [
      damage.namingKey(String(row?.['email']), 99),
    ]);
    for (const deep of [false, true]) {
      const report = await runner.finish(await shop.order({ kind: 'verify', deep }));
      expect(report.failures).toEqual([
        { target: 'public.customer', field: 'email', cause: 'NOT_AN_ENVELOPE', key_id: null, cells: 1 },
        { target: 'public.customer', field: 'email', cause: 'UNKNOWN_KEY', key_id: 99, cells: 1 },
      ]);
    }
  });

  test('a row that is deleted or inserted between two statements about a slice hides no other from the scan', async () => {
    await runner.finish(await shop.order());
    await runner.close();
    let happens: string | undefined;
    runner = await startDirectRunner(shop, {
      betweenStatements: async (begin) => {
        if (happens === undefined || !begin.includes('READ ONLY')) return;
        const statement = happens;
        happens = undefined;
        await shop.query(statement);
      },
    });
    // Three stale rows where the first slice ends, and three where the table does.
    const stale = [18, 19, 20, 38, 39, 40];
    for (const { id, email } of under1.filter((row) => stale.includes(Number(row['id']))))
      await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [id, email]);
    for (const { deep, sliceRows } of [
      { deep: false, sliceRows: 5_000 },
      { deep: true, sliceRows: 1_000 },
    ]) {
      for (const statement of [
        'DELETE FROM customer WHERE id = -2',
        `INSERT INTO customer (id, tenant_id) SELECT -2 * n - 1, 'tenant-1' FROM generate_series(1, 3) n`,
      ]) {
        await shop.query('DELETE FROM customer WHERE id < 0');
        await shop.query(
          `INSERT INTO customer (id, tenant_id) SELECT -2 * n, 'tenant-1' FROM generate_series(1, ${sliceRows - 20}) n`,
        );
        const run = await shop.order({ kind: 'verify', deep });
        await moveUntil(run, 'verifying');
        await planAsOneBatch(run);
        happens = statement;
        expect(await runner.finish(run)).toMatchObject({ rows_examined: sliceRows - 20 + rows, fields_stale: 6 });
        expect(happens).toBeUndefined();
      }
    }
  });

  test('one that compares with a key that is no longer active fails and says so', async () => {
    const run = await shop.order({ kind: 'verify' });
    await moveUntil(run, 'verifying');
    await shop.query(`DELETE FROM keyturn.member`);
    await shop.rotate();
    const report = await runner.finish(run);
    expect(report).toMatchObject({ state: 'failed', held_back_by: 'the active key changed to 3; start it again' });
  });
});

describe('the second scan of a run', () => {
  test('stale cells found by it are moved in a second round, rows behind the frozen bound included', async () => {
    const run = await shop.order();
    await moveUntil(run, 'running');
    await shop.query(`INSERT INTO customer (id, tenant_id, email) VALUES (9999, 'tenant-1', $1)`, [
      under1[0]?.['email'],
    ]);
    await moveUntil(run, 'verifying');
    await putBack(4);
    const report = await runner.finish(run);
    // Row 9999 holds a copied value, which decrypts nowhere but in row 1.
    expect(report).toMatchObject({
      state: 'completed_with_failures',
      round: 1,
      rows_updated: rows + 4,
      fields_stale: 0,
    });
    expect(report.failures).toEqual([
      { target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 1, cells: 1 },
    ]);
    const rounds = await shop.query(
      `SELECT after ->> 'round' AS round, reason FROM keyturn.audit WHERE action = 'run.running' ORDER BY id`,
    );
    expect(rounds).toEqual([
      { round: '0', reason: null },
      { round: '1', reason: '5 stale cells found' },
    ]);
    await shop.query('DELETE FROM customer WHERE id = 9999');
    const keyturn = await shop.open();
    expect(await findDifferences(shop, keyturn)).toEqual([]);
    await keyturn.close();
    expect(await runner.finish(await shop.order({ kind: 'verify', deep: true }))).toMatchObject({ state: 'succeeded' });
  });

  test('a writer that never stops using the old key ends the run after three rounds, with the count of what is left', async () => {
    const run = await shop.order();
    for (const _ of [0, 1, 2, 3]) {
      await moveUntil(run, 'verifying');
      await putBack(2);
      while ((await showRun(shop.control.context, run)).state === 'verifying') await runner.step(run);
    }
    expect(await showRun(shop.control.context, run)).toMatchObject({
      state: 'completed_with_failures',
      round: 3,
      fields_stale: 2,
      held_back_by: '2 stale cells',
      verified_at: null,
    });
  });

  test('quarantined cells do not count as stale again: the run ends in its first round', async () => {
    const [row] = await shop.query('SELECT email FROM customer WHERE id = 5');
    await shop.query('UPDATE customer SET email = $1 WHERE id = 5', [damage.bitFlipped(String(row?.['email']))]);
    const report = await runner.finish(await shop.order({ deep: true }));
    expect(report).toMatchObject({
      state: 'completed_with_failures',
      round: 0,
      fields_stale: 0,
      fields_failed: 1,
      failures: [{ cause: 'AUTHENTICATION_FAILED', cells: 1 }],
    });
  });
});
