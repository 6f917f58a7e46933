// The active key changes while a run is on: the run goes on to the newest key, and what its scan has compared with the
// older one does not count. Driven by hand, since the moment matters; the queue plays no part in it.
import { expect, test } from 'vitest';
import { showRun } from '../../src/control/runs.js';
import { branchCells, branchTables, findWrongLetters, openBranchShop } from '../support/branches.js';
import { driveByHand, openBareWorker, type BareWorker, type HandDriven } from '../support/by-hand.js';
import { countRewrites, findImbalances } from '../support/ledger.js';
import type { Shop } from '../support/shop.js';

async function countDone(shop: Shop, kind: 'reencrypt' | 'verify'): Promise<number> {
  return (await shop.query(`SELECT 1 FROM keyturn.batch WHERE kind = $1 AND state = 'done'`, [kind])).length;
}

/** Steps and works until so many batches of a kind are done, and not a step further. */
async function driveUntilDone(
  shop: Shop,
  driven: HandDriven,
  worker: BareWorker,
  kind: 'reencrypt' | 'verify',
  batches: number,
): Promise<void> {
  while ((await countDone(shop, kind)) < batches) {
    const [job] = await driven.dispatch(1);
    if (job === undefined) await driven.step();
    else await worker.work(job);
  }
}

const moments = [
  { when: 'in the middle of its moving', kind: 'reencrypt', batches: 5 },
  { when: 'in the middle of its scan', kind: 'verify', batches: 5 },
  { when: 'after the last batch of its scan', kind: 'verify', batches: branchTables.length },
] as const;

for (const { when, kind, batches } of moments) {
  test(`a run whose active key changes ${when} succeeds only with every cell under the newest key`, async ({
    onTestFinished,
  }) => {
    const shop = await openBranchShop({ backend: 'postgres' });
    onTestFinished(() => shop.close());
    const run = await shop.order();
    const driven = driveByHand(shop, run);
    onTestFinished(() => driven.close());
    const early = await openBareWorker(shop);
    await driveUntilDone(shop, driven, early, kind, batches);
    await early.close();

    const newest = await shop.rotate();
    const late = await openBareWorker(shop);
    onTestFinished(() => late.close());
    expect(await driven.finish(late)).toMatchObject({ state: 'succeeded', targetKeyId: newest });
    expect(await showRun(shop.control.context, run)).toMatchObject({
      target_key_id: newest,
      fields_stale: 0,
      fields_failed: 0,
    });
    const reader = await shop.open();
    for (const table of branchTables) {
      const column = reader.column(`public.${table}`, 'letter');
      for (const row of await shop.query(`SELECT id, letter FROM ${table}`)) {
        expect((await column.decrypt({ pk: Number(row['id']) }, String(row['letter']))).keyId).toBe(newest);
      }
    }
    expect(await findWrongLetters(shop, reader)).toEqual([]);
    expect(await findImbalances(shop)).toEqual([]);
    // Once to the key of the order, once to the newest.
    expect(await countRewrites(shop)).toEqual({ rows: branchCells, most: 2 });
  });
}
