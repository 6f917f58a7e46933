// The root key goes there and back, again and again, while a fleet works and is restarted one process at a time; some changes
// are given up. Not one operation fails, and in the end one root key opens everything.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { rotateKey } from '../../src/control/keys.js';
import { finalizeRoot, prepareRoot, rollbackRoot } from '../../src/control/roots.js';
import type { Child } from '../support/child.js';
import { startRootedApp, stopRootedApp } from '../support/rooted-apps.js';
import { nextUri, openRootedShop, type RootedShop } from '../support/roots.js';
import { insertCustomers } from '../support/shop.js';

const rounds = 8;
const fleet = 4;
const presentUri = 'env:KEYTURN_ROOT_KEY';
const quiet = { without: [], reason: 'chaos' };

let rooted: RootedShop;

beforeAll(async () => {
  rooted = await openRootedShop();
  const keyturn = await rooted.open('present');
  await insertCustomers(
    rooted.shop,
    keyturn,
    Array.from({ length: (rounds + 1) * (fleet + 1) }, (_, at) => at + 1),
  );
  await keyturn.close();
});
afterAll(() => rooted.close());

test('a fleet lives through root changes there and back, given up and finalized, with new data keys in between', async () => {
  let nextCustomer = 1;
  const start = (roots: 'both' | 'present' | 'next'): Promise<Child> => startRootedApp(rooted, nextCustomer++, roots);
  const patient = (): RootedShop['context'] => ({ ...rooted.control().context, patienceMs: 20_000 });
  let apps = await Promise.all(Array.from({ length: fleet }, () => start('both')));
  let operations = 0;
  for (let round = 0; round < rounds; round++) {
    const to = round % 2 === 0 ? nextUri : presentUri;
    const target = { to, keyring: undefined, reason: 'chaos' };
    await prepareRoot(patient(), target);
    if (round % 3 === 0) {
      await rollbackRoot(patient(), quiet);
      await prepareRoot(patient(), target);
    }
    await rotateKey(patient(), { keyring: undefined, ifOlderThanMs: undefined, reason: 'chaos' });
    const restarted: Child[] = [];
    for (const [at, app] of apps.entries()) {
      restarted.push(await start(at === 0 ? (to === nextUri ? 'next' : 'present') : 'both'));
      operations += await stopRootedApp(app);
    }
    apps = restarted;
    expect(await finalizeRoot(patient(), quiet)).toMatchObject({ outcome: 'finalized' });
    // The one that knows a single root key is replaced, since the next change is away from it.
    const [single, ...others] = apps;
    const replacement = round === rounds - 1 ? undefined : await start('both');
    if (single !== undefined && replacement !== undefined) {
      operations += await stopRootedApp(single);
      apps = [replacement, ...others];
    }
  }
  for (const app of apps) operations += await stopRootedApp(app);
  expect(operations).toBeGreaterThan(rounds * fleet);
  expect(
    await rooted.shop.query(
      'SELECT count(DISTINCT root_key_id)::int AS roots, count(*)::int AS wraps FROM keyturn.data_key_wrap',
    ),
    // Of the first data key, one from each round, the standby and the audit key.
  ).toEqual([{ roots: 1, wraps: rounds + 3 }]);
});
