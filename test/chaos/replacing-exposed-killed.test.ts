// root rotate --reencrypt killed at each step of what follows a leaked root key: the repeated command goes on, makes no key
// twice, and in the end nothing is encrypted, sealed or wrapped with what the leaked root key ever wrapped.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { startDirectRunner } from '../support/direct-run.js';
import { killAtRecord } from '../support/killed-command.js';
import { nextUri, openRootedShop, type RootedShop } from '../support/roots.js';
import { findDifferences, insertCustomers, shopConfig } from '../support/shop.js';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';

let rooted: RootedShop;
let keyturn: KeyturnProcess;
const command = ['root', 'rotate', '--to', nextUri, '--reencrypt', '--reason', 'leaked'];

beforeAll(async () => {
  rooted = await openRootedShop();
  keyturn = openKeyturnProcess({ environment: () => rooted.environment('both') }, shopConfig);
});
afterAll(async () => {
  keyturn.remove();
  await rooted.close();
});

const killAt = (action: string): Promise<void> => killAtRecord(rooted.shop, keyturn, command, action);

async function keys(): Promise<readonly string[]> {
  const rows = await rooted.shop.query(
    `SELECT state || CASE WHEN compromised THEN '!' ELSE '' END || ' ' || array_to_string(wrapped_under, '+') AS words
     FROM keyturn.data_key ORDER BY purpose, id`,
  );
  return rows.map(({ words }) => String(words));
}

test('I5 I10 killed at each of its steps and repeated, the replacement of a leaked root key comes to its end', async () => {
  const { shop } = rooted;
  const writer = await rooted.open('present');
  await insertCustomers(shop, writer, [1, 2, 3]);
  await writer.close();
  for (const action of ['root.prepare', 'root.finalize', 'root.suspect']) {
    await killAt(action);
    expect(await keys()).toEqual(['active 1', 'staged 1', 'active 1']);
  }
  const second = Number((await shop.query('SELECT last_value::int AS id FROM keyturn.root_key_id_seq'))[0]?.['id']) + 1;
  const old = `1+${second}`;
  // Whatever is killed from here on, the root key is changed and remembered as suspect.
  for (const action of ['audit-key.replace', 'key.discard', 'key.order']) {
    await killAt(action);
    const audit = action === 'audit-key.replace' ? [`active ${old}`] : [`decrypt_only ${old}`, `active ${second}`];
    expect(await keys()).toEqual([`active ${old}`, `staged ${old}`, ...audit]);
    expect(await shop.query('SELECT id::int FROM keyturn.root_key WHERE suspect_at IS NOT NULL')).toEqual([{ id: 1 }]);
  }
  const audit = [`decrypt_only ${old}`, `active ${second}`];
  for (const action of ['key.activate', 'key.compromise']) {
    await killAt(action);
    expect(await keys()).toEqual([`active ${old}`, `destroyed ${old}`, `staged ${second}`, ...audit]);
  }
  await killAt('key.stage');
  expect(await keys()).toEqual([`decrypt_only! ${old}`, `destroyed ${old}`, `active ${second}`, ...audit]);
  await killAt('run.create');
  const states = [`decrypt_only! ${old}`, `destroyed ${old}`, `active ${second}`, `staged ${second}`, ...audit];
  expect(await keys()).toEqual(states);
  expect((await keyturn.json(...command)).object).toMatchObject({
    outcome: 'unchanged',
    replaced: [{ keyring: 'customers', run: { emergency: true } }],
  });
  const [run] = await shop.query('SELECT id::int FROM keyturn.run');
  const runner = await startDirectRunner({ ...shop, environment: () => rooted.environment('next') });
  expect(await runner.finish(Number(run?.['id'])).finally(runner.close)).toMatchObject({ state: 'succeeded' });
  await killAt('key.retire');
  expect(await keys()).toEqual(states);
  expect(await keyturn.json(...command)).toMatchObject({ code: 0, object: { replaced: [{ retired: [{}] }] } });
  expect(await keys()).toEqual([`retired! ${old}`, ...states.slice(1)]);
  expect(await shop.query('SELECT id FROM keyturn.run')).toHaveLength(1);
  const after = await rooted.open('next');
  expect(await findDifferences(shop, after)).toEqual([]);
  await after.close();
  const again = await keyturn.run('root', 'finalize', '--reencrypt', '--local', '1');
  expect(again).toMatchObject({ code: 0, stdout: expect.stringContaining('what rotation cannot undo') as string });
  expect(await keys()).toEqual([`retired! ${old}`, ...states.slice(1)]);
}, 240_000);
