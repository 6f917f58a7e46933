// Workers killed with SIGKILL at every point where a crash could lose or double something. After each death every value
// decrypts, the numbers in the database agree with each other, and another worker finishes what is left.
import { describe, expect, test, vi } from 'vitest';
import type { BatchPoint } from '../../src/engine/services.js';
import { availableBackends } from '../support/backends.js';
import { countRewrites, findImbalances, witnessOf } from '../support/ledger.js';
import { memberIdOf, passLease, startWorkerProcess, waitForDeath } from '../support/processes.js';
import {
  customer,
  customerTable,
  findDifferences,
  insertCustomers,
  openShop,
  type Backend,
  type Shop,
} from '../support/shop.js';

vi.setConfig({ testTimeout: 240_000 });

const ids = Array.from({ length: 300 }, (_, at) => at + 1);
const cells = ids
  .map(customer)
  .flatMap(({ email, phone, ssn, iban }) => [email, phone, ssn, iban].filter((value) => value !== null)).length;

interface Death {
  readonly when: string;
  readonly point: BatchPoint;
  readonly time: number;
  /** Slices committed by then; undefined for all of the one batch. */
  readonly slices: number | undefined;
}

const deaths: readonly Death[] = [
  { when: 'before the write', point: 'batch.before_update', time: 2, slices: 1 },
  { when: 'before the commit', point: 'batch.before_commit', time: 2, slices: 1 },
  { when: 'after the commit', point: 'batch.after_commit', time: 2, slices: 2 },
  { when: 'before the acknowledgement', point: 'batch.before_ack', time: 1, slices: undefined },
];

/** Customers under an older key, their rewrites witnessed. */
async function openFilledShop(backend: Backend): Promise<Shop> {
  const shop = await openShop({ backend, ddl: [customerTable, ...witnessOf('customer')] });
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, ids);
  await keyturn.close();
  await shop.rotate();
  return shop;
}

/** What the ledger knows at the moment of death. */
async function readLedger(shop: Shop): Promise<{ slices: number; rows: number }> {
  const [row] = await shop.query(
    'SELECT count(*)::int AS slices, coalesce(sum(rows_updated), 0)::int AS rows FROM keyturn.ledger',
  );
  return { slices: Number(row?.['slices']), rows: Number(row?.['rows']) };
}

describe.concurrent.each(availableBackends())('crashing over the %s queue', (backend) => {
  for (const { when, point, time, slices } of deaths) {
    test(`I3 I4 a worker killed ${when} loses nothing and nothing is done twice [${backend}]`, async ({
      onTestFinished,
    }) => {
      const shop = await openFilledShop(backend);
      onTestFinished(() => shop.close());
      const run = await shop.order();
      await shop.startSupervisor();

      const doomed = startWorkerProcess(shop, { point, time, signal: 'SIGKILL' });
      await waitForDeath(doomed);
      const reader = await shop.open();
      expect(await findDifferences(shop, reader)).toEqual([]);
      expect(await findImbalances(shop)).toEqual([]);
      const ledger = await readLedger(shop);
      expect(await countRewrites(shop)).toEqual({ rows: ledger.rows, most: 1 });
      expect(ledger).toMatchObject(slices === undefined ? { rows: ids.length } : { slices });
      // Of a batch that was settled only the acknowledgement is missing; any other is still in the dead worker's hands.
      expect(await passLease(shop, await memberIdOf(shop, doomed))).toBe(slices === undefined ? 0 : 1);

      await shop.startWorker();
      expect(await shop.waitForRun(run)).toMatchObject({
        state: 'succeeded',
        rows_examined: ids.length,
        rows_updated: ids.length,
        fields_examined: cells,
        fields_reencrypted: cells,
        fields_conflicted: 0,
        fields_failed: 0,
        fields_stale: 0,
      });
      expect(await findDifferences(shop, reader)).toEqual([]);
      expect(await findImbalances(shop)).toEqual([]);
      expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
    });
  }

  test(`a batch whose worker was killed three times running, before its first commit, is finished by the fourth [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openFilledShop(backend);
    onTestFinished(() => shop.close());
    const run = await shop.order();
    await shop.startSupervisor();
    for (let death = 1; death <= 3; death++) {
      const doomed = startWorkerProcess(shop, { point: 'batch.before_update', time: 1, signal: 'SIGKILL' });
      await waitForDeath(doomed);
      expect(await passLease(shop, await memberIdOf(shop, doomed))).toBe(1);
    }
    await shop.startWorker();
    const report = await shop.waitForRun(run);
    expect(report).toMatchObject({ state: 'succeeded', rows_updated: ids.length, fields_reencrypted: cells });
    expect(await findDifferences(shop, await shop.open())).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
    expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
  });
});
