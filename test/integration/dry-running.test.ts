// A dry run counts exactly what the run would do, and writes nothing to any application table.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { RunReport } from '../../src/control/runs.js';
import { damage } from '../support/damage.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import { insertCustomers, openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

let shop: Shop;
let runner: DirectRunner;

beforeAll(async () => {
  shop = await openShop();
  let keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: 300 }, (_, at) => at + 1),
  );
  await keyturn.close();
  await shop.rotate();
  // Rows that are under the new key already, and cells that no key opens.
  keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: 50 }, (_, at) => at + 301),
  );
  await keyturn.close();
  const [row] = await shop.query('SELECT email FROM customer WHERE id = 5');
  await shop.query('UPDATE customer SET email = $1 WHERE id = 5', [damage.bitFlipped(String(row?.['email']))]);
  await shop.query(`UPDATE customer SET email = 'in clear' WHERE id = 305`);
  runner = await startDirectRunner(shop);
});

afterAll(async () => {
  await runner.close();
  await shop.close();
});

/** What a run did, without what differs from run to run. */
function deedsOf(report: RunReport): Partial<RunReport> {
  const {
    rows_examined,
    rows_updated,
    rows_skipped_all_on_target,
    rows_conflicted,
    rows_failed,
    fields_examined,
    fields_reencrypted,
    fields_skipped_on_target,
    fields_conflicted,
    fields_failed,
    fields_settled,
    failures,
    target_key_id,
    state,
  } = report;
  return {
    rows_examined,
    rows_updated,
    rows_skipped_all_on_target,
    rows_conflicted,
    rows_failed,
    fields_examined,
    fields_reencrypted,
    fields_skipped_on_target,
    fields_conflicted,
    fields_failed,
    fields_settled,
    failures,
    target_key_id,
    state,
  };
}

describe('a dry run', () => {
  test('rewrites no row, and its counts are those of the run that follows', async () => {
    const before = await imageOf(shop, 'public');
    const dry = await runner.finish(await shop.order({ kind: 'dry_run' }));
    expect(dry).toMatchObject({
      kind: 'dry_run',
      state: 'completed_with_failures',
      rows_examined: 350,
      rows_updated: 299,
      rows_failed: 2,
      verified_at: null,
    });
    expect(await imageOf(shop, 'public')).toEqual(before);

    const real = await runner.finish(await shop.order());
    expect(deedsOf(real)).toEqual(deedsOf(dry));
    expect(await imageOf(shop, 'public')).not.toEqual(before);

    const after = await runner.finish(await shop.order({ kind: 'dry_run' }));
    expect(after).toMatchObject({
      rows_examined: 350,
      rows_updated: 0,
      rows_skipped_all_on_target: 348,
      rows_failed: 2,
      fields_reencrypted: 0,
    });
  });

  test('fires no trigger, and says toward which key it counted', async () => {
    await runner.close();
    const keyId = await shop.rotate();
    runner = await startDirectRunner(shop);
    // An UPDATE would fail here, whatever it wrote.
    await shop.query(
      `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no updates'; END $$`,
    );
    await shop.query('CREATE TRIGGER refuse BEFORE UPDATE ON customer FOR EACH STATEMENT EXECUTE FUNCTION refuse()');
    const dry = await runner.finish(await shop.order({ kind: 'dry_run' }));
    expect(dry).toMatchObject({
      target_key_id: keyId,
      rows_examined: 350,
      rows_updated: 348,
      rows_failed: 2,
      failures: [{ cause: 'AUTHENTICATION_FAILED' }, { cause: 'NOT_AN_ENVELOPE' }],
    });
  });
});
