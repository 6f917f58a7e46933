// The example application, as a newcomer would run it: built against the package, migrated, initialised, tested, rotated.
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { createTestDatabase, type TestDatabase } from '../support/database.js';

const checkout = resolve(import.meta.dirname, '../..');

let folder: string;
let database: TestDatabase;

beforeAll(async () => {
  database = await createTestDatabase();
  folder = mkdtempSync(join(tmpdir(), 'keyturn-example-'));
  cpSync(join(checkout, 'examples/typeorm-shop'), folder, { recursive: true });
  mkdirSync(join(folder, 'node_modules/@types'), { recursive: true });
  symlinkSync(checkout, join(folder, 'node_modules/keyturn'));
  for (const name of ['typeorm', 'pg', '@types/node'])
    symlinkSync(join(checkout, 'node_modules', name), join(folder, 'node_modules', name));
});

afterAll(async () => {
  rmSync(folder, { recursive: true, force: true });
  await database.drop();
});

test('the example with TypeORM builds, passes its own tests, and goes through a rotation by reads', {
  timeout: 120_000,
}, () => {
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
  run(join(checkout, 'node_modules/typescript/bin/tsc'));
  run('dist/src/migrate.js');
  keyturn('init');
  expect(run('--test', 'dist/test/shop.test.js')).toContain('# pass 4');
  keyturn('key', 'rotate', '--reason', 'first rotation');
  expect(run('--test', 'dist/test/shop.test.js')).toContain('# pass 4');
  expect(keyturn('status')).toMatch(/by reads +\d+ cells moved/);
});
