// A key that others may hold: contained at once, moved away from first of all, retired when nothing names it.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { beginEmergency, containKey, type CompromiseOptions } from '../../src/control/compromise.js';
import type { ControlContext } from '../../src/control/context.js';
import { activate, restore, retire, rotateKey } from '../../src/control/keys.js';
import { beginReencrypt, type RunnerSupply } from '../../src/control/rotate-and-reencrypt.js';
import { cancelRun, pauseRun } from '../../src/control/steer-runs.js';
import { KeyturnError } from '../../src/errors.js';
import { listRetirable } from '../../src/store/compromised-keys.js';
import { startDirectRunner } from '../support/direct-run.js';
import { insertMember } from '../support/members.js';
import { findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

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
    'key.replace key 1',
    'key.activate key 2',
    'key.compromise key 1',
    'key.stage key 3',
  ]);
  const [moved] = await shop.query(
    `SELECT count(DISTINCT xmin::text)::int AS transactions FROM keyturn.audit WHERE id > ${before} AND action IN ('key.activate', 'key.compromise')`,
  );
  expect(moved).toEqual({ transactions: 1 });

  const begun = await beginEmergency(context, 'customers', [contained.key], { reason: 'leaked', supply: noSupply });
  expect(begun?.report).toMatchObject({ emergency: true, target_key_id: 2 });
  const runner = await startDirectRunner(shop);
  expect(await runner.finish(Number(begun?.report.run_id)).finally(runner.close)).toMatchObject({
    state: 'succeeded',
    rows_updated: 3,
  });
  expect(
    await beginEmergency(context, 'customers', [contained.key], { reason: 'again', supply: noSupply }),
  ).toMatchObject({
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
    beginEmergency(context, 'customers', [contained.key], { reason: 'leaked', supply: noSupply });
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

test('a standby takes over at once, whoever does not hold it yet, and what fails there is said and recorded', async () => {
  await insertMember(shop, { name: 'billing', holds: [1], writes: 1 });
  const waits: string[] = [];
  const contained = await containKey({ ...shop.control.context, onProgress: (words) => waits.push(words) }, leak);
  expect(waits).toEqual([]);
  expect(contained.without).toMatchObject([
    { member: 'application billing (pid 42 on elsewhere)', why: 'does not hold key 2' },
  ]);
  expect(await statesOf()).toEqual(['decrypt_only!', 'active', 'staged']);
  expect(await shop.query(`SELECT 1 FROM keyturn.audit WHERE action = 'key.activate.without'`)).toHaveLength(1);
});

test('a key that has to be made first is waited for no longer than an emergency allows', async () => {
  await insertMember(shop, { name: 'billing', holds: [1, 2], writes: 1 });
  const waits: string[] = [];
  const impatient = { ...shop.control.context, patienceMs: 300, onProgress: (words: string) => waits.push(words) };
  expect(await containKey(impatient, { ...leak, isRootSuspect: true })).toMatchObject({
    active: { id: 3 },
    without: [{ why: 'does not hold key 3' }],
  });
  expect(waits[0]).toMatch(/^waiting at most 15 s until every live member can decrypt with customers v3 \(id 3\): /);
});

describe('with the root key away', () => {
  const away: Pick<ControlContext, 'openRoots'> = {
    openRoots: async () => {
      throw new KeyturnError('ROOT_KEY_UNAVAILABLE', 'the provider is away');
    },
  };
  const rootless = (): ControlContext => ({ ...shop.control.context, ...away });

  test('an active key gives way to the standby, an old one is marked, and the missing standby is named', async () => {
    expect(await containKey(rootless(), leak)).toMatchObject({
      key: { state: 'decrypt_only', compromised: true },
      active: { id: 2 },
      successorTrouble: null,
      standbyTrouble: 'the provider is away',
    });
    expect(await statesOf()).toEqual(['decrypt_only!', 'active']);
    // No standby any more: the active key cannot be replaced, and that is an error.
    const before = await newestRecord();
    await expect(containKey(rootless(), { ...leak, key: 'v2' })).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
    });
    expect(await recordsSince(before)).toEqual([]);
    // Back again, the standby is made by repeating the command.
    expect(await containKey(shop.control.context, leak)).toMatchObject({ standbyTrouble: null });
    expect(await statesOf()).toEqual(['decrypt_only!', 'active', 'staged']);
    await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined });
    expect(await containKey(rootless(), { ...leak, key: 'v2' })).toMatchObject({ key: { compromised: true } });
    expect(await statesOf()).toEqual(['decrypt_only!', 'decrypt_only!', 'active', 'staged']);
  });

  test('and suspect too, the standby from before is better than the key that leaked, and the report says so', async () => {
    expect(await containKey(rootless(), { ...leak, isRootSuspect: true })).toMatchObject({
      active: { id: 2 },
      successorTrouble: 'the provider is away',
    });
    expect(await statesOf()).toEqual(['decrypt_only!', 'active']);
    expect(await shop.query('SELECT 1 FROM keyturn.root_key WHERE suspect_at IS NOT NULL')).toHaveLength(1);
  });
});

test('a supervisor retires a compromised key whose run is through, and leaves one alone that was restored since', async () => {
  const { context } = shop.control;
  const contained = await containKey(context, leak);
  const begun = await beginEmergency(context, 'customers', [contained.key], { reason: 'leaked', supply: noSupply });
  const runner = await startDirectRunner(shop);
  await runner.finish(Number(begun?.report.run_id)).finally(runner.close);
  expect(await listRetirable(context.database, 10)).toEqual([]);
  await shop.query(`UPDATE keyturn.run SET finished_at = finished_at - interval '1 minute'`);
  expect(await listRetirable(context.database, 10)).toMatchObject([{ id: 1, keyring: 'customers' }]);
  await shop.startSupervisor();
  await until(async () => (await statesOf())[0] === 'retired!', { what: 'the retirement', deadlineMs: 30_000 });
  expect((await shop.query(`SELECT reason FROM keyturn.audit WHERE action = 'key.retire'`))[0]).toEqual({
    reason: `compromised; run ${begun?.report.run_id} has moved its values`,
  });
  await restore(context, undefined, 'v1', 'an old dump is to be read');
  expect(await listRetirable(context.database, 0)).toEqual([]);
});

test('a standby of an algorithm that the keyring has left is discarded before a rotation activates it', async () => {
  await shop.query(`UPDATE keyturn.keyring SET algorithm = 'aes-256-gcm'`);
  expect(
    await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined }),
  ).toMatchObject({ key: { version: 3, algorithm: 'aes-256-gcm' } });
  expect(await statesOf()).toEqual(['decrypt_only', 'destroyed', 'active', 'staged']);
});
