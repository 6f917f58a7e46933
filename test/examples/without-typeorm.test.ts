// The examples without TypeORM, as a newcomer would run them: built against the package, migrated, initialised, tested, and
// tested again after a rotation. They need libraries of their own, which CI installs first.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

const checkout = resolve(import.meta.dirname, '../..');
const example = join(checkout, 'examples/without-typeorm');
const libraries = join(example, 'node_modules');

const isInstalled = existsSync(libraries);
if (!isInstalled && process.env['KEYTURN_REQUIRE_EXAMPLES'] === '1')
  throw new Error(
    'KEYTURN_REQUIRE_EXAMPLES is 1, but the libraries are missing: npm ci --ignore-scripts --prefix examples/without-typeorm',
  );

describe.skipIf(!isInstalled)('the examples with plain pg, Kysely and Drizzle', () => {
  let folder: string;
  let database: TestDatabase;

  beforeAll(async () => {
    database = await createTestDatabase();
    folder = mkdtempSync(join(tmpdir(), 'keyturn-example-'));
    cpSync(example, folder, {
      recursive: true,
      filter: (path) => !['node_modules', 'dist'].includes(basename(path)),
    });
    mkdirSync(join(folder, 'node_modules'));
    symlinkSync(checkout, join(folder, 'node_modules/keyturn'));
    for (const name of readdirSync(libraries).filter((entry) => !entry.startsWith('.')))
      symlinkSync(join(libraries, name), join(folder, 'node_modules', name));
  });

  afterAll(async () => {
    rmSync(folder, { recursive: true, force: true });
    await database.drop();
  });

  test('they build, pass their own tests, and what they read after a rotation moves to the new key', {
    timeout: 120_000,
  }, async () => {
    const env = {
      PATH: process.env['PATH'],
      DATABASE_URL: database.url,
      KEYTURN_ROOT_KEY: randomBytes(32).toString('hex'),
      LOG_LEVEL: 'silent',
    };
    const run = (...args: readonly string[]): string => {
      const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8', env });
      expect({ args, status, output: status === 0 ? '' : stdout + stderr }).toEqual({ args, status: 0, output: '' });
      return stdout;
    };
    const keyturn = (...args: readonly string[]): string => run(join(checkout, 'dist/workers/keyturn.js'), ...args);
    const envelopes = async (): Promise<readonly { id: string; library: string; email: string }[]> =>
      (await database.pool.query('SELECT id, tenant AS library, email FROM customer ORDER BY id')).rows as never;

    run(join(libraries, 'typescript/bin/tsc'));
    run('dist/src/migrate.js');
    keyturn('init');
    expect(run('--test', 'dist/test/customers.test.js')).toMatch(/# pass 9\n.*# fail 0/s);
    const before = await envelopes();
    expect(new Set(before.map(({ library }) => library))).toEqual(new Set(['pg', 'kysely', 'drizzle']));

    keyturn('key', 'rotate', '--reason', 'first rotation');
    run('--test', 'dist/test/customers.test.js');
    const after = new Map((await envelopes()).map(({ id, email }) => [id, email]));
    expect(before.filter(({ id, email }) => after.get(id) === email)).toEqual([]);
    expect(keyturn('status')).toContain(`${before.length} cells moved`);
  });
});
