// What becomes of cells in quarantine: an operator finds their rows; a visit that settles them resolves them; an operator may
// declare them dealt with, which never lets a key retire that a cell still names.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { retire } from '../../src/control/keys.js';
import { beginRetry, listQuarantine, resolveQuarantined, type QuarantineFilter } from '../../src/control/quarantine.js';
import { runCapturedWith } from '../cli/captured.js';
import { damage } from '../support/damage.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import { customer, insertCustomers, openShop, type Shop } from '../support/shop.js';

const noSupply = { require: async () => undefined, start: async () => undefined };
const all: QuarantineFilter = { run: undefined, target: undefined, cause: undefined };

let shop: Shop;
let runner: DirectRunner;
let run: number;

const idsInQuarantine = async (filter: Partial<QuarantineFilter> = {}): Promise<string[]> =>
  (await listQuarantine(shop.control.context, { ...all, ...filter }, 100)).rows
    .map((row) => `${String(row.primary_key['id'])} ${row.field}`)
    .toSorted((a, b) => parseInt(a, 10) - parseInt(b, 10));

beforeAll(async () => {
  shop = await openShop();
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: 20 }, (_, at) => at + 1),
  );
  await keyturn.close();
  for (const id of [1, 2, 3, 4, 5]) {
    const [row] = await shop.query('SELECT email FROM customer WHERE id = $1', [id]);
    const stored = String(row?.['email']);
    await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [
      id,
      id === 5 ? damage.namingKey(stored, 99) : damage.bitFlipped(stored),
    ]);
  }
  await shop.rotate();
  runner = await startDirectRunner(shop);
  run = await shop.order();
  await runner.finish(run);
});

afterAll(async () => {
  await runner.close();
  await shop.close();
});

describe('cells in quarantine', () => {
  test('are listed with column, cause, key, count and the primary key, filtered by run, target and cause', async () => {
    const listing = await listQuarantine(shop.control.context, { ...all, run, target: 'customer' }, 2);
    expect(listing).toMatchObject({
      cells: 5,
      failures: [
        { target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 1, cells: 4 },
        { target: 'public.customer', field: 'email', cause: 'UNKNOWN_KEY', key_id: 99, cells: 1 },
      ],
    });
    expect(listing.rows.length).toBe(2);
    expect(await idsInQuarantine({ cause: 'UNKNOWN_KEY' })).toEqual(['5 email']);
    expect(await idsInQuarantine({ cause: 'MALFORMED' })).toEqual([]);
    await expect(listQuarantine(shop.control.context, { ...all, run: 99 }, 1)).rejects.toMatchObject({
      code: 'RUN_NOT_FOUND',
    });
    await expect(listQuarantine(shop.control.context, { ...all, target: 'nowhere' }, 1)).rejects.toMatchObject({
      code: 'TARGET_NOT_FOUND',
    });
  });

  test('are shown on the terminal with their rows, their remedies and the next command', async () => {
    const { code, stdout } = await runCapturedWith(
      { environment: shop.environment(), openControl },
      'quarantine',
      'list',
      '--run',
      String(run),
    );
    expect(code).toBe(0);
    for (const words of ['5 cells in quarantine', 'id=5', 'key 99', 'UNKNOWN_KEY: ', 'keyturn quarantine retry'])
      expect(stdout).toContain(words);
  });

  test('are resolved by the run that finds them rewritten by the application, and one that fails again stays one cell', async () => {
    const keyturn = await shop.open();
    await shop.query('UPDATE customer SET email = $1 WHERE id = 1', [
      await keyturn.column('customer', 'email').encrypt({ pk: 1, scope: customer(1).tenant }, 'new@example.com'),
    ]);
    await shop.query('UPDATE customer SET email = NULL WHERE id = 2');
    await keyturn.close();
    const again = await runner.finish(await shop.order());
    expect(again).toMatchObject({ state: 'completed_with_failures', fields_failed: 3 });
    expect(await idsInQuarantine()).toEqual(['3 email', '4 email', '5 email']);
    // Two entries each by now, of two runs.
    expect((await listQuarantine(shop.control.context, all, 100)).cells).toBe(3);
  });

  test('are resolved by a retry that finds their rows gone; the others are visited and no cell besides', async () => {
    await shop.query('DELETE FROM customer WHERE id = 3');
    const begun = await beginRetry(shop.control.context, { ...all, reason: 'rows cleaned up' }, noSupply);
    const retried = await runner.finish(begun.report.run_id);
    expect(retried).toMatchObject({ state: 'completed_with_failures', fields_examined: 2, fields_failed: 2 });
    expect(await idsInQuarantine()).toEqual(['4 email', '5 email']);
  });

  test('I6 keep every key of their keyring from being retired, and declared dealt with still keep the one they name', async () => {
    const { context } = shop.control;
    await expect(retire(context, undefined, 'v1', undefined)).rejects.toMatchObject({
      code: 'KEY_IN_USE',
      message: expect.stringContaining('2 cells of its keyring are in quarantine') as string,
    });
    await expect(resolveQuarantined(context, { ...all, reason: 'all' })).rejects.toMatchObject({ code: 'USAGE' });
    expect(await resolveQuarantined(context, { ...all, target: 'customer', reason: 'test rows' })).toEqual({
      cells: 2,
    });
    expect(await idsInQuarantine()).toEqual([]);
    await expect(resolveQuarantined(context, { ...all, run, reason: 'again' })).rejects.toMatchObject({
      code: 'QUARANTINE_EMPTY',
    });
    await expect(beginRetry(context, { ...all, reason: undefined }, noSupply)).rejects.toMatchObject({
      code: 'QUARANTINE_EMPTY',
    });
    await expect(retire(context, undefined, 'v1', undefined)).rejects.toMatchObject({
      code: 'KEY_IN_USE',
      message: expect.stringContaining('is still named by 1 cells of public.customer.email') as string,
    });
    await shop.query('DELETE FROM customer WHERE id IN (4, 5)');
    await retire(context, undefined, 'v1', undefined);
  });

  test('I7 I10 leave one record of being declared, with a reason and without keys of rows', async () => {
    expect(
      await shop.query(`SELECT object, reason, after FROM keyturn.audit WHERE action = 'quarantine.resolve'`),
    ).toEqual([
      {
        object: 'quarantine',
        reason: 'test rows',
        after: { cells: 2, target: 'customer', cause: 'any' },
      },
    ]);
  });
});
