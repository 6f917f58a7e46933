import { afterEach, expect, test } from 'vitest';
import { insertBatch } from '../../src/store/batches.js';
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
