import { afterEach, describe, expect, test } from 'vitest';
import { availableBackends } from '../support/backends.js';
import { findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, at) => from + at);
}

describe.each(availableBackends())('reencrypting over the %s queue', (backend) => {
  let shop: Shop;
  afterEach(() => shop.close());

  test(`I3 I4 every cell of every row moves to the new key and decrypts to what was written [${backend}]`, async () => {
    shop = await openShop({ backend });
    const keyturn = await shop.open();
    await insertCustomers(shop, keyturn, range(1, 500));
    await keyturn.close();
    const keyId = await shop.rotate();
    await shop.startSupervisor();
    await shop.startWorker();
    const report = await shop.waitForRun(await shop.order());
    expect(report).toMatchObject({
      state: 'succeeded',
      target_key_id: keyId,
      rows_examined: 500,
      rows_updated: 500,
      rows_failed: 0,
      rows_conflicted: 0,
      fields_stale: 0,
    });
    const again = await shop.open();
    expect(await findDifferences(shop, again)).toEqual([]);
  });
});
