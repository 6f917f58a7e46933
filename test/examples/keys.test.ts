// The commands of docs/keys.md, executed in their order from the first keys of a cluster to the restore drill on a bare
// machine. Where the page has a command bring workers of its own, they stand here in this process.
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generateX25519Identity, identityToRecipient } from 'age-encryption';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { orderRun } from '../../src/control/runs.js';
import { parseCommandLine, runCapturedWith } from '../cli/captured.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { startDirectRunner } from '../support/direct-run.js';
import { blocksOf, wordsOf } from '../support/page.js';
import { customerTable, findDifferences, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';

const page = readFileSync(join(import.meta.dirname, '..', '..', 'docs', 'keys.md'), 'utf8');
const blocks = blocksOf(page)
  .filter(({ language }) => language === 'sh')
  .map(({ text }) => text.trim().split('\n'));

/** Where a command goes to work: the database, and where its keyturn.yaml says the root key is. */
type Place = Pick<Shop, 'url' | 'query' | 'environment' | 'control'> & { readonly config: ConfigFile };

let folder: string;
let recipient: string;
let shop: Shop;
let here: Place;
let bareDatabase: TestDatabase;

const configWith = (root: string): ConfigFile => ({ ...shopConfig, keyrings: { customers: { root } } });

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-keys-'));
  mkdirSync(join(folder, 'keyturn'));
  mkdirSync(join(folder, 'drill'));
  const identity = await generateX25519Identity();
  recipient = await identityToRecipient(identity);
  writeFileSync(join(folder, 'keyturn', 'escrow.identity'), identity, { mode: 0o600 });
  const root = join(folder, 'keyturn', 'root-2026.key');
  writeFileSync(root, randomBytes(32), { mode: 0o600 });
  const config = configWith(`file:${root}`);
  shop = await openShop({ config });
  here = { ...shop, config };
  bareDatabase = await createTestDatabase();
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3]);
  await keyturn.close();
});
afterAll(async () => {
  await shop.close();
  await bareDatabase.drop();
  rmSync(folder, { recursive: true });
});

/** The line as it stands for this test: its folders, its recipient, and nobody started by the command. */
function adapted(line: string): string {
  return line
    .replaceAll('/etc/', `${folder}/`)
    .replaceAll('age1…', recipient)
    .replaceAll(/ --local \d/g, '');
}

async function execute(line: string, place: Place): Promise<void> {
  const text = adapted(line);
  if (!text.startsWith('keyturn ')) {
    execFileSync('sh', ['-c', text]);
    return;
  }
  const given = {
    environment: place.environment(),
    openControl: (options: Parameters<typeof openControl>[0]) => openControl({ ...options, file: place.config }),
  };
  const { code, stderr } = await runCapturedWith(given, ...wordsOf(text).slice(1));
  expect({ line, code, stderr: code === 0 ? '' : stderr }).toEqual({ line, code: 0, stderr: '' });
}

const wholeVerification = {
  kind: 'verify',
  keyring: undefined,
  target: undefined,
  scope: undefined,
  reason: 'drill',
} as const;

/** `--local` has somebody do the work, and goes on when it is done. */
async function executeWithWorkers(line: string, place: Place): Promise<void> {
  // A verification always waits for its workers, so it is ordered past the command.
  if (line.startsWith('keyturn verify')) {
    parseCommandLine(wordsOf(line).slice(1));
    await orderRun(place.control.context, { ...wholeVerification, deep: line.includes('--deep') });
  } else await execute(line, place);
  if (!line.includes('--local')) return;
  const unfinished = `SELECT id::int FROM keyturn.run WHERE finished_at IS NULL`;
  for (const { id } of await place.query(unfinished)) {
    const runner = await startDirectRunner(place);
    expect(await runner.finish(Number(id)).finally(runner.close)).toMatchObject({ state: 'succeeded' });
  }
  if (/^keyturn (key compromise|root finalize --reencrypt)/.test(line)) await execute(line, place);
}

/** What `pg_dump` and `psql` bring to another machine. */
async function copyRows(): Promise<void> {
  await bareDatabase.pool.query(customerTable);
  for (const { row } of await shop.query('SELECT to_jsonb(c) AS row FROM customer c'))
    await bareDatabase.pool.query(`INSERT INTO customer SELECT * FROM jsonb_populate_record(NULL::customer, $1)`, [
      JSON.stringify(row),
    ]);
}

async function bareMachine(): Promise<Place> {
  await copyRows();
  const config = configWith(`file:${folder}/drill/root-3.key`);
  const environment = (): Record<string, string> => ({ DATABASE_URL: bareDatabase.url, LOG_LEVEL: 'silent' });
  return {
    url: bareDatabase.url,
    config,
    environment,
    control: openControl({ environment: environment(), file: config }),
    query: async (text, parameters) =>
      (await bareDatabase.pool.query(text, parameters)).rows as Record<string, unknown>[],
  };
}

test('the commands of the page on keys work in their order, from a rotation to the restore drill', async () => {
  const drill = blocks.findIndex((lines) => lines.includes('keyturn init'));
  expect(drill).toBe(blocks.length - 1);
  for (const line of blocks.slice(0, drill).flat()) {
    if (line.includes('backup restore')) rmSync(join(folder, 'keyturn', 'root-2028.key'));
    await executeWithWorkers(line, here);
  }
  const states = await shop.query(
    `SELECT 'v' || version || ' ' || state || CASE WHEN compromised THEN '!' ELSE '' END AS state
     FROM keyturn.data_key WHERE purpose = 1 AND state <> 'destroyed' ORDER BY version`,
  );
  expect(states.map(({ state }) => state)).toEqual([
    'v1 retired!',
    'v2 retired!',
    'v3 retired!',
    'v5 retired!',
    'v7 active',
    'v8 staged',
  ]);

  const bare = await bareMachine();
  for (const line of blocks[drill] ?? []) await executeWithWorkers(line, bare);
  await bare.control.close();
  const keyturn = await openKeyturn({ config: bare.config, environment: bare.environment() });
  expect(await findDifferences({ ...shop, query: bare.query }, keyturn)).toEqual([]);
  await keyturn.close();
});
