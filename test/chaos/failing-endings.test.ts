// Every statement of the verbs that end a key fails once; test/integration/destroying-keys.test.ts takes some of them.
import { expect, test } from 'vitest';
import { createPerson } from '../support/ending-keys.js';
import { failEndings, failRetirement } from '../support/failing-endings.js';
import { openShop, shopConfig } from '../support/shop.js';

const every = { from: 1, step: 1 };

test('I6 a failure of any statement of retire, restore, a request, its cancellation or its approval leaves before or after', async () => {
  const shop = await openShop();
  const [ada, bob] = [await createPerson(shop, shopConfig), await createPerson(shop, shopConfig)];
  expect(await failRetirement({ shop, ada, bob }, every)).toBeGreaterThan(20);
  expect(await failEndings({ shop, ada, bob }, every)).toBeGreaterThan(20);
  for (const person of [ada, bob]) await person.leave();
  await shop.close();
  for (const person of [ada, bob]) await person.role.drop();
});
