// A real Prometheus scrapes a real worker and supervisor by the configuration and the rules that are deployed, and what they
// show while their database is gone.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { parse, stringify } from 'yaml';
import { afterAll, beforeAll, describe, expect, inject, test, vi } from 'vitest';
import { availableBackends } from '../support/backends.js';
import { readiness, samplesOf, statusOf, textOf, waitUntilReady } from '../support/health.js';
import { hasPrometheus, startPrometheus } from '../support/prometheus.js';
import { insertCustomers, openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 60_000 });

const deadlineMs = 60_000;
const customers = 20;

describe.each(availableBackends())('scraping over the %s queue', (backend) => {
  let shop: Shop;
  let workerUrl: string;
  let supervisorUrl: string;

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
    supervisorUrl = (await shop.startSupervisor()).healthUrl;
    workerUrl = (await shop.startWorker()).healthUrl;
    await shop.waitForRun(await shop.order());
  });
  afterAll(() => shop.close());

  test(`a real Prometheus scrapes both, and none of its rules fires while all is well [${backend}]`, async (context) => {
    if (!hasPrometheus()) return context.skip('prometheus is not installed');
    const [worker, supervisor] = [workerUrl, supervisorUrl].map((url) => new URL(url).host);
    const deployed = join(import.meta.dirname, '..', '..', 'deploy', 'prometheus');
    const config = parse(readFileSync(join(deployed, 'prometheus.yml'), 'utf8')) as {
      scrape_configs: { job_name: string }[];
    };
    const prometheus = await startPrometheus({
      'alerts.yml': readFileSync(join(deployed, 'alerts.yml'), 'utf8'),
      'prometheus.yml': stringify({
        ...config,
        global: { scrape_interval: '250ms', scrape_timeout: '250ms', evaluation_interval: '250ms' },
        scrape_configs: config.scrape_configs.map((job) => ({
          job_name: job.job_name,
          static_configs: [{ targets: [job.job_name === 'keyturn-worker' ? worker : supervisor] }],
        })),
      }),
    });
    try {
      const up = await until(
        async () => {
          const found = await prometheus.query('up == 1');
          return found.length === 2 && found;
        },
        { what: 'both targets to be up', deadlineMs },
      );
      expect(up.map(({ metric }) => String(metric['job'])).toSorted()).toEqual([
        'keyturn-supervisor',
        'keyturn-worker',
      ]);
      expect(await prometheus.query('sum(keyturn_rows_total{outcome="updated"})')).toMatchObject([
        { value: customers - 1 },
      ]);
      expect(await prometheus.query('keyturn_leader')).toMatchObject([{ value: 1 }]);
      // What Compose asks it.
      expect(await prometheus.statusOf('/-/healthy')).toBe(200);
      await until(
        async () => {
          const { data } = (await prometheus.get('/api/v1/rules')) as {
            data: { groups: { rules: { health: string }[] }[] };
          };
          const rules = data.groups.flatMap((group) => group.rules);
          return rules.length > 0 && rules.every((rule) => rule.health === 'ok');
        },
        { what: 'all rules to be evaluated', deadlineMs },
      );
      // The first evaluation may come before the first scrape.
      await until(async () => (await prometheus.query('ALERTS{alertname!="KeyturnQuarantine"}')).length === 0, {
        what: 'no alert but the one for the planted cell',
        deadlineMs,
      });
      expect(await prometheus.query('ALERTS')).toMatchObject([{ metric: { alertname: 'KeyturnQuarantine' } }]);
    } finally {
      await prometheus.stop();
    }
  });

  test(`a worker whose database is gone is alive and misses it; its supervisor misses it too, and shows no old numbers [${backend}]`, async () => {
    const name = new URL(shop.url).pathname.slice(1);
    const admin = new pg.Client({ connectionString: inject('adminUrl') });
    await admin.connect();
    try {
      await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS false`);
      await admin.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1', [name]);
      await until(async () => (await readiness(workerUrl)).missing.includes('database'), {
        what: 'the worker to miss its database',
        deadlineMs,
      });
      expect(await statusOf(`${workerUrl}/healthz`)).toBe(200);
      expect(await readiness(supervisorUrl)).toEqual({ status: 503, missing: ['database', 'schema'] });
      await until(async () => !samplesOf(await textOf(supervisorUrl)).has('keyturn_runs{state="paused"}'), {
        what: 'the old numbers to be gone',
        deadlineMs,
      });
      expect(await textOf(supervisorUrl)).toMatch(/keyturn_collect_failures_total\{source="database"\} [1-9]/);
    } finally {
      await admin.query(`ALTER DATABASE ${name} ALLOW_CONNECTIONS true`);
      await admin.end();
    }
    await waitUntilReady(workerUrl);
  });
});
