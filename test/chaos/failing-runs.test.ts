// Every statement of the verbs that order and steer runs fails once.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { failingRotation, failingRuns } from '../support/failing-runs.js';
import { failStatements } from '../support/failing-verbs.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
beforeEach(async () => {
  shop = await openShop();
});
afterEach(() => shop.close());

test.each(failingRuns)(
  'I10 whichever statement of $verb fails, it leaves before or after, and the repeated command orders no second run',
  async (failing) => {
    expect(await failStatements(shop, failing, { from: 1, step: 1 })).toBeGreaterThan(5);
  },
);

// Each time leaves a key behind, so a database that has seen all of them would grow slow.
const step = 4;

test.each(Array.from({ length: step }, (_, at) => at + 1))(
  'I5 I10 statement %i of key rotate --reencrypt fails, or every fourth after it: before or after, and repeated it makes no second key or run',
  async (from) => {
    expect(await failStatements(shop, failingRotation, { from, step })).toBeGreaterThan(60);
  },
);
