// Workers killed with SIGKILL at every point where a crash could lose or double something, while the application goes on
// writing. After each death every cell decrypts to the last acknowledged write, the numbers in the database agree with each
// other, and another worker finishes what is left.
import { describe, expect, test, vi } from 'vitest';
import type { BatchPoint } from '../../src/engine/services.js';
import { availableBackends } from '../support/backends.js';
import { openFilledShop } from '../support/filled-shop.js';
import { countRewrites, findImbalances } from '../support/ledger.js';
import { memberIdOf, passLease, startWorkerProcess, waitForDeath } from '../support/processes.js';
import { startSteadyWriter, type SteadyWriter } from '../support/steady-writer.js';
import { customer, findDifferences, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

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

/** What the ledger knows at the moment of death. */
async function readLedger(shop: Shop): Promise<{ slices: number; rows: number; conflicted: number }> {
  const [row] = await shop.query(
    `SELECT count(*)::int AS slices, coalesce(sum(rows_updated), 0)::int AS rows,
       coalesce(sum(rows_conflicted), 0)::int AS conflicted FROM keyturn.ledger`,
  );
  return { slices: Number(row?.['slices']), rows: Number(row?.['rows']), conflicted: Number(row?.['conflicted']) };
}

async function untilWritten(writer: SteadyWriter): Promise<void> {
  const before = writer.count();
  await until(async () => writer.count() > before + 3, {
    what: 'the application to go on writing',
    deadlineMs: 10_000,
  });
}

describe.concurrent.each(availableBackends())('crashing over the %s queue', (backend) => {
  for (const { when, point, time, slices } of deaths) {
    test(`I3 I4 a worker killed ${when} loses nothing and nothing is done twice [${backend}]`, async ({
      onTestFinished,
    }) => {
      const shop = await openFilledShop({ backend, ids });
      onTestFinished(() => shop.close());
      const run = await shop.order();
      await shop.startSupervisor();

      const keyturn = await shop.open();
      const writer = startSteadyWriter(shop, keyturn, ids);
      onTestFinished(() => writer.rest());
      const doomed = startWorkerProcess(shop, { point, time, signal: 'SIGKILL' });
      await waitForDeath(doomed);
      await untilWritten(writer);
      await writer.rest();
      expect(await findDifferences(shop, keyturn, writer.expected)).toEqual([]);
      expect(await findImbalances(shop)).toEqual([]);
      const { slices: committed, rows, conflicted } = await readLedger(shop);
      expect(await countRewrites(shop)).toEqual({ rows, most: 1 });
      expect(slices === undefined ? rows + conflicted : committed).toBe(slices ?? ids.length);
      // Of a batch that was settled only the acknowledgement is missing; any other is still in the dead worker's hands.
      expect(await passLease(shop, await memberIdOf(shop, doomed))).toBe(slices === undefined ? 0 : 1);

      writer.goOn();
      await untilWritten(writer);
      await shop.startWorker();
      const report = await shop.waitForRun(run);
      await writer.rest();
      // What the application has brought to the new key itself is current; everything else is moved, and once.
      expect(report).toMatchObject({
        state: 'succeeded',
        rows_examined: ids.length + report.rows_conflicted,
        rows_updated: ids.length,
        fields_settled: cells,
        fields_reencrypted: cells - report.fields_skipped_on_target,
        fields_failed: 0,
        fields_stale: 0,
      });
      expect(await findDifferences(shop, keyturn, writer.expected)).toEqual([]);
      expect(await findImbalances(shop)).toEqual([]);
      expect(await countRewrites(shop)).toEqual({ rows: ids.length, most: 1 });
    });
  }

  test(`a batch whose worker was killed three times running, before its first commit, is finished by the fourth [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openFilledShop({ backend, ids });
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
