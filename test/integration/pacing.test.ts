// What is unseen and not optional stops a run, in words that say what to do; what is optional is only said to be unseen.
import { expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { init } from '../../src/control/init.js';
import { showRun } from '../../src/control/runs.js';
import { readStatus } from '../../src/control/status.js';
import { Secret } from '../../src/crypto/secret.js';
import { openGauges } from '../../src/engine/gauges.js';
import { startPacing } from '../../src/engine/pacing.js';
import { healthSources, optionalByDefault } from '../../src/rotation/health.js';
import { decidePace, initialPaceState } from '../../src/rotation/pacing.js';
import { openDatabase } from '../../src/store/database.js';
import { availableBackends } from '../support/backends.js';
import { createTestDatabase } from '../support/database.js';
import { startFaultProxy } from '../support/fault-proxy.js';
import { insertCustomers, openShop, shopConfig } from '../support/shop.js';
import { until } from '../support/until.js';

const deadlineMs = 30_000;
const unknownCpus =
  'sessions not seen: the number of CPUs of the database server is not known; set pace.cpus in keyturn.yaml';

test.for(availableBackends())(
  'a source that is not optional and unseen stops a run before its first slice, and the words say which [%s]',
  async (backend, { onTestFinished }) => {
    const shop = await openShop({ backend });
    onTestFinished(() => shop.close());
    const keyturn = await shop.open();
    await insertCustomers(shop, keyturn, [1, 2, 3]);
    const { context } = shop.control;
    await shop.startSupervisor({ isPaced: true });
    const pace = await until(async () => (await readStatus(context)).pace ?? undefined, { what: 'a pace', deadlineMs });
    expect(pace).toMatchObject({
      target_workers: null,
      nice: 0,
      reason: null,
      unseen: expect.arrayContaining([unknownCpus]),
    });

    const strict = openControl({ environment: shop.environment(), file: { ...shopConfig, pace: { optional: [] } } });
    await init(strict.context);
    await strict.close();
    const run = await shop.order();
    const words = `${unknownCpus}; what is unseen counts as over its limit; held for 10 s`;
    await until(async () => (await readStatus(context)).pace?.target_workers === 0, { what: 'the stop', deadlineMs });
    await shop.startWorker();
    const held = await until(
      async () => {
        const report = await showRun(context, run);
        return report.held_back_by?.startsWith('sessions') && report;
      },
      { what: 'the run to say what holds it back', deadlineMs },
    );
    expect(held).toMatchObject({
      state: 'running',
      held_back_by: words,
      rows_examined: 0,
      pace: { target_workers: 0 },
    });
  },
);

test('a supervisor whose sources have not answered yet, as on a busy machine, holds nothing back before they are old', async ({
  onTestFinished,
}) => {
  const { url, drop } = await createTestDatabase();
  const proxy = await startFaultProxy(url);
  const database = openDatabase({ url: new Secret(proxy.url), maxConnections: 3, applicationName: 'test' });
  onTestFinished(async () => {
    await proxy.close();
    await database.close();
    await drop();
  });
  proxy.loseSilently();
  const gauges = openGauges(database);
  const settings = { cpus: 4, optional: optionalByDefault };
  const seen = await gauges.look({ settings, isMoving: true, paceChanges: 0 });
  expect(seen.map(({ source }) => source)).toEqual(Object.values(healthSources));
  expect(seen.every((gauge) => 'readings' in gauge && gauge.readings.length === 0)).toBe(true);
  const observation = { workers: 2, isEmergency: false, isMoving: true, beside: undefined };
  expect(decidePace(initialPaceState, { ...observation, gauges: seen }, 0).targetWorkers).toBeUndefined();
  const old = seen.map((gauge) => ({ ...gauge, ageMs: 5_001 }));
  expect(decidePace(initialPaceState, { ...observation, gauges: old }, 0)).toMatchObject({
    targetWorkers: 0,
    reason: expect.stringContaining('replicas not seen for 5 s') as string,
  });
});

test('pacing that meets an error of no known kind ends and says so, instead of leaving the last pace in force unseen', async () => {
  const unexpected = new TypeError('no such property');
  const refuse = (): Promise<never> => Promise.reject(unexpected);
  const troubles: unknown[] = [];
  const pacing = startPacing({
    database: { query: refuse, transaction: refuse, isPooled: refuse, close: async () => undefined },
    leadership: () => ({ holder: 'test', fencingToken: 1 }),
    onTrouble: (error) => troubles.push(error),
  });
  await expect(pacing.ended).rejects.toBe(unexpected);
  await expect(pacing.stop()).rejects.toBe(unexpected);
  expect(troubles).toEqual([unexpected]);
});
