// What the other tests stand on: waiting, a database per file, private Redis, real child processes.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { availableBackends } from './support/backends.js';
import { startNode } from './support/child.js';
import { createTestDatabase, removeClosedDatabases } from './support/database.js';
import { answersPing, startPrivateRedis } from './support/redis.js';
import { until } from './support/until.js';

describe('until', () => {
  test('gives what the condition gave first', async () => {
    const answers = [undefined, false, 0, 1] as const;
    let asked = 0;
    const met = await until(async () => answers[asked++], { what: 'a number', deadlineMs: 5_000 });
    expect(met).toBe(0);
    expect(asked).toBe(3);
  });

  test('names what it waited for, even when the condition never settles', async () => {
    const never = () => new Promise<true>(() => undefined);
    await expect(until(never, { what: 'the impossible', deadlineMs: 50 })).rejects.toThrow(
      'waited 50 ms for the impossible, in vain',
    );
  });

  test("a condition's own error ends the waiting", async () => {
    const broken = async () => {
      throw new Error('broken');
    };
    await expect(until(broken, { what: 'anything', deadlineMs: 5_000 })).rejects.toThrow('broken');
  });
});

describe('createTestDatabase', () => {
  async function countDatabases(url: string): Promise<number> {
    const client = new pg.Client({ connectionString: inject('adminUrl') });
    await client.connect();
    try {
      const name = new URL(url).pathname.slice(1);
      return (await client.query('SELECT FROM pg_database WHERE datname = $1', [name])).rowCount ?? 0;
    } finally {
      await client.end();
    }
  }

  test('databases are apart from each other, and gone after drop whoever is connected', async () => {
    const [one, two] = await Promise.all([createTestDatabase(), createTestDatabase()]);
    await one.pool.query('CREATE TABLE only_here ()');
    await expect(two.pool.query('SELECT FROM only_here')).rejects.toMatchObject({ code: '42P01' });

    const stranger = new pg.Client({ connectionString: one.url });
    stranger.on('error', () => undefined);
    await stranger.connect();
    await Promise.all([one.drop(), two.drop()]);
    const late = new pg.Client({ connectionString: one.url });
    await expect(late.connect()).rejects.toThrow('not currently accepting connections');
    await removeClosedDatabases();
    expect(await countDatabases(one.url)).toBe(0);
    expect(await countDatabases(two.url)).toBe(0);
  });

  test('a migrated database has the schemas of init, and nothing in them', async () => {
    const database = await createTestDatabase({ isMigrated: true });
    expect((await database.pool.query('SELECT FROM keyturn.keyring')).rowCount).toBe(0);
    expect((await database.pool.query('SELECT FROM keyturn.cluster')).rowCount).toBe(0);
    await database.drop();
  });

  test('a connection that was not released fails the drop, which drops all the same', async () => {
    const database = await createTestDatabase();
    const leaked = await database.pool.connect();
    leaked.on('error', () => undefined);
    await expect(database.drop()).rejects.toThrow('1 connection(s) of the test pool were not released');
    await removeClosedDatabases();
    expect(await countDatabases(database.url)).toBe(0);
    leaked.release(true);
    await database.pool.end();
  });
});

describe.runIf(availableBackends().includes('redis'))('startPrivateRedis', () => {
  test('a private Redis can be wiped, killed and stopped twice', async () => {
    const redis = await startPrivateRedis();
    if (redis === undefined) return;
    expect(redis.url).not.toBe(inject('redisUrl'));
    await redis.flushAll();
    process.kill(redis.pid, 'SIGKILL');
    await until(async () => !(await answersPing(redis.url)), { what: 'Redis to be gone', deadlineMs: 5_000 });
    await redis.stop();
    await redis.stop();
  });
});

describe('startNode', () => {
  let folder: string;

  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'keyturn-child-test-'));
  });

  afterAll(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  function script(text: string): string {
    const file = join(folder, `${text.length}.mjs`);
    writeFileSync(file, text);
    return file;
  }

  test('its lines can be waited for before and after they are printed', async () => {
    const file = script(`console.log('first ' + process.argv[2]); setTimeout(() => console.log('second'), 100);`);
    const child = startNode(file, { args: ['one'] });
    expect((await child.waitForLine(/second/, 5_000))[0]).toBe('second');
    expect((await child.waitForLine(/^first (\w+)$/, 5_000))[1]).toBe('one');
    expect(await child.waitForExit(5_000)).toEqual({ code: 0, signal: null });
    expect(child.lines).toEqual(['first one', 'second']);
    expect(child.kill('SIGTERM')).toBe(false);
  });

  test('a child that ends without the awaited line fails the wait at once, and shows its stderr', async () => {
    const child = startNode(script(`console.error(process.env.WORD); process.exitCode = 3;`), {
      env: { WORD: 'sorry' },
    });
    await expect(child.waitForLine(/never/, 20_000)).rejects.toThrow(/ended before printing \/never\/[^]*sorry/);
    expect(await child.waitForExit(5_000)).toEqual({ code: 3, signal: null });
  });

  test('it can be killed', async () => {
    const child = startNode(script(`console.log('up'); setInterval(() => undefined, 1_000);`));
    await child.waitForLine(/up/, 5_000);
    expect(child.kill('SIGKILL')).toBe(true);
    expect(await child.waitForExit(5_000)).toEqual({ code: null, signal: 'SIGKILL' });
  });
});
