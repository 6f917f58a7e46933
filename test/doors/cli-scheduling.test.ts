// Members and schedules at the command line: what is printed for people, and the same as JSON.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { runCapturedWith, type Captured } from '../cli/captured.js';
import { insertMember } from '../support/members.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;

beforeAll(async () => {
  shop = await openShop();
});

afterAll(() => shop.close());

function run(...args: string[]): Promise<Captured> {
  return runCapturedWith({ environment: shop.environment(), openControl }, ...args);
}

function linesOf({ code, stdout, stderr }: Captured): string[] {
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return stdout.split('\n').map((line) => line.replaceAll(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ/g, 'TIME'));
}

test('a schedule is set, listed, shown in status and removed', async () => {
  expect(linesOf(await run('schedule', 'list'))).toEqual([
    'no keyring has a schedule',
    '',
    'next: keyturn schedule set',
    '',
  ]);
  const next = '  next    TIME new key, TIME run, over by TIME';
  const title = 'keyring customers  "0 3 1 */3 *" in Europe/Berlin, 30 gradual days, cryptoperiod 90 days';
  expect(linesOf(await run('schedule', 'set', '--time-zone', 'Europe/Berlin', '--reason', 'policy 7'))).toEqual([
    title,
    next,
    '',
    'to watch: up to 92 days lie between two times, and the cryptoperiod is 90 days: with cryptoperiod_days: 92 in keyturn.yaml, or more frequent times, no active key outlives it',
    '',
  ]);
  expect(linesOf(await run('schedule', 'list', '--calendar', '3'))).toEqual([title, next, next, next, '']);
  expect(JSON.parse((await run('schedule', 'list', '--json')).stdout)).toMatchObject({
    schedules: [{ keyring: 'customers', cron: '0 3 1 */3 *', reason: 'policy 7', latest: null, calendar: [{}, {}] }],
  });
  expect(linesOf(await run('status'))).toContain('  schedule      next rotation TIME');

  await shop.query(
    `INSERT INTO keyturn.occurrence (schedule_id, period, state, key_id, gradual_until) SELECT id, clock_timestamp(), 'gradual', 1, clock_timestamp() FROM keyturn.schedule`,
  );
  expect(linesOf(await run('schedule', 'list', '--calendar', '1'))).toEqual([
    title,
    '  latest  TIME gradual, key id 1 until TIME, to be over by TIME',
    next,
    '',
  ]);
  expect(linesOf(await run('status'))).toContain(
    '  schedule      rotation of TIME is gradual until TIME, to be over by TIME',
  );
  expect(linesOf(await run('schedule', 'remove', '--reason', 'a timer does it'))).toEqual([
    'keyring customers has no schedule any more',
    'its rotation was gradual and is not gone on with; see: keyturn status',
    '',
  ]);
  expect(await run('schedule', 'remove')).toMatchObject({ code: 3 });
  expect(await run('schedule', 'set', '--cron', 'daily')).toMatchObject({
    code: 2,
    stderr:
      'keyturn: "daily" is no cron expression of five fields: minute hour day month weekday, such as "0 3 1 */3 *"\n',
  });
});

test('a member is listed and forgotten, and a live one only with the word for it', async () => {
  expect(linesOf(await run('member', 'list'))).toEqual(['no process holds keys', '']);
  const id = await insertMember(shop, { name: 'billing', holds: [1], writes: 1, silentForSeconds: 20 });
  const lines = linesOf(await run('member', 'list')).map((line) => line.replace(/heard \d+ s/, 'heard N s'));
  expect(lines).toEqual([
    'application billing (pid 42 on elsewhere)  live, heard N s ago',
    `  id ${id}, version test, formats keyturn, algorithms aes-256-gcm, xaes-256-gcm`,
    '  customers: generation 4, writes with customers v1 (id 1), holds ids 1',
    '',
  ]);
  expect(await run('member', 'forget', 'billing', '--reason', 'gone')).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('keyturn member forget billing --live') as string,
  });
  expect(linesOf(await run('member', 'forget', id, '--live', '--reason', 'killed'))).toEqual([
    'application billing (pid 42 on elsewhere) is forgotten',
    'if it is alive after all: application billing (pid 42 on elsewhere) cannot read values written with customers v2 (id 2) or later keys of customers, until it has refreshed',
    '',
  ]);
  expect(JSON.parse((await run('member', 'list', '--json')).stdout)).toEqual({ members: [], missing: [] });
});
