// The commands of docs/operating.md, executed in their order against a shop with a supervisor and a worker live. Three
// rotations wait for every member twice, so it takes half a minute; test/examples/operating.test.ts is the quick one.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { blocksOf } from '../support/page.js';

vi.setConfig({ testTimeout: 240_000, hookTimeout: 60_000 });

const checkout = resolve(import.meta.dirname, '../..');
const commands = blocksOf(readFileSync(join(checkout, 'docs', 'operating.md'), 'utf8'))
  .filter((block) => block.language === 'sh')
  .map((block) => block.text);

let shop: Shop;
let folder: string;

beforeAll(async () => {
  shop = await openShop();
  folder = mkdtempSync(join(tmpdir(), 'keyturn-operating-'));
  // JSON is YAML.
  writeFileSync(join(folder, 'keyturn.yaml'), JSON.stringify(shopConfig));
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: 20 }, (_, at) => at + 1),
  );
  await keyturn.close();
  await shop.startSupervisor();
  await shop.startWorker();
});
afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await shop.close();
});

test('the commands of the operating page work from top to bottom', async () => {
  // The page is read with one run in mind; here it is whichever came last.
  const script = [
    'set -e',
    // A run that has ended refuses to pause, and no cell is in quarantine: the right answers here.
    `keyturn() { node '${join(checkout, 'dist', 'workers', 'keyturn.js')}' "$@" || { code=$?; [[ $code = 4 && "$1 $2" =~ ^run\\ (pause|resume|limit)$ || $code = 3 && $1 = quarantine ]]; }; }`,
    ...commands,
  ].join('\n');
  expect(commands.length).toBeGreaterThan(6);
  const child = spawn(
    'bash',
    ['-c', script.replaceAll(/(\brun (?:show|watch|pause|resume|limit)|--run) 7\b/g, '$1 1')],
    {
      cwd: folder,
      env: { PATH: process.env['PATH'], ...shop.environment() },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  onTestFinished(() => void child.kill('SIGKILL'));
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const [status] = (await once(child, 'close')) as [number | null];
  expect({ status, stderr: status === 0 ? '' : stderr }).toEqual({ status: 0, stderr: '' });
  expect(stdout).toContain('nothing to do');
  expect(stdout).toMatch(/customers v2/);
});
