// The commands of docs/operating.md, executed in their order against a shop with a supervisor and a worker live, each with
// something to do: a run to steer where the page steers one, cells in quarantine where it tries them again. Rotations wait
// for every member twice, so it takes a minute or two; test/examples/operating.test.ts is the quick one.
import { readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test, vi } from 'vitest';
import { limitRun } from '../../src/control/steer-runs.js';
import { isKeyturnError } from '../../src/errors.js';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import { blocksOf, wordsOf } from '../support/page.js';
import { insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';

vi.setConfig({ testTimeout: 400_000, hookTimeout: 60_000 });

const checkout = resolve(import.meta.dirname, '../..');
const commands = blocksOf(readFileSync(join(checkout, 'docs', 'operating.md'), 'utf8'))
  .filter((block) => block.language === 'sh')
  .flatMap((block) => block.text.trim().split('\n'));

let shop: Shop;
let keyturn: KeyturnProcess;

beforeAll(async () => {
  shop = await openShop();
  keyturn = openKeyturnProcess(shop, shopConfig);
  const application = await shop.open();
  await insertCustomers(
    shop,
    application,
    Array.from({ length: 20 }, (_, at) => at + 1),
  );
  await application.close();
  await shop.startSupervisor();
  await shop.startWorker();
});
afterAll(async () => {
  keyturn.remove();
  await shop.close();
});

async function emailOf(id: number): Promise<unknown> {
  return (await shop.query('SELECT email FROM customer WHERE id = $1', [id]))[0]?.['email'];
}

async function write(id: number, email: unknown): Promise<void> {
  await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [id, email]);
}

function ignoreFinished(error: unknown): void {
  if (!isKeyturnError(error) || error.code !== 'RUN_STATE_REFUSED') throw error;
}

/** Unresolved cells. */
async function quarantined(): Promise<number> {
  const [row] = await shop.query('SELECT count(*)::int AS cells FROM keyturn.quarantine WHERE resolved_at IS NULL');
  return Number(row?.['cells']);
}

test('the commands of the operating page work from top to bottom, and do what it says they do', async () => {
  expect(commands.length).toBeGreaterThan(25);
  /** The one that the page calls 7. */
  let run = 0;
  let earlier: readonly unknown[] = [];
  /** A value of another row, as a script that mixes rows up would leave it. */
  const mixUp = async (): Promise<void> => {
    await write(2, earlier[0]);
    run = await shop.order();
    expect(await shop.waitForRun(run)).toMatchObject({ state: 'completed_with_failures', rows_failed: 1 });
    expect(await quarantined()).toBe(1);
  };
  /** A row a second, so that it lasts until the page takes the limit away. */
  const orderSlow = async (): Promise<void> => {
    run = await shop.order({ steering: { rowsPerSecond: 1 } });
  };
  const before: Readonly<Record<string, () => Promise<void>>> = {
    'run pause': orderSlow,
    // A run that rests until the night would be what later commands wait for.
    'run limit': async () => {
      await limitRun(shop.control.context, run, {
        rowsPerSecond: null,
        workers: null,
        hours: null,
        reason: 'test',
      }).catch(ignoreFinished);
      await shop.waitForRun(run);
      await orderSlow();
    },
    'key activate': async () => {
      earlier = [await emailOf(1), await emailOf(2)];
    },
    'quarantine list': async () => {
      if ((await quarantined()) === 0) await mixUp();
    },
    // Mended: its own value, under the key of then.
    'quarantine retry': () => write(2, earlier[1]),
    'quarantine resolve': mixUp,
  };
  const after: Readonly<Record<string, (stdout: string) => Promise<void>>> = {
    'run pause': async (stdout) => expect(stdout).toMatch(/paus(ing|ed)/),
    'key compromise': async (stdout) => {
      expect(stdout).toMatch(
        /customers v1 \(id 1\) is compromised: it never encrypts again; customers v2 \(id 2\) is active/,
      );
      expect(stdout).toMatch(/retired: none of \d+ cells names it/);
    },
    'quarantine list': async (stdout) => expect(stdout).toContain('AUTHENTICATION_FAILED'),
    'quarantine retry': async () => {
      expect(await quarantined()).toBe(0);
      expect(await emailOf(2)).not.toBe(earlier[1]);
    },
    'quarantine resolve': async (stdout) => {
      expect(stdout).toContain('1 cell resolved');
      expect(await quarantined()).toBe(0);
    },
  };
  for (const line of commands) {
    const [, ...args] = wordsOf(line);
    const verb = args.slice(0, 2).join(' ');
    await before[verb]?.();
    const { code, stdout, stderr } = await keyturn.run(...args.map((word) => (word === '7' ? String(run) : word)));
    expect({ line, code, stderr: code === 0 ? '' : stderr }).toEqual({ line, code: 0, stderr: '' });
    await after[verb]?.(stdout);
  }
});
