// The commands of docs/operating.md: all of them are known with every option they name, and those that wait for no worker
// are executed in their order. test/chaos/operating.test.ts executes the page from top to bottom.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { showRun } from '../../src/control/runs.js';
import { parseCommandLine, runCapturedWith } from '../cli/captured.js';
import { startDirectRunner } from '../support/direct-run.js';
import { blocksOf, wordsOf } from '../support/page.js';
import { insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const page = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'operating.md'), 'utf8');
const executed = blocksOf(page)
  .filter(({ language }) => language === 'sh')
  .flatMap(({ text }) => text.trim().split('\n'));
const shown = page
  .split('\n')
  .filter((line) => line.startsWith('    keyturn '))
  .map((line) => line.trim());
const waitsForOthers = /--wait|^keyturn (key|verify|run watch)/;

let shop: Shop;
/** A run that found a cell that does not decrypt. */
let failed: number;

beforeAll(async () => {
  shop = await openShop();
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3]);
  await keyturn.close();
  await shop.query(`UPDATE customer SET email = 'no envelope' WHERE id = 1`);
  const runner = await startDirectRunner(shop);
  failed = (await runner.finish(await shop.order())).run_id;
  await runner.close();
});
afterAll(() => shop.close());

test('every command of the operating page is one of this release, with the arguments and options it takes', () => {
  expect(executed.length).toBeGreaterThan(25);
  for (const line of [...executed, ...shown]) {
    const [program, ...args] = wordsOf(line);
    expect(program).toBe('keyturn');
    expect(args.join(' ')).toContain(parseCommandLine(args));
  }
});

test('those that read, steer and schedule work in their order with neither root key nor worker', async () => {
  await shop.startSupervisor();
  const run = await shop.order();
  const { KEYTURN_ROOT_KEY: _, ...environment } = shop.environment();
  const given = {
    environment,
    openControl: (options: Parameters<typeof openControl>[0]) => openControl({ ...options, file: shopConfig }),
  };
  const lines = executed.filter((line) => !waitsForOthers.test(line));
  expect(lines.length).toBeGreaterThan(15);
  for (const line of lines) {
    const args = wordsOf(line.replace(/\b(run \w+) 7\b/, `$1 ${run}`).replace(/--run 7\b/, `--run ${failed}`)).slice(1);
    const { code, stderr } = await runCapturedWith(given, ...args);
    expect({ line, code, stderr: code === 0 ? '' : stderr }).toEqual({ line, code: 0, stderr: '' });
    await until(async () => (await showRun(shop.control.context, run)).state !== 'pausing', {
      what: 'the run to be paused',
      deadlineMs: 30_000,
    });
  }
});
