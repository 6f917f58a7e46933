// A key that others may hold: contained at once, moved away from first of all, retired when nothing names it.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { beginEmergency, containKey, type CompromiseOptions } from '../../src/control/compromise.js';
import { activate, retire, rotateKey } from '../../src/control/keys.js';
import { beginReencrypt, type RunnerSupply } from '../../src/control/rotate-and-reencrypt.js';
import { cancelRun, pauseRun } from '../../src/control/steer-runs.js';
import { startDirectRunner } from '../support/direct-run.js';
import { insertMember } from '../support/members.js';
import { findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';

let shop: Shop;
beforeEach(async () => {
  shop = await openShop();
});
afterEach(() => shop.close());

const noSupply: RunnerSupply = { require: async () => undefined, start: async () => undefined };
const leak: CompromiseOptions = { keyring: undefined, key: 'v1', reason: 'leaked', isRootSuspect: false };

async function statesOf(): Promise<readonly string[]> {
  const rows = await shop.query(
    `SELECT state || CASE WHEN compromised THEN '!' ELSE '' END AS state FROM keyturn.data_key WHERE purpose = 1 ORDER BY version`,
  );
  return rows.map(({ state }) => String(state));
}

async function recordsSince(id: number): Promise<readonly string[]> {
  const rows = await shop.query(
    `SELECT action || ' ' || object AS words FROM keyturn.audit WHERE id > ${id} AND object LIKE 'key %' ORDER BY id`,
  );
  return rows.map(({ words }) => String(words));
}

async function newestRecord(): Promise<number> {
  const [row] = await shop.query('SELECT max(id)::int AS id FROM keyturn.audit');
  return Number(row?.['id']);
}

test('I10 an active key is replaced by the standby in the transaction that marks it, and its values move in an emergency run', async () => {
  const { context } = shop.control;
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3]);
  await keyturn.close();
  const before = await newestRecord();
  const contained = await containKey(context, leak);
  expect(contained).toMatchObject({ key: { id: 1, compromised: true }, active: { id: 2 }, without: [] });
  expect(await recordsSince(before)).toEqual([
    'key.order key 2',
    'key.replace key 1',
    'key.activate key 2',
    'key.compromise key 1',
    'key.stage key 3',
  ]);
  const [moved] = await shop.query(
    `SELECT count(DISTINCT xmin::text)::int AS transactions FROM keyturn.audit WHERE id > ${before} AND action IN ('key.activate', 'key.compromise')`,
  );
  expect(moved).toEqual({ transactions: 1 });

  const begun = await beginEmergency(context, contained, { reason: 'leaked', supply: noSupply });
  expect(begun?.report).toMatchObject({ emergency: true, target_key_id: 2 });
  const runner = await startDirectRunner(shop);
  expect(await runner.finish(Number(begun?.report.run_id)).finally(runner.close)).toMatchObject({
    state: 'succeeded',
    rows_updated: 3,
  });
  expect(await beginEmergency(context, contained, { reason: 'again', supply: noSupply })).toMatchObject({
    begin: 'done',
  });
  await retire(context, undefined, 'v1', 'leaked');
  const after = await shop.open();
  expect(await findDifferences(shop, after)).toEqual([]);
  await after.close();
  expect(await statesOf()).toEqual(['retired!', 'active', 'staged']);
});

test('the emergency takes the hours away from the run it joins, and orders another in place of one that is being cancelled', async () => {
  const { context } = shop.control;
  await rotateKey(context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined });
  const nightly = await shop.order({ steering: { hours: '06:00-08:00', zone: 'Europe/Berlin', rowsPerSecond: 5 } });
  const contained = await containKey(context, leak);
  const emergency = (): ReturnType<typeof beginEmergency> =>
    beginEmergency(context, contained, { reason: 'leaked', supply: noSupply });
  expect(await emergency()).toMatchObject({
    begin: 'joined',
    report: { run_id: nightly, emergency: true, limits: { rows_per_second: null, workers: null, hours: null } },
    lifted: { rows_per_second: 5, workers: null, hours: '06:00-08:00', zone: 'Europe/Berlin' },
  });
  await cancelRun(context, nightly, 'by mistake');
  const ordered = await emergency();
  expect(ordered).toMatchObject({ begin: 'ordered', report: { state: 'pending', emergency: true } });
  await pauseRun(context, Number(ordered?.report.run_id), 'by mistake');
  await expect(emergency()).rejects.toMatchObject({
    code: 'RUN_STATE_REFUSED',
    message: expect.stringContaining('is pausing (by mistake)') as string,
  });
});

test('an emergency that finds its run cancelled between the look and the joining looks again and orders another', async () => {
  const { context } = shop.control;
  const run = await shop.order();
  const quicker: RunnerSupply = { ...noSupply, start: async () => void (await cancelRun(context, run, 'quicker')) };
  const whole = { keyring: undefined, target: undefined, scope: undefined, deep: false, reason: 'leaked' };
  const order = { kind: 'reencrypt', ...whole, steering: { isEmergency: true } } as const;
  const begun = await beginReencrypt(context, order, quicker);
  expect(begun).toMatchObject({ begin: 'ordered', report: { run_id: run + 1, emergency: true } });
});

test('a compromised key never encrypts again, in any way', async () => {
  await containKey(shop.control.context, leak);
  await expect(activate(shop.control.context, undefined, 'v1', 'back')).rejects.toMatchObject({
    code: 'KEY_STATE_REFUSED',
    message:
      'customers v1 (id 1) is compromised and never encrypts again; rotate forward with: keyturn key rotate --keyring customers',
  });
  await expect(
    shop.query(`UPDATE keyturn.data_key SET compromised = true WHERE state = 'active'`),
  ).rejects.toMatchObject({ code: '23514' });
});

test('I5 repeating it makes no second key, with a suspect root too: the standby from before is discarded once', async () => {
  const { context } = shop.control;
  const suspect = { ...leak, isRootSuspect: true };
  await containKey(context, suspect);
  const states = ['decrypt_only!', 'destroyed', 'active', 'staged'];
  expect(await statesOf()).toEqual(states);
  expect(await shop.query('SELECT 1 FROM keyturn.data_key_wrap WHERE data_key_id = 2')).toEqual([]);
  const before = await newestRecord();
  await containKey(context, suspect);
  await containKey(context, leak);
  expect(await statesOf()).toEqual(states);
  expect(await recordsSince(before)).toEqual([]);
});

test('a standby that leaked is discarded and made anew; an old key is marked and the active one stays', async () => {
  const { context } = shop.control;
  await containKey(context, { ...leak, key: 'v2' });
  expect(await statesOf()).toEqual(['active', 'destroyed!', 'staged']);
  await rotateKey(context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined });
  expect(await containKey(context, leak)).toMatchObject({ key: { state: 'decrypt_only' }, active: { version: 3 } });
  expect(await statesOf()).toEqual(['decrypt_only!', 'destroyed!', 'active', 'staged']);
  await expect(containKey(context, { ...leak, reason: undefined })).rejects.toMatchObject({ code: 'USAGE' });
});

test('a member without the standby is waited for no longer than an emergency allows, and what fails there is said and recorded', async () => {
  await insertMember(shop, { name: 'billing', holds: [1], writes: 1 });
  const contained = await containKey({ ...shop.control.context, patienceMs: 300 }, leak);
  expect(contained.without).toMatchObject([
    { member: 'application billing (pid 42 on elsewhere)', why: 'does not hold key 2' },
  ]);
  expect(await statesOf()).toEqual(['decrypt_only!', 'active', 'staged']);
  expect(await shop.query(`SELECT 1 FROM keyturn.audit WHERE action = 'key.activate.without'`)).toHaveLength(1);
});

test('a standby of an algorithm that the keyring has left is discarded before a rotation activates it', async () => {
  await shop.query(`UPDATE keyturn.keyring SET algorithm = 'aes-256-gcm'`);
  expect(
    await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined }),
  ).toMatchObject({ key: { version: 3, algorithm: 'aes-256-gcm' } });
  expect(await statesOf()).toEqual(['decrypt_only', 'destroyed', 'active', 'staged']);
});
