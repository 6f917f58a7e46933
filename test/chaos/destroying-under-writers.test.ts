// The large form of what test/integration/destroying-keys.test.ts shows of a few interleavings. KEYTURN_SEED repeats one.
import { expect, test } from 'vitest';
import { createPerson } from '../support/ending-keys.js';
import { raceDestruction } from '../support/racing-destruction.js';
import { openShop, shopConfig } from '../support/shop.js';

const interleavings = 1_000;
/** Every retired key stays in the fence, so a database that has seen hundreds of them would grow slow. */
const perShop = 40;

test('I6 a key is never gone while an envelope names it, in 1,000 random interleavings', {
  timeout: 3_600_000,
}, async () => {
  const seed = Number(process.env['KEYTURN_SEED'] ?? Math.floor(Math.random() * 2 ** 31));
  let [destroyed, refused, turnedAway] = [0, 0, 0];
  for (let done = 0; done < interleavings; done += perShop) {
    const shop = await openShop();
    const [ada, bob] = [await createPerson(shop, shopConfig), await createPerson(shop, shopConfig)];
    const ends = await raceDestruction({ shop, ada, bob }, { interleavings: perShop, seed: seed + done });
    expect(ends.violations).toEqual([]);
    destroyed += ends.destroyed;
    refused += ends.refused;
    turnedAway += ends.turnedAway;
    for (const person of [ada, bob]) await person.leave();
    await shop.close();
    for (const person of [ada, bob]) await person.role.drop();
  }
  expect(destroyed).toBeGreaterThan(interleavings / 10);
  expect(refused).toBeGreaterThan(interleavings / 10);
  expect(turnedAway).toBeGreaterThan(interleavings / 10);
});
