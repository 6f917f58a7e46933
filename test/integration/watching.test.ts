// What an operator watches: health, readiness and metrics of workers and supervisors.
import { spawn } from 'node:child_process';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { readStatus } from '../../src/control/status.js';
import { startSupervisorProcess, startWorker } from '../../src/app-runners.js';
import { pauseRun, resumeRun } from '../../src/control/steer-runs.js';
import { writePace } from '../../src/store/pace.js';
import { availableBackends } from '../support/backends.js';
import { findCanaries, keyCanaries, textCanary } from '../support/canaries.js';
import { readiness, samplesOf, statusOf, textOf, waitUntilReady } from '../support/health.js';
import { startPrivateRedis } from '../support/redis.js';
import { customer, insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 60_000 });

const deadlineMs = 60_000;
const customers = 40;

async function generationOf(shop: Shop): Promise<number> {
  return Number((await shop.query('SELECT generation FROM keyturn.keyring'))[0]?.['generation']);
}

describe.each(availableBackends())('watching over the %s queue', (backend) => {
  let shop: Shop;
  let run: number;
  beforeAll(async () => {
    shop = await openShop({ backend });
    const keyturn = await shop.open();
    await insertCustomers(
      shop,
      keyturn,
      Array.from({ length: customers }, (_, at) => at + 1),
    );
    await keyturn.close();
    await shop.query(`UPDATE customer SET email = 'no envelope' WHERE id = 1`);
    await shop.rotate();
  });
  afterAll(() => shop.close());

  test(`a worker that waits for a supervisor is alive and misses the queue; with one it is ready, and status shows both addresses [${backend}]`, async () => {
    const starting = shop.startWorker();
    const url = await until(async () => (await readStatus(shop.control.context)).members[0]?.health_url ?? undefined, {
      what: 'the worker to be a member',
      deadlineMs,
    });
    expect(await statusOf(`${url}/healthz`)).toBe(200);
    expect(await readiness(url)).toEqual({ status: 503, missing: ['queue'] });
    const supervisor = await shop.startSupervisor();
    const worker = await starting;
    expect(worker.healthUrl).toBe(url);
    await waitUntilReady(worker.healthUrl);
    await waitUntilReady(supervisor.healthUrl);
    await until(async () => (await readStatus(shop.control.context)).supervisor, { what: 'a leader', deadlineMs });
    expect(await readStatus(shop.control.context)).toMatchObject({
      supervisor_health_url: supervisor.healthUrl,
      members: [{ kind: 'worker', health_url: worker.healthUrl }],
    });
  });

  test(`the numbers of a run are those of its report: the worker's sum up, the leader's say what is left [${backend}]`, async () => {
    const { members, supervisor_health_url } = await readStatus(shop.control.context);
    const workerUrl = members[0]?.health_url ?? '';
    const supervisorUrl = supervisor_health_url ?? '';
    run = await shop.order();
    const report = await shop.waitForRun(run);
    expect(report).toMatchObject({ state: 'completed_with_failures', rows_updated: customers - 1, rows_failed: 1 });
    // The last slice is counted right after its commit, which ends the run.
    const worker = await until(
      async () => {
        const samples = samplesOf(await textOf(workerUrl));
        return (samples.get('keyturn_batches_total{kind="verify",end="done"}') ?? 0) > 0 && samples;
      },
      { what: 'the verifying batch to be counted', deadlineMs },
    );
    expect(Object.fromEntries(worker)).toMatchObject({
      'keyturn_rows_total{kind="reencrypt",outcome="updated"}': report.rows_updated,
      'keyturn_rows_total{kind="reencrypt",outcome="failed"}': 1,
      'keyturn_cells_total{kind="reencrypt",outcome="reencrypted"}': report.fields_reencrypted,
      'keyturn_cells_total{kind="reencrypt",outcome="failed"}': 1,
      'keyturn_batches_total{kind="reencrypt",end="done"}': 1,
      'keyturn_held_generation{keyring="customers"}': await generationOf(shop),
    });
    expect(worker.get('keyturn_bytes_total{kind="reencrypt"}')).toBeGreaterThan(report.fields_reencrypted * 20);
    expect(worker.get('keyturn_slice_seconds_count{kind="reencrypt",step="crypto"}')).toBe(1);
    const again = await shop.order();
    await pauseRun(shop.control.context, again, 'test');
    await until(
      async () => (await shop.query('SELECT state FROM keyturn.run WHERE id = $1', [again]))[0]?.['state'] === 'paused',
      {
        what: 'the run to be paused',
        deadlineMs,
      },
    );
    await writePace(shop.control.context.database, {
      targetWorkers: 2,
      nice: 1,
      reason: 'replica lag 3.5 s, over 1 s',
      signals: {},
    });
    const labels = `run="${again}",keyring="customers",kind="reencrypt"`;
    const leader = await until(
      async () => {
        const samples = samplesOf(await textOf(supervisorUrl));
        return samples.get(`keyturn_run_held{${labels},reason="paused"}`) === 1 && samples;
      },
      { what: 'the leader to show the paused run', deadlineMs },
    );
    expect(Object.fromEntries(leader)).toMatchObject({
      keyturn_leader: 1,
      'keyturn_runs{state="paused"}': 1,
      'keyturn_members{kind="worker"}': 1,
      'keyturn_members{kind="application"}': 0,
      'keyturn_members_behind{keyring="customers"}': 0,
      keyturn_pace_factor: 0.5,
      keyturn_pace_target_workers: 2,
      'keyturn_pace_reason{reason="replica lag N s, over N s"}': 1,
      'keyturn_quarantine_cells{cause="NOT_AN_ENVELOPE"}': 1,
      'keyturn_lazy_upgrade_cells{keyring="customers"}': 0,
      keyturn_unbacked_data_keys: expect.any(Number) as number,
      'keyturn_keyring_generation{keyring="customers"}': await generationOf(shop),
    });
    expect(leader.get('keyturn_unbacked_data_keys')).toBeGreaterThan(1);
    expect(leader.get('keyturn_cryptoperiod_left_seconds{keyring="customers"}')).toBeGreaterThan(89 * 86_400);
    expect([...leader.keys()].filter((name) => name.startsWith('keyturn_run_idle_seconds'))).toEqual([]);
    await resumeRun(shop.control.context, again, 'test');
    await shop.waitForRun(again);
  });

  test(`a second supervisor shows that it does not lead and nothing of the cluster [${backend}]`, async () => {
    const second = await startSupervisorProcess({ environment: shop.environment(), name: 'second' });
    const samples = samplesOf(await textOf(second.healthUrl));
    await second.stop();
    expect(samples.get('keyturn_leader')).toBe(0);
    expect([...samples.keys()].filter((name) => /^keyturn_(run|member|quarantine|queue)/.test(name))).toEqual([]);
  });

  test(`I7 neither health nor metrics say a key, a tenant, a row's plaintext or a password [${backend}]`, async () => {
    const { members, supervisor_health_url } = await readStatus(shop.control.context);
    const findings = [];
    for (const url of [members[0]?.health_url ?? '', supervisor_health_url ?? ''])
      for (const path of ['/healthz', '/readyz', '/metrics', '/nowhere'])
        findings.push({ place: path, text: await (await fetch(`${url}${path}`)).text() });
    const never = [
      ...keyCanaries('the root key', Buffer.from(shop.rootKey, 'hex')),
      textCanary('the root key in hexadecimal', shop.rootKey),
      textCanary('the password', new URL(shop.url).password || shop.url),
      textCanary('the quarantined cell', 'no envelope'),
      ...[1, 2, 3].flatMap((id) => [
        textCanary('a tenant', customer(id).tenant),
        textCanary('a plaintext', customer(id).email ?? 'customer-'),
      ]),
    ];
    expect(findCanaries(findings, never)).toEqual([]);
    expect(findings.every(({ text }) => text.length > 0)).toBe(true);
  });
});

test('a worker whose Redis is gone is alive, misses the queue, and takes jobs again when it is back', async (context) => {
  const redis = await startPrivateRedis();
  if (redis === undefined) return context.skip('redis-server is not installed');
  const shop = await openShop({ backend: 'redis', redisUrl: redis.url });
  await shop.startSupervisor();
  const worker = await shop.startWorker();
  await waitUntilReady(worker.healthUrl);
  await redis.stop();
  await until(async () => (await readiness(worker.healthUrl)).missing.includes('queue'), {
    what: 'the worker to miss the queue',
    deadlineMs,
  });
  expect(await statusOf(`${worker.healthUrl}/healthz`)).toBe(200);
  const again = spawn('redis-server', ['--port', new URL(redis.url).port, '--bind', '127.0.0.1', '--save', ''], {
    cwd: tmpdir(),
    stdio: 'ignore',
  });
  try {
    await waitUntilReady(worker.healthUrl);
    expect(await shop.waitForRun(await shop.order())).toMatchObject({ state: 'succeeded' });
  } finally {
    await shop.close();
    again.kill('SIGKILL');
    await once(again, 'exit');
  }
});

describe('where to listen', () => {
  let shop: Shop;
  beforeAll(async () => {
    shop = await openShop();
  });
  afterAll(() => shop.close());

  test('PORT and HOST say where; options win over them', async () => {
    const taken = createServer().listen(0, '127.0.0.1');
    await once(taken, 'listening');
    const address = taken.address();
    const port = String(typeof address === 'object' && address !== null ? address.port : 0);
    const environment = { ...shop.environment(), PORT: port, HOST: '127.0.0.1' };
    await expect(startSupervisorProcess({ environment, name: 'test' })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
    });
    await expect(startWorker({ environment, name: 'test' })).rejects.toMatchObject({ code: 'CONFIG_INVALID' });
    const supervisor = await startSupervisorProcess({ environment, name: 'test', listen: { port: 0 } });
    expect(supervisor.healthUrl).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
    await supervisor.stop();
    taken.close();
  });

  test.each(['70000', 'http', '-1'])('PORT=%s is CONFIG_INVALID', async (PORT) => {
    const environment = { ...shop.environment(), PORT };
    await expect(startSupervisorProcess({ environment, name: 'test' })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: 'PORT is no port; expected a number from 0 (any free one) to 65535',
    });
  });
});
