// SIGTERM while something that workers and supervisors talk to is away: they end all the same, before a service manager
// kills them, and the exit code says whether what was in hand was settled.
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { readStatus } from '../../src/control/status.js';
import { availableBackends } from '../support/backends.js';
import { startNode, type Child } from '../support/child.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { readiness } from '../support/health.js';
import { startPrivateRedis } from '../support/redis.js';
import { insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 120_000 });

const deadlineMs = 60_000;
/** What the units in deploy/ give them; they are much quicker where the machine is not busy. */
const killedAfterMs = 30_000;
const entries = join(import.meta.dirname, '..', '..', 'dist', 'workers');

/** Supervisor and worker, ready. */
async function startBoth(shop: Shop, environment: Readonly<Record<string, string>> = {}): Promise<readonly Child[]> {
  const children = ['supervisor', 'reencrypt'].map((name) =>
    startNode(join(entries, `${name}.js`), { env: { REDIS_URL: '', ...shop.environment(), ...environment } }),
  );
  await until(
    async () => {
      const { supervisor_health_url, members } = await readStatus(shop.control.context);
      const urls = [supervisor_health_url, members[0]?.health_url].filter((url) => typeof url === 'string');
      return urls.length === 2 && (await Promise.all(urls.map(readiness))).every(({ status }) => status === 200);
    },
    { what: 'supervisor and worker to be ready', deadlineMs },
  );
  return children;
}

async function endAll(children: readonly Child[]): Promise<readonly (number | null)[]> {
  for (const child of children) child.kill('SIGTERM');
  const exits = await Promise.all(children.map((child) => child.waitForExit(killedAfterMs)));
  return exits.map(({ code }) => code);
}

async function countInHand(shop: Shop): Promise<number> {
  const [row] = await shop.query(`SELECT count(*)::int AS batches FROM keyturn.batch WHERE state = 'running'`);
  return Number(row?.['batches']);
}

test.runIf(availableBackends().includes('redis')).concurrent.each([
  ['gone', 'SIGKILL'],
  ['there and silent', 'SIGSTOP'],
] as const)(
  'a supervisor, and a worker with a batch in hand, drain on SIGTERM while their Redis is %s, and exit 143',
  async (_way, signal) => {
    const redis = await startPrivateRedis();
    if (redis === undefined) throw new Error('a Redis to lose needs redis-server on PATH');
    const shop = await openShop({ backend: 'redis', redisUrl: redis.url });
    try {
      const keyturn = await shop.open();
      await insertCustomers(shop, keyturn, [1, 2, 3, 4]);
      await keyturn.close();
      await shop.rotate();
      const children = await startBoth(shop);
      await shop.query(
        `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.25); RETURN NEW; END $$`,
      );
      await shop.query('CREATE TRIGGER slow BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION slow()');
      await shop.order();
      await until(async () => (await countInHand(shop)) === 1, { what: 'a batch to be in hand', deadlineMs });
      process.kill(redis.pid, signal);
      expect(await endAll(children)).toEqual([143, 143]);
      expect(await countInHand(shop)).toBe(0);
    } finally {
      await shop.close();
      await redis.stop();
    }
  },
);

test.concurrent('where the database is silent they do not drain, say so on SIGTERM, and exit 7', async () => {
  const shop = await openShop();
  const proxy = await startFaultProxy(shop.url);
  try {
    const children = await startBoth(shop, { DATABASE_URL: proxy.url });
    proxy.loseSilently();
    expect(await endAll(children)).toEqual([7, 7]);
    for (const child of children) expect(child.stderr()).toContain('not drained 9 s after the signal');
  } finally {
    await proxy.close();
    await shop.close();
  }
});
