// Plaintext that an older version of the application writes into a column after init, which saw an empty table and had
// nothing to adopt: doctor and status say so before a run comes upon it.
import { describe, expect, test, type TestContext } from 'vitest';
import { openControl } from '../../src/app.js';
import { finalizeMove, prepareMove } from '../../src/control/adopt.js';
import { examineEverything } from '../../src/control/doctor.js';
import { readStatus } from '../../src/control/status.js';
import type { Finding } from '../../src/engine/preflight.js';
import { runCapturedWith } from '../cli/captured.js';
import { startDirectRunner } from '../support/direct-run.js';
import { findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';

const encrypted = [1, 2, 3, 4];

async function openEmpty({ onTestFinished }: TestContext, options?: Parameters<typeof openShop>[0]): Promise<Shop> {
  const shop = await openShop(options);
  onTestFinished(() => shop.close());
  return shop;
}

async function findValues(shop: Shop): Promise<readonly Finding[]> {
  return (await examineEverything(shop.control.context)).filter(({ check }) => check === 'values');
}

async function statusOf(shop: Shop): Promise<unknown> {
  return (await readStatus(shop.control.context)).keyrings[0]?.not_envelopes;
}

async function insertThroughKeyturn(shop: Shop): Promise<void> {
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, encrypted);
  await keyturn.close();
}

/** What a version from before Keyturn inserts. */
async function insertPlain(shop: Shop): Promise<void> {
  await shop.query(
    `INSERT INTO customer (id, tenant_id, email, phone, profile) VALUES
       (91, 'a', 'ada@example.com', '\\x2b3439', '{"ssn": "123", "bank": {"iban": null}}'),
       (92, 'a', 'eve@example.com', NULL, '{"ssn": 456}')`,
  );
}

describe('values that are no envelopes', () => {
  test('written after init of an empty table are warned of per column, in words that name a remedy but no value (I7)', async (context) => {
    const shop = await openEmpty(context);
    expect(await findValues(shop)).toEqual([]);
    await insertThroughKeyturn(shop);
    expect(await findValues(shop)).toEqual([]);
    expect(await statusOf(shop)).toEqual([]);
    await insertPlain(shop);
    const seen = [
      { column: 'public.customer.email', cells: encrypted.length + 2, not_envelopes: 2 },
      { column: 'public.customer.phone', cells: encrypted.length + 1, not_envelopes: 1 },
      { column: 'public.customer.profile.ssn', cells: encrypted.length + 2, not_envelopes: 2 },
    ].map((column) => ({ ...column, is_exact: true }));
    expect(await statusOf(shop)).toEqual(seen);
    expect(await findValues(shop)).toEqual(
      seen.map(({ column, cells, not_envelopes: others }) => ({
        level: 'warn',
        check: 'values',
        subject: column,
        reason: `${others} of its ${cells} values are no envelopes: an application that does not encrypt writes them, or they were damaged; a run puts them into quarantine`,
        remedy: expect.stringMatching(/keyturn adopt; keyturn target census/) as string,
      })),
    );
    const surroundings = { environment: shop.environment(), openControl };
    for (const command of ['status', 'doctor']) {
      const { stdout } = await runCapturedWith(surroundings, command);
      expect(stdout).toMatch(/2 of (its )?6 .*no envelopes/);
      expect(stdout).not.toMatch(/example\.com|456/);
    }
  });

  test('in a table of many pages are seen in a sample, and the words say that it is one', async (context) => {
    const shop = await openEmpty(context);
    await shop.query('ALTER TABLE customer ADD filler text');
    await shop.query('ALTER TABLE customer ALTER filler SET STORAGE PLAIN');
    const rows = 2_000;
    await shop.query(
      `INSERT INTO customer (id, tenant_id, email, filler) SELECT id, 'a', 'plain', repeat('x', 6000) FROM generate_series(1, $1::int) id`,
      [rows],
    );
    const [seen] = (await statusOf(shop)) as { cells: number; not_envelopes: number }[];
    expect(seen).toMatchObject({ column: 'public.customer.email', is_exact: false, not_envelopes: seen?.cells });
    expect(seen?.cells).toBeGreaterThan(0);
    expect(seen?.cells).toBeLessThan(rows);
    const [finding] = await findValues(shop);
    expect(finding?.reason).toMatch(/^(\d+) of \1 values in a sample of its pages are no envelopes/);
    const { stdout } = await runCapturedWith({ environment: shop.environment(), openControl }, 'status');
    expect(stdout).toMatch(/of [\d ,]+ in a sample of public\.customer\.email are no envelopes/);
  });

  test('are moved by adopting their column beside the envelopes that are there, and warned of no longer', async (context) => {
    const shop = await openEmpty(context);
    await insertThroughKeyturn(shop);
    await shop.query(`INSERT INTO customer (id, tenant_id, email) VALUES (5, 'tenant-2', 'customer-5@example.com')`);
    expect(await findValues(shop)).toMatchObject([{ subject: 'public.customer.email' }]);
    const email = { target: 'customer', column: 'email', reason: 'an old version' };
    await prepareMove(shop.control.context, {
      ...email,
      move: 'adopting',
      format: 'plaintext',
      secretUri: undefined,
    });
    expect(await findValues(shop)).toEqual([]);
    const runner = await startDirectRunner(shop);
    context.onTestFinished(() => runner.close());
    expect(await runner.finish(await shop.order())).toMatchObject({ state: 'succeeded', fields_failed: 0 });
    expect(await finalizeMove(shop.control.context, email)).toMatchObject({ state: 'adopted' });
    expect(await findValues(shop)).toEqual([]);
    expect(await findDifferences(shop, await shop.open())).toEqual(
      // What the old version did not write.
      ['row 5 phone', 'row 5 ssn', 'row 5 iban'],
    );
  });
});
