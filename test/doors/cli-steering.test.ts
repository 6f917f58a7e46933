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

test('an emergency joins the unfinished run that does the same and puts it before all others', async () => {
  const joined = await keyturn('reencrypt', '--emergency', '--hours', 'none', '--json');
  expect(JSON.parse(joined.stdout)).toMatchObject({
    begin: 'joined',
    run_id: 1,
    emergency: true,
    limits: { rows_per_second: 500, hours: null },
  });
  expect((await keyturn('run', 'show', '1')).stdout).toMatch(/limits +emergency: before every other run, 500 rows\/s/);
  expect((await keyturn('reencrypt')).code).toBe(0);
  expect(JSON.parse((await keyturn('run', 'show', '1', '--json')).stdout)).toMatchObject({ emergency: true });
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
  [['run', 'resume', '1'], 4, /only a paused run resumes/],
  [['reencrypt', '--emergency', '--priority', '3'], 2, /cannot be used with/],
])('%j exits %i and says why', async (command, code, why) => {
  const ended = await keyturn(...command);
  expect({ code: ended.code, stdout: ended.stdout }).toEqual({ code, stdout: '' });
  expect(ended.stderr).toMatch(why);
});

test('pause --all names what it asked and what it did not, and a cancelled run is retried', async () => {
  const paused = await keyturn('run', 'pause', '--all', '--reason', 'the database is struggling');
  expect(paused.code).toBe(0);
  expect(paused.stdout).toMatch(
    /^1 run asked to pause: 1\n[^]*runs ordered from now on start as ever\n[^]*run resume 1/,
  );
  expect((await keyturn('run', 'pause', '--all')).stdout).toMatch(/^no run is there to pause\n/);
  expect(JSON.parse((await keyturn('run', 'pause', '--all', '--json')).stdout)).toEqual({ runs: [] });
  expect((await keyturn('run', 'cancel', '1')).stdout).toMatch(/^run 1 is cancelling\n/);
  await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = 1`);
  const retried = await keyturn('run', 'retry', '1');
  expect(retried).toMatchObject({ code: 0, stderr: expect.stringMatching(/no supervisor is live/) as unknown });
  expect(retried.stdout).toMatch(/^run 2 ordered: retries run 1, public\.customer\n/);
  expect((await keyturn('run', 'show', '2')).stdout).toMatch(/ {2}retries +run 1\n/);
});
