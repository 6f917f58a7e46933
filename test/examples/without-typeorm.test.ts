// The examples without TypeORM, as a newcomer would run them: built against the package, migrated, initialised, tested, and
// tested again after a rotation. They need libraries of their own, which CI installs first.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { createTestDatabase } from '../support/database.js';

const checkout = resolve(import.meta.dirname, '../..');

const examples = [
  {
    name: 'without-typeorm',
    build: [['node_modules/typescript/bin/tsc']],
    tests: 9,
    tenants: ['drizzle', 'kysely', 'pg'],
  },
  {
    name: 'prisma',
    build: [['node_modules/prisma/build/index.js', 'generate'], ['node_modules/typescript/bin/tsc']],
    tests: 3,
    tenants: ['prisma'],
  },
].map((example) => ({ ...example, isInstalled: hasLibraries(example.name) }));

function hasLibraries(example: string): boolean {
  const isThere = existsSync(join(checkout, 'examples', example, 'node_modules'));
  if (!isThere && process.env['KEYTURN_REQUIRE_EXAMPLES'] === '1')
    throw new Error(
      `KEYTURN_REQUIRE_EXAMPLES is 1, but libraries are missing: npm ci --ignore-scripts --prefix examples/${example}`,
    );
  return isThere;
}

/** A copy of the example with its own libraries, and this checkout as the package. */
function copyExample(example: string): string {
  const source = join(checkout, 'examples', example);
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-example-'));
  onTestFinished(() => rmSync(folder, { recursive: true, force: true }));
  const isMade = (path: string): boolean => ['node_modules', 'dist', 'generated'].includes(basename(path));
  cpSync(source, folder, { recursive: true, filter: (path) => !isMade(path) });
  mkdirSync(join(folder, 'node_modules'));
  symlinkSync(checkout, join(folder, 'node_modules/keyturn'));
  for (const entry of readdirSync(join(source, 'node_modules')))
    if (!entry.startsWith('.') && entry !== 'keyturn')
      symlinkSync(join(source, 'node_modules', entry), join(folder, 'node_modules', entry));
  return folder;
}

for (const { name, build, tests, tenants, isInstalled } of examples) {
  test.skipIf(!isInstalled)(
    `examples/${name} builds, passes its own tests, and moves to the new key what it reads`,
    {
      timeout: 120_000,
    },
    async () => {
      const database = await createTestDatabase();
      onTestFinished(() => database.drop());
      const folder = copyExample(name);
      const env = {
        PATH: process.env['PATH'],
        DATABASE_URL: database.url,
        KEYTURN_ROOT_KEY: randomBytes(32).toString('hex'),
        LOG_LEVEL: 'silent',
        // Prisma fetches an engine and looks for newer versions of itself; neither is needed to generate a client.
        PRISMA_SCHEMA_ENGINE_BINARY: process.execPath,
        CHECKPOINT_DISABLE: '1',
      };
      const run = (...args: readonly string[]): string => {
        const { status, stdout, stderr } = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8', env });
        expect({ args, status, output: status === 0 ? '' : stdout + stderr }).toEqual({ args, status: 0, output: '' });
        return stdout;
      };
      const keyturn = (...args: readonly string[]): string => run(join(checkout, 'dist/workers/keyturn.js'), ...args);
      const envelopes = async (): Promise<Map<string, string>> => {
        const { rows } = await database.pool.query<{ id: string; email: string }>('SELECT id, email FROM customer');
        return new Map(rows.map(({ id, email }) => [id, email]));
      };

      for (const step of build) run(...step);
      run('dist/src/migrate.js');
      keyturn('init');
      expect(run('--test', 'dist/test/customers.test.js')).toMatch(new RegExp(`# pass ${tests}\n`));
      const { rows } = await database.pool.query<{ tenant: string }>(
        'SELECT DISTINCT tenant FROM customer ORDER BY tenant',
      );
      expect(rows.map(({ tenant }) => tenant)).toEqual(tenants);
      const before = await envelopes();

      keyturn('key', 'rotate', '--reason', 'first rotation');
      expect(run('--test', 'dist/test/customers.test.js')).toMatch(new RegExp(`# pass ${tests}\n`));
      const after = await envelopes();
      expect([...before].filter(([id, email]) => after.get(id) === email)).toEqual([]);
      expect(keyturn('status')).toContain(`${before.size} cells moved`);
    },
  );
}
