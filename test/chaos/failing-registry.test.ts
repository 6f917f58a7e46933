// Every statement of the verbs that change what is registered and how it is treated fails once.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { retiredKey } from '../support/ending-keys.js';
import { failingInit, failingRegistry, registryConfig, registryDdl } from '../support/failing-registry.js';
import { failStatements } from '../support/failing-verbs.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
beforeEach(async () => {
  shop = await openShop({ config: registryConfig, ddl: registryDdl });
  // So that there is a fence.
  await retiredKey(shop);
});
afterEach(() => shop.close());

test.each(failingRegistry)(
  'I6 I10 whichever statement of $verb fails, it leaves before or after, and the repeated command ends well',
  async (failing) => {
    expect(await failStatements(shop, failing, { from: 1, step: 1 })).toBeGreaterThan(4);
  },
);

test('I6 I10 whichever statement of an init with another table fails, it leaves before or after, and the repeated command ends well', async () => {
  expect(await failStatements(shop, failingInit, { from: 1, step: 1 })).toBeGreaterThan(100);
});
