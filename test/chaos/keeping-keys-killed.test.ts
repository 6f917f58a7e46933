// A SIGKILL at every named point of taking a backup and of restoring one; test/integration/backing-up.test.ts has some.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { createBackup, inspectBackup, restoreBackup } from '../../src/control/backups.js';
import type { OpenControl } from '../../src/control/context.js';
import { typedPassphrase } from '../../src/control/secret-input.js';
import { readKeyTables } from '../../src/store/backups.js';
import type { KeyTables } from '../../src/keys/backup.js';
import { startChild } from '../support/child.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { filePoints } from '../support/killing-files.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';

const secret = 'seven-quiet-otters-count-nine-lamps';
const passphrase = typedPassphrase(secret);
const lock = { kind: 'passphrase', passphrase, workFactor: 10 } as const;
const opener = { kind: 'passphrase', passphrase } as const;
const deadlineMs = 30_000;

let shop: Shop;
let folder: string;
let input: string;

beforeAll(async () => {
  shop = await openShop();
  await shop.rotate();
  folder = mkdtempSync(join(tmpdir(), 'keyturn-killed-'));
  input = join(folder, 'whole.age');
  // With the root key: a process of its own, since an environment can be read once.
  const control = openControl({ environment: shop.environment(), file: shopConfig });
  await createBackup(control.context, { output: input, lock, includeRoots: true, force: false, reason: 'test' });
  await control.close();
});
afterAll(async () => {
  await shop.close();
  rmSync(folder, { recursive: true });
});

async function kill(databaseUrl: string, args: readonly string[]): Promise<void> {
  const child = startChild('key-keeper', {
    env: { ...shop.environment(), DATABASE_URL: databaseUrl, TEST_PASSPHRASE: secret },
    onlyEnv: true,
    args,
  });
  expect(await child.waitForExit(deadlineMs)).toMatchObject({ signal: 'SIGKILL' });
}

const tablesOf = ({ context }: OpenControl): Promise<KeyTables> => context.database.transaction(readKeyTables);

describe('taking a backup', () => {
  test.each(filePoints)('killed at %s leaves one whole file and no record of another', async (point) => {
    const output = join(folder, `${point}.age`);
    await createBackup(shop.control.context, { output, lock, includeRoots: false, force: false, reason: 'test' });
    const records = 'SELECT id, file_hash FROM keyturn.backup ORDER BY id';
    const before = await shop.query(records);
    await kill(shop.url, ['create', output, point]);
    expect(await inspectBackup(output, opener)).toMatchObject({ cluster: expect.any(String) as string });
    expect(statSync(output).mode & 0o777).toBe(0o600);
    expect(await shop.query(records)).toEqual(before);
    await createBackup(shop.control.context, { output, lock, includeRoots: false, force: true, reason: 'test' });
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});

describe('restoring one', () => {
  let bare: TestDatabase;
  let control: OpenControl;
  let roots: string;

  beforeEach(async () => {
    bare = await createTestDatabase();
    control = openControl({ environment: { DATABASE_URL: bare.url, LOG_LEVEL: 'silent' }, file: shopConfig });
    roots = mkdtempSync(join(folder, 'roots-'));
  });
  afterEach(async () => {
    await control.close();
    await bare.drop();
  });

  const rows = [1, 2, 3, 4].map((times) => ({ point: 'restore.row_n', times: String(times) }));
  const others = ['restore.parse', 'restore.commit', ...filePoints].map((point) => ({ point, times: '1' }));

  test.each([...rows, ...others])(
    'killed at $point, time $times, brought nothing in, and the next one everything',
    async ({ point, times }) => {
      await kill(bare.url, ['restore', input, point, roots, times]);
      const { rows: schema } = await bare.pool.query(`SELECT to_regclass('keyturn.data_key') IS NOT NULL AS is_there`);
      const there = schema[0]?.is_there === true ? (await bare.pool.query('SELECT id FROM keyturn.data_key')).rows : [];
      expect(there).toEqual([]);
      for (const name of readdirSync(roots).filter((entry) => !entry.endsWith('.tmp')))
        expect(readFileSync(join(roots, name), 'utf8')).toBe(`${shop.rootKey}\n`);
      const report = await restoreBackup(control.context, {
        input,
        opener,
        apply: true,
        rootsTo: roots,
        reason: 'again',
      });
      expect(report).toMatchObject({ applied: true, unopened_keys: [] });
      expect(readFileSync(report.root_files[0] ?? '', 'utf8')).toBe(`${shop.rootKey}\n`);
      expect(statSync(report.root_files[0] ?? '').mode & 0o777).toBe(0o600);
      expect((await tablesOf(control)).dataKeys).toEqual((await tablesOf(shop.control)).dataKeys);
    },
  );
});
