// Every statement of the verbs that make and turn keys fails once; test/integration/failing-statements.test.ts has some of them.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { failingVerbs, failStatements } from '../support/failing-verbs.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
beforeAll(async () => {
  shop = await openShop();
});
afterAll(() => shop.close());

test.each(failingVerbs)(
  'I5 I10 whichever statement of $verb fails, it leaves before or after, and the repeated command ends well',
  async (failing) => {
    expect(await failStatements(shop, failing, { from: 1, step: 1 })).toBeGreaterThan(5);
  },
  240_000,
);
