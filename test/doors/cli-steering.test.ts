// Steering from the command line: what is said, what --json holds, what is refused. No process runs: requests are rows.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { runCapturedWith, type Captured } from '../cli/captured.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
beforeAll(async () => {
  shop = await openShop();
});
afterAll(() => shop.close());

/** With the database alone: no root key, no queue, no file. */
function keyturn(...args: string[]): Promise<Captured> {
  return runCapturedWith({ openControl, environment: { DATABASE_URL: shop.url } }, ...args);
}

test('a run is ordered with limits, shows them, and is limited anew while it is on', async () => {
  const ordered = await keyturn('reencrypt', '--rows-per-second', '500', '--workers', '2', '--json');
  expect(ordered.code).toBe(0);
  const { run_id: run, ...report } = JSON.parse(ordered.stdout) as { run_id: number };
  expect(report).toMatchObject({
    begin: 'ordered',
    limits: { rows_per_second: 500, workers: 2, hours: null, zone: null },
    priority: 0,
    emergency: false,
  });
  const limited = await keyturn(
    ...['run', 'limit', String(run), '--hours', '22:00-06:00', '--zone', 'Europe/Berlin', '--workers', 'none'],
    ...['--priority', '3', '--reason', 'office hours'],
  );
  expect(limited).toMatchObject({ code: 0, stderr: '' });
  expect(limited.stdout).toMatch(/^run 1: 500 rows\/s, 22:00-06:00 Europe\/Berlin, priority 3\n/);
  expect((await keyturn('run', 'show', String(run))).stdout).toMatch(
    / {2}limits +500 rows\/s, 22:00-06:00 Europe\/Berlin, priority 3\n/,
  );
  expect(await shop.query(`SELECT reason, after FROM keyturn.audit WHERE action = 'run.limit'`)).toEqual([
    {
      reason: 'office hours',
      after: { rowsPerSecond: 500, hours: { from: '22:00', to: '06:00', zone: 'Europe/Berlin' }, priority: 3 },
    },
  ]);
});

const show = async (run: number): Promise<Record<string, unknown>> =>
  JSON.parse((await keyturn('run', 'show', String(run), '--json')).stdout) as Record<string, unknown>;

test('an emergency joins the unfinished run that does the same, puts it before all others, and takes its limits away and says so', async () => {
  const joined = await keyturn('reencrypt', '--emergency');
  expect(joined.stderr).toContain(
    'run 1, ordered earlier, is not finished; going on with it\ntaken away for the emergency: 500 rows/s, 22:00-06:00 Europe/Berlin\n',
  );
  expect(joined.stdout).toMatch(/^run 1 joined: /);
  const none = { rows_per_second: null, workers: null, hours: null, zone: null };
  expect(await show(1)).toMatchObject({ emergency: true, limits: none });
  expect((await keyturn('run', 'show', '1')).stdout).toMatch(/limits +emergency: before every other run\n/);
  // An order that is none leaves it one, with the limits that were given to it since.
  expect((await keyturn('run', 'limit', '1', '--workers', '3')).code).toBe(0);
  expect(JSON.parse((await keyturn('reencrypt', '--json')).stdout)).toMatchObject({ lifted_limits: null });
  expect(await show(1)).toMatchObject({ emergency: true, limits: { ...none, workers: 3 } });
});

test('run limit --emergency keeps the limits that are named with it and takes the others away', async () => {
  await keyturn(...['run', 'limit', '1', '--priority', '2', '--hours', '22:00-06:00', '--zone', 'UTC']);
  const limited = await keyturn('run', 'limit', '1', '--emergency', '--rows-per-second', '900', '--workers', 'none');
  expect(limited).toMatchObject({ code: 0, stderr: 'taken away for the emergency: 22:00-06:00 UTC\n' });
  expect(limited.stdout).toMatch(/^run 1: emergency: before every other run, 900 rows\/s\n/);
  const again = await keyturn('run', 'limit', '1', '--emergency', '--json');
  expect(JSON.parse(again.stdout)).toMatchObject({
    limits: { rows_per_second: null },
    lifted_limits: { rows_per_second: 900, workers: null, hours: null, zone: null },
  });
});

test('an emergency passes over a run that is being cancelled and is ordered anew; one that pauses refuses it like a paused one', async () => {
  expect((await keyturn('run', 'cancel', '1')).code).toBe(0);
  expect(await keyturn('run', 'limit', '1', '--emergency')).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('run 1 is cancelling, so there is nothing to limit') as unknown,
  });
  const ordered = JSON.parse((await keyturn('reencrypt', '--emergency', '--json')).stdout) as object;
  expect(ordered).toMatchObject({ begin: 'ordered', run_id: 2, state: 'pending', emergency: true });
  expect((await keyturn('run', 'pause', '2', '--reason', 'too early')).code).toBe(0);
  for (const settled of ['pausing', 'paused']) {
    await shop.query('UPDATE keyturn.run SET state = $1 WHERE id = 2', [settled]);
    const refused = await keyturn('reencrypt', '--emergency');
    expect(refused).toMatchObject({ code: 4, stdout: '' });
    expect(refused.stderr).toContain(`run 2 is ${settled} (too early)`);
    expect(refused.stderr).toContain('go on with: keyturn run resume 2');
  }
  await shop.query(`UPDATE keyturn.run SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = 2`);
  await shop.query(`UPDATE keyturn.run SET state = 'pending', priority = 0, emergency = false WHERE id = 1`);
});

test.each([
  [['run', 'limit', '1'], 2, /expected what to limit/],
  [['run', 'limit', '1', '--rows-per-second', '0'], 2, /rows per second or none, from 1 to 1000000/],
  [['run', 'limit', '1', '--priority', '10'], 2, /priority from 0 to 9/],
  [['run', 'limit', '1', '--hours', '22-6', '--zone', 'UTC'], 2, /hours such as 22:00-06:00/],
  [['run', 'limit', '1', '--hours', '22:00-06:00', '--zone', 'Berlin'], 2, /time zone such as Europe\/Berlin/],
  [['run', 'limit', '9', '--workers', '1'], 3, /there is no run 9/],
  [['run', 'pause'], 2, /the number of a run, or --all/],
  [['run', 'pause', '1', '--all'], 2, /the number of a run, or --all/],
  [['run', 'retry', '1'], 4, /run 1 is pending, not finished/],
  [['run', 'resume', '2'], 4, /run 2 is cancelled and does not go on; take up what it left with: keyturn run retry 2/],
  [['run', 'limit', '1', '--emergency', '--priority', '3'], 2, /cannot be used with/],
  [['key', 'rotate', '--accept-failures'], 2, /need --reencrypt/],
  [['reencrypt', '--emergency', '--priority', '3'], 2, /cannot be used with/],
])('%j exits %i and says why', async (command, code, why) => {
  const ended = await keyturn(...command);
  expect({ code: ended.code, stdout: ended.stdout }).toEqual({ code, stdout: '' });
  expect(ended.stderr).toMatch(why);
});

test('pause and cancel may be repeated, say that a supervisor has to settle them, and a pause is taken back before it is settled', async () => {
  const unsettled =
    /^no supervisor is live to settle it, so it stays pausing until one is; start one with: keyturn supervisor\n$/;
  for (let time = 1; time <= 2; time++) {
    const paused = await keyturn('run', 'pause', '1');
    expect(paused).toMatchObject({ code: 0, stderr: expect.stringMatching(unsettled) as unknown });
    expect(paused.stdout).toMatch(/^run 1 is pausing\n[^]*next: keyturn run resume 1\n$/);
  }
  for (let time = 1; time <= 2; time++)
    expect((await keyturn('run', 'resume', '1')).stdout).toMatch(/^run 1 is pending\n/);
  const other = String(
    (JSON.parse((await keyturn('verify', '--no-wait', '--json')).stdout) as { run_id: number }).run_id,
  );
  for (let time = 1; time <= 2; time++) {
    const cancelled = await keyturn('run', 'cancel', other);
    expect(cancelled.stderr).toMatch(/so it stays cancelling until one is/);
    expect(cancelled).toMatchObject({ code: 0, stdout: expect.stringMatching(/is cancelling\n/) as unknown });
  }
  expect((await keyturn('run', 'pause', other)).stderr).toMatch(/is cancelling and cannot become pausing/);
  expect((await keyturn('run', 'resume', other)).stderr).toMatch(/once it is cancelled, take up .* keyturn run retry/);
});

test('pause --all names what it asked and what it left alone, and a cancelled run is retried', async () => {
  const paused = await keyturn('run', 'pause', '--all', '--reason', 'the database is struggling');
  expect(paused).toMatchObject({ code: 0, stderr: expect.stringMatching(/stays pausing until/) as unknown });
  expect(paused.stdout).toMatch(
    /^1 run asked to pause: 1\nleft alone: 3 is cancelling\n[^]*runs ordered from now on start as ever\n[^]*run resume 1/,
  );
  expect((await keyturn('run', 'pause', '--all')).stdout).toMatch(
    /^no run is there to pause\nleft alone: 1 is pausing, 3 is cancelling\n/,
  );
  expect(JSON.parse((await keyturn('run', 'pause', '--all', '--json')).stdout)).toMatchObject({
    runs: [],
    left_alone: [{ run_id: 1 }, { run_id: 3 }],
  });
  expect((await keyturn('run', 'cancel', '1')).stdout).toMatch(/^run 1 is cancelling\n/);
  await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE state = 'cancelling'`);
  expect(await keyturn('run', 'cancel', '1')).toMatchObject({ code: 0, stderr: '' });
  const retried = await keyturn('run', 'retry', '1');
  expect(retried).toMatchObject({ code: 0, stderr: expect.stringMatching(/no supervisor is live/) as unknown });
  expect(retried.stdout).toMatch(/^run 4 ordered: retries run 1, public\.customer\n/);
  expect((await keyturn('run', 'show', '4')).stdout).toMatch(/ {2}retries +run 1\n/);
});

test('of two retries of a run at once one is ordered and the other refused; once that one is being cancelled, another is ordered', async () => {
  await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = 4`);
  const both = await Promise.all([keyturn('run', 'retry', '4'), keyturn('run', 'retry', '4')]);
  expect(both.map(({ code }) => code)).toEqual(expect.arrayContaining([0, 4]));
  expect(both.find(({ code }) => code === 4)?.stderr).toMatch(/run 4 needs no retry: run \d+ covers the same/);
  expect((await keyturn('run', 'cancel', '5')).stdout).toMatch(/^run 5 is cancelling/);
  expect((await keyturn('run', 'retry', '4')).stdout).toMatch(/^run 6 ordered: retries run 4/);
});
