// key compromise killed at each of its steps: the repeated command goes on, and never makes a second key.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startDirectRunner } from '../support/direct-run.js';
import { killAtRecord } from '../support/killed-command.js';
import { findDifferences, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';

let shop: Shop;
let keyturn: KeyturnProcess;
const command = ['key', 'compromise', 'v1', '--root-suspect', '--reason', 'leaked'];

beforeAll(async () => {
  shop = await openShop();
  keyturn = openKeyturnProcess(shop, shopConfig);
});
afterAll(async () => {
  keyturn.remove();
  await shop.close();
});

const killAt = (action: string): Promise<void> => killAtRecord(shop, keyturn, command, action);

async function statesOf(): Promise<readonly string[]> {
  const rows = await shop.query(
    `SELECT state || CASE WHEN compromised THEN '!' ELSE '' END AS state FROM keyturn.data_key WHERE purpose = 1 ORDER BY version`,
  );
  return rows.map(({ state }) => String(state));
}

test('I5 killed while it discards, stages, takes up, activates, marks, orders and retires, it is finished by repeating it', async () => {
  const writer = await shop.open();
  await insertCustomers(shop, writer, [1, 2, 3]);
  await writer.close();
  // All before the commit of one transaction: that the root key is suspect, then discarding and the new key, taking up.
  for (const action of ['root.suspect', 'key.discard', 'key.stage', 'key.order']) {
    await killAt(action);
    expect(await statesOf()).toEqual(['active', 'staged']);
  }
  for (const action of ['key.activate', 'key.compromise']) {
    await killAt(action);
    expect(await statesOf()).toEqual(['active', 'destroyed', 'staged']);
  }
  // The standby after the activation.
  const staged = 'key.stage';
  await killAt(staged);
  expect(await statesOf()).toEqual(['decrypt_only!', 'destroyed', 'active']);
  await killAt('run.create');
  const states = ['decrypt_only!', 'destroyed', 'active', 'staged'];
  expect(await statesOf()).toEqual(states);
  expect((await keyturn.json(...command)).object).toMatchObject({
    run: { emergency: true, target_key: expect.stringContaining('customers v3') as string },
  });
  const [run] = await shop.query('SELECT id::int FROM keyturn.run');
  const runner = await startDirectRunner(shop);
  expect(await runner.finish(Number(run?.['id'])).finally(runner.close)).toMatchObject({ state: 'succeeded' });
  await killAt('key.retire');
  expect(await statesOf()).toEqual(states);
  expect(await keyturn.json(...command)).toMatchObject({
    code: 0,
    object: { key: { state: 'retired', compromised: true } },
  });
  expect(await statesOf()).toEqual(['retired!', ...states.slice(1)]);
  expect(await shop.query('SELECT id FROM keyturn.run')).toHaveLength(1);
  const after = await shop.open();
  expect(await findDifferences(shop, after)).toEqual([]);
  // Once more, nothing is left to do.
  expect((await keyturn.run(...command)).code).toBe(0);
  expect(await statesOf()).toEqual(['retired!', ...states.slice(1)]);
}, 120_000);
