// What is unseen and not optional stops a run, in words that say what to do; what is optional is only said to be unseen.
import { expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { init } from '../../src/control/init.js';
import { showRun } from '../../src/control/runs.js';
import { readStatus } from '../../src/control/status.js';
import { insertCustomers, openShop, shopConfig } from '../support/shop.js';
import { until } from '../support/until.js';

const deadlineMs = 30_000;
const unknownCpus =
  'sessions not seen: the number of CPUs of the database server is not known; set pace.cpus in keyturn.yaml';

test('a source that is not optional and unseen stops a run before its first slice, and the words say which', async ({
  onTestFinished,
}) => {
  const shop = await openShop();
  onTestFinished(() => shop.close());
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3]);
  const { context } = shop.control;
  await shop.startSupervisor();
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
  expect(held).toMatchObject({ state: 'running', held_back_by: words, rows_examined: 0, pace: { target_workers: 0 } });
});
