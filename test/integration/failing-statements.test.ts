// I10 the verbs that make and turn keys, with some statements of each failing; all of them in test/chaos.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { failingVerbs, failStatements } from '../support/failing-verbs.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
beforeAll(async () => {
  shop = await openShop();
});
afterAll(() => shop.close());

/** Without those that make many statements; test/chaos has them too. */
const quick = failingVerbs.filter(({ verb }) => !/^init|suspect/.test(verb));
const step = 11;
const from = 1 + Math.floor(Math.random() * step);

test.each(quick)(
  'I5 I10 some failing statements of $verb leave before or after, and the repeated command ends well',
  async (failing) => {
    process.stdout.write(`statements ${from}, ${from + step}, … of ${failing.verb} fail\n`);
    expect(await failStatements(shop, failing, { from, step })).toBeGreaterThan(5);
  },
);
