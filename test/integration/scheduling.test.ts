// Schedules carried out by real supervisors: all phases, what was missed, two at once, one killed in the middle, one without
// the root key, and a queue that is wiped or wakes for nothing. Time is turned forward in the rows that hold it.
import { describe, expect, test, vi } from 'vitest';
import { startSupervisorProcess, type LongRunning } from '../../src/app-runners.js';
import type { ConfigFile } from '../../src/config.js';
import { listKeys, rotateKey } from '../../src/control/keys.js';

import { listScheduleReports, removeSchedule, setSchedule } from '../../src/control/schedules.js';
import { readStatus } from '../../src/control/status.js';
import { cancelRun } from '../../src/control/steer-runs.js';
import { Secret } from '../../src/crypto/secret.js';
import { queueAddressOf } from '../../src/queue/address.js';
import { openQueue } from '../../src/queue/connection.js';
import { getClusterId } from '../../src/store/keys.js';
import { availableBackends } from '../support/backends.js';
import { startChild } from '../support/child.js';
import { holdInsert } from '../support/held-statement.js';
import { passLeadership } from '../support/processes.js';
import { startPrivateRedis } from '../support/redis.js';
import { createTestRole } from '../support/roles.js';
import { findDifferences, insertCustomers, openShop, shopConfig, type Backend, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';
import { loseKey } from '../support/without-guards.js';

vi.setConfig({ testTimeout: 120_000 });

const deadlineMs = 60_000;
const nothing = { keyring: undefined, cron: undefined, timeZone: undefined, gradualMs: undefined, reason: 'test' };

type OnEnd = (cleanUp: () => Promise<void>) => void;

/** A shop with rows and a key that is a year old. */
async function openAgedShop(
  onEnd: OnEnd,
  options: { backend?: Backend; redisUrl?: string; config?: ConfigFile } = {},
): Promise<Shop> {
  const shop = await openShop(options);
  onEnd(() => shop.close());
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3]);
  await keyturn.close();
  await shop.query(`UPDATE keyturn.data_key SET activated_at = activated_at - interval '1 year'`);
  return shop;
}

async function makeDue(shop: Shop, ago = '1 hour'): Promise<void> {
  await shop.query('UPDATE keyturn.schedule SET next_at = clock_timestamp() - $1::interval', [ago]);
}

function occurrencesOf(shop: Shop): Promise<Record<string, unknown>[]> {
  return shop.query(
    'SELECT id::int, state, waits_for, cause, key_id::int, run_id::int FROM keyturn.occurrence ORDER BY id',
  );
}

async function waitForState(shop: Shop, state: string): Promise<void> {
  await until(async () => (await occurrencesOf(shop)).at(-1)?.['state'] === state, {
    what: `the occurrence to be ${state}`,
    deadlineMs,
  });
}

async function waitForWords(shop: Shop, words: RegExp): Promise<void> {
  await until(async () => words.test(String((await occurrencesOf(shop)).at(-1)?.['waits_for'])), {
    what: `the occurrence to wait for ${words}`,
    deadlineMs,
  });
}

async function keyStates(shop: Shop): Promise<readonly string[]> {
  const [keyring] = await listKeys(shop.control.context, undefined);
  return keyring?.keys.map(({ state }) => state) ?? [];
}

async function startWithoutRoot(shop: Shop, onEnd: OnEnd): Promise<LongRunning> {
  const { KEYTURN_ROOT_KEY: _, ...environment } = shop.environment();
  const supervisor = await startSupervisorProcess({ environment, name: 'rootless' });
  onEnd(() => supervisor.stop());
  return supervisor;
}

describe.concurrent.each(availableBackends())('a schedule over the %s queue', (backend) => {
  test(`I10 goes from the new key to the retired old one, each move recorded [${backend}]`, async ({
    onTestFinished,
  }) => {
    const shop = await openAgedShop(onTestFinished, { backend });
    await setSchedule(shop.control.context, { ...nothing, gradualMs: 0 });
    await makeDue(shop);
    await shop.startSupervisor();
    // No member to wait for before it has a row to move.
    await waitForState(shop, 'reencrypting');
    await shop.startWorker();
    await waitForState(shop, 'done');

    expect(await keyStates(shop)).toEqual(['retired', 'active', 'staged']);
    expect(await occurrencesOf(shop)).toEqual([
      { id: 1, state: 'done', waits_for: null, cause: null, key_id: 2, run_id: 1 },
    ]);
    expect(await shop.waitForRun(1)).toMatchObject({ state: 'succeeded', fields_stale: 0, rows_updated: 3 });
    expect(await findDifferences(shop, await shop.open())).toEqual([]);
    const record = await shop.query(
      `SELECT action FROM keyturn.audit WHERE object LIKE 'occurrence %' OR object LIKE 'schedule %' ORDER BY id`,
    );
    expect(record.map(({ action }) => action)).toEqual([
      'schedule.set',
      'schedule.fire',
      'schedule.rotating',
      'schedule.gradual',
      'schedule.reencrypting',
      'schedule.retiring',
      'schedule.done',
    ]);
    expect(
      await shop.query(
        `SELECT DISTINCT reason ~ '^schedule, due 20' AS ours FROM keyturn.audit WHERE action IN ('key.stage', 'key.activate', 'key.retire', 'run.create') AND object NOT IN ('key 1', 'key 2')`,
      ),
    ).toEqual([{ ours: true }]);
    const [report] = await listScheduleReports(shop.control.context, 1);
    expect(Date.parse(report?.next_at ?? '')).toBeGreaterThan(Date.now());
  });

  test(`a wiped queue starts nothing and is mirrored anew; a foreign wake-up changes nothing [${backend}]`, async ({
    onTestFinished,
  }) => {
    const redis = backend === 'redis' ? await startPrivateRedis() : undefined;
    onTestFinished(async () => redis?.stop());
    const shop = await openAgedShop(onTestFinished, {
      backend,
      ...(redis === undefined ? {} : { redisUrl: redis.url }),
    });
    const redisUrl = shop.environment()['REDIS_URL'];
    const address = queueAddressOf(
      { redisUrl: redisUrl === undefined ? undefined : new Secret(redisUrl), databaseDirectUrl: new Secret(shop.url) },
      await getClusterId(shop.control.context.database),
    );
    const { queue, close } = openQueue(address, 'keyturn-wake-ups');
    onTestFinished(close);
    const mirrored = async (): Promise<boolean> => {
      const schedulers = await queue.getJobSchedulers();
      return (
        schedulers.length === 1 &&
        schedulers[0]?.pattern === '0 3 1 */3 *' &&
        schedulers[0]?.tz === 'Europe/Berlin' &&
        schedulers[0]?.every === undefined
      );
    };
    await setSchedule(shop.control.context, { ...nothing, timeZone: 'Europe/Berlin' });
    await shop.startSupervisor();
    await until(mirrored, { what: 'the schedule to be mirrored', deadlineMs });

    if (redis === undefined) {
      const [tables] = await shop.query(
        `SELECT string_agg(format('bullmq.%I', tablename), ', ') AS names FROM pg_tables WHERE schemaname = 'bullmq' AND tablename <> 'migration'`,
      );
      await shop.query(`TRUNCATE ${String(tables?.['names'])}`);
    } else await redis.flushAll();
    expect(await mirrored()).toBe(false);
    await until(mirrored, { what: 'the schedule to be mirrored anew', deadlineMs });

    await queue.upsertJobScheduler(
      'stranger',
      { every: 86_400_000 },
      { name: 'rotate', data: { keyring: 'customers' } },
    );
    await queue.add('wake-up', {}, { removeOnComplete: true });
    await until(mirrored, { what: 'the stranger to be removed', deadlineMs });
    await until(async () => (await queue.getJobCounts('waiting', 'active'))['waiting'] === 0, {
      what: 'the foreign wake-ups to be taken',
      deadlineMs,
    });
    expect(await occurrencesOf(shop)).toEqual([]);
    expect(await keyStates(shop)).toEqual(['active', 'staged']);
    expect(await shop.query('SELECT id FROM keyturn.run')).toEqual([]);

    await removeSchedule(shop.control.context, undefined, 'test');
    await until(async () => (await queue.getJobSchedulersCount()) === 0, { what: 'its mirror to go', deadlineMs });
  });
});

test.concurrent('two supervisors fire once, and three missed times are one', async ({ onTestFinished }) => {
  const shop = await openAgedShop(onTestFinished);
  await setSchedule(shop.control.context, { ...nothing, cron: '0 3 * * *', gradualMs: 3_600_000 });
  await makeDue(shop, '80 hours');
  await Promise.all([shop.startSupervisor(), shop.startSupervisor()]);
  await waitForState(shop, 'gradual');
  expect(await occurrencesOf(shop)).toHaveLength(1);
  expect(await keyStates(shop)).toEqual(['decrypt_only', 'active', 'staged']);
  // The time it stands for is the latest that was missed, and no later one fires before it has come.
  expect(
    await shop.query(
      `SELECT o.period > clock_timestamp() - interval '1 day' AS latest, s.next_at > clock_timestamp() AS later
       FROM keyturn.occurrence o JOIN keyturn.schedule s ON s.id = o.schedule_id`,
    ),
  ).toEqual([{ latest: true, later: true }]);
});

test.concurrent('I5 supervisors killed while they make the key and while they order the run leave one key and one run', async ({
  onTestFinished,
}) => {
  const shop = await openAgedShop(onTestFinished);
  await setSchedule(shop.control.context, { ...nothing, gradualMs: 0 });
  await makeDue(shop);
  // No standby: the rotation has to make its key.
  await loseKey(shop.query, 2);
  for (const [table, condition] of [
    ['keyturn.data_key', 'NEW.version = 2'],
    ['keyturn.run', 'true'],
  ] as const) {
    const { waitUntilHeld, letGo } = await holdInsert(shop, table, condition);
    const supervisor = startChild('supervisor', { env: shop.environment(), onlyEnv: true });
    await waitUntilHeld();
    supervisor.kill('SIGKILL');
    expect(await supervisor.waitForExit(deadlineMs)).toEqual({ code: null, signal: 'SIGKILL' });
    await letGo();
    await until(async () => (await shop.query(`SELECT 1 FROM pg_locks WHERE locktype = 'advisory'`)).length === 0, {
      what: 'the killed statement to end',
      deadlineMs,
    });
    await shop.query('DROP FUNCTION hold_insert CASCADE');
    await passLeadership(shop);
  }
  await shop.startSupervisor();
  await shop.startWorker();
  await waitForState(shop, 'done');
  expect(await keyStates(shop)).toEqual(['retired', 'active', 'staged']);
  expect(await shop.query('SELECT id FROM keyturn.run')).toHaveLength(1);
  expect(await occurrencesOf(shop)).toHaveLength(1);
});

test.concurrent('without the root key it waits and says so, another supervisor lends its own, and the gradual days are waited out', async ({
  onTestFinished,
}) => {
  const shop = await openAgedShop(onTestFinished);
  await setSchedule(shop.control.context, nothing);
  await makeDue(shop);
  await startWithoutRoot(shop, onTestFinished);
  await waitForWords(
    shop,
    /^no supervisor can open the root env:KEYTURN_ROOT_KEY \(.*not set.*\); start one with it, or run: keyturn key rotate --keyring customers$/,
  );
  expect(await keyStates(shop)).toEqual(['active', 'staged']);
  expect(await readStatus(shop.control.context)).toMatchObject({
    keyrings: [{ schedule: { latest: { state: 'rotating', is_late: false } } }],
    next: 'keyturn schedule list',
  });

  await shop.startSupervisor();
  await waitForState(shop, 'gradual');
  expect(await keyStates(shop)).toEqual(['decrypt_only', 'active', 'staged']);
  const status = await readStatus(shop.control.context);
  expect(status.next).toBe('nothing to do');
  const latest = status.keyrings[0]?.schedule?.latest;
  const [keyring] = await listKeys(shop.control.context, undefined);
  const activatedAt = Date.parse(keyring?.keys[1]?.activatedAt ?? '');
  expect(latest).toMatchObject({
    gradual_until: new Date(activatedAt + 30 * 86_400_000).toISOString(),
    over_by: new Date(activatedAt + 90 * 86_400_000).toISOString(),
    waits_for: null,
  });
  expect(await shop.query('SELECT id FROM keyturn.run')).toEqual([]);

  await shop.query('UPDATE keyturn.occurrence SET gradual_until = clock_timestamp()');
  await waitForState(shop, 'reencrypting');
  await waitForWords(shop, /^run 1: no live worker; start one with: keyturn worker$/);

  await cancelRun(shop.control.context, 1, 'test');
  await waitForState(shop, 'failed');
  expect((await occurrencesOf(shop))[0]?.['cause']).toMatch(
    /^run 1 ended cancelled.*keyturn reencrypt --keyring customers/,
  );
});

test.concurrent('under the worker role it fires, waits for somebody who may change keys, and says so', async ({
  onTestFinished,
}) => {
  const role = await createTestRole();
  onTestFinished(() => role.drop());
  const shop = await openAgedShop(onTestFinished, { config: { ...shopConfig, roles: { worker: role.name } } });
  await setSchedule(shop.control.context, nothing);
  await makeDue(shop);
  const environment = { ...shop.environment(), DATABASE_URL: role.urlFor(shop.url) };
  const supervisor = await startSupervisorProcess({ environment, name: 'worker role' });
  onTestFinished(() => supervisor.stop());
  await waitForWords(
    shop,
    /^the database login of the supervisor may not change keys \(.*42501.*\); start one as the owner, or run: keyturn key rotate --keyring customers$/,
  );
  expect(await keyStates(shop)).toEqual(['active', 'staged']);
});

test.concurrent('a rotation by hand since the time it was due counts, and the next time overtakes what is still open', async ({
  onTestFinished,
}) => {
  const shop = await openAgedShop(onTestFinished);
  await setSchedule(shop.control.context, nothing);
  await makeDue(shop, '2 hours');
  await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'by hand' });
  await startWithoutRoot(shop, onTestFinished);
  await waitForState(shop, 'gradual');
  expect(await keyStates(shop)).toEqual(['decrypt_only', 'active', 'staged']);

  await shop.query(`UPDATE keyturn.data_key SET activated_at = activated_at - interval '1 day'`);
  await makeDue(shop, '1 hour');
  await waitForState(shop, 'rotating');
  expect(await occurrencesOf(shop)).toMatchObject([
    { state: 'failed', cause: 'the next time of the schedule came before it was over' },
    { state: 'rotating' },
  ]);

  expect(await removeSchedule(shop.control.context, undefined, 'enough')).toEqual({
    keyring: 'customers',
    cancelled: { occurrence_id: 2, state: 'rotating' },
  });
  expect((await occurrencesOf(shop)).at(-1)).toMatchObject({ state: 'cancelled', cause: 'the schedule was removed' });
  await expect(removeSchedule(shop.control.context, undefined, undefined)).rejects.toMatchObject({
    code: 'SCHEDULE_NOT_FOUND',
  });
  expect(await listScheduleReports(shop.control.context, 1)).toEqual([]);
});

test.concurrent('a database clock that ran ahead and was set back leaves no time out', async ({ onTestFinished }) => {
  const shop = await openAgedShop(onTestFinished);
  const { schedule } = await setSchedule(shop.control.context, nothing);
  await shop.query(`UPDATE keyturn.schedule SET next_at = next_at + interval '1 year'`);
  await startWithoutRoot(shop, onTestFinished);
  await until(async () => (await listScheduleReports(shop.control.context, 1))[0]?.next_at === schedule.next_at, {
    what: 'the next time to be the next one again',
    deadlineMs,
  });
  expect(await occurrencesOf(shop)).toEqual([]);
});

test.concurrent('setting a schedule again changes what is given and keeps the rest; one that cannot be over in time changes nothing', async ({
  onTestFinished,
}) => {
  const shop = await openAgedShop(onTestFinished);
  const { context } = shop.control;
  const first = await setSchedule(context, nothing);
  expect(first).toMatchObject({
    schedule: { cron: '0 3 1 */3 *', time_zone: 'UTC', gradual_days: 30, cryptoperiod_days: 90, latest: null },
    warning: expect.stringMatching(/^up to 92 days lie between two times, and the cryptoperiod is 90 days/) as string,
  });
  await setSchedule(context, { ...nothing, timeZone: 'Europe/Berlin' });
  await setSchedule(context, { ...nothing, gradualMs: 86_400_000 });
  const again = await listScheduleReports(context, 3);
  expect(again).toMatchObject([{ cron: '0 3 1 */3 *', time_zone: 'Europe/Berlin', gradual_days: 1 }]);
  expect(again[0]?.calendar).toHaveLength(3);
  await expect(setSchedule(context, { ...nothing, gradualMs: 80 * 86_400_000 })).rejects.toMatchObject({
    code: 'SCHEDULE_INVALID',
  });
  expect(await listScheduleReports(context, 3)).toEqual(again);
});
