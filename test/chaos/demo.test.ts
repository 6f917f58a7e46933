// The demo as people run it, over the command line, in a process of its own.

import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import pg from 'pg';
import { afterEach, beforeEach, expect, inject, test } from 'vitest';
import { type Child, startNode } from '../support/child.js';
import { until } from '../support/until.js';

const program = join(import.meta.dirname, '..', '..', 'dist', 'workers', 'keyturn.js');
/** Its waiting alone takes half a minute: two convergences and the lease of the killed worker. */
const storyDeadlineMs = 150_000;

let temporary: string;

beforeEach(() => {
  temporary = mkdtempSync(join(tmpdir(), 'keyturn-demo-test-'));
});

afterEach(() => {
  rmSync(temporary, { recursive: true });
});

/** On the server of the test run, in a database of the demo's own; queue in PostgreSQL unless a Redis is given. */
function startDemo(args: readonly string[], redisUrl = ''): Child {
  const env = { DATABASE_URL: inject('adminUrl'), REDIS_URL: redisUrl, REDIS_URL_FILE: '', TMPDIR: temporary };
  return startNode(program, { env, args: ['demo', ...args] });
}

async function ask(connectionString: string, statement: string, parameters: string[] = []): Promise<unknown[]> {
  const client = new pg.Client({ connectionString });
  await client.connect();
  try {
    return (await client.query<Record<string, unknown>>(statement, parameters)).rows;
  } finally {
    await client.end();
  }
}

function databaseOf(demo: Child): string {
  const name = /database (keyturn_demo_\w+) on the given server/.exec(demo.stderr())?.[1];
  if (name === undefined) throw new Error(`the demo names no database of its own:\n${demo.stderr()}`);
  return name;
}

async function expectNothingLeft(demo: Child): Promise<void> {
  const named = 'SELECT datname FROM pg_database WHERE datname = $1';
  expect(await ask(inject('adminUrl'), named, [databaseOf(demo)])).toEqual([]);
  expect(readdirSync(temporary)).toEqual([]);
}

test(
  'I3 I4 the demo proves its story: rows move under live traffic, a killed worker’s batch is finished by another, nothing is lost; with --keep it stays until Ctrl-C',
  async () => {
    const demo = startDemo(['--rows', '6000', '--json', '--keep']);
    await demo.waitForLine(/^\{/, storyDeadlineMs);
    await until(async () => demo.stderr().includes('Ctrl-C ends and removes all of it.'), {
      what: 'the demo to say how to look around',
      deadlineMs: 10_000,
    });
    await expectLookedAround(demo);
    demo.kill('SIGINT');
    expect(await demo.waitForExit(30_000)).toEqual({ code: 0, signal: null });
    expect(demo.lines).toHaveLength(1);
    const report: unknown = JSON.parse(demo.lines[0] ?? '');
    expect(report).toMatchObject({
      proven: true,
      missing: [],
      rows: 6_000,
      cells: 18_000,
      run: { state: 'succeeded' },
      reads: { mismatches: 0 },
      writes: { lost: 0 },
      final_check: { mismatches: 0 },
      deep_verify: { state: 'succeeded' },
      cells_naming_others: 0,
      rows_with_changed_updated_at: 0,
      old_key: { state: 'retired' },
      killed: { signal: 'SIGKILL' },
    });
    const { killed, conflicted, reads, writes, batches, ledger, ...seen } = report as {
      cells_at_end: number;
      cells_naming_new_key: number;
      final_check: { checked: number };
      deep_verify: { cells: number; at_least: number };
      killed: Record<'slices_before' | 'slices_after', number> & Record<'member_id' | 'finished_by_member_id', string>;
      conflicted: number;
      reads: { checked: number };
      writes: Record<'acknowledged' | 'inserted' | 'deleted' | 'while_verifying' | 'while_retiring', number>;
      batches: Record<'examined' | 'reencrypted' | 'current' | 'conflicted' | 'failed', number>;
      ledger: unknown;
    };
    expect(killed.slices_before).toBeGreaterThan(0);
    expect(killed.slices_after).toBeGreaterThan(0);
    expect(killed.finished_by_member_id).toMatch(/^[0-9a-f-]{36}$/);
    expect(killed.finished_by_member_id).not.toBe(killed.member_id);
    expect(conflicted).toBeGreaterThan(0);
    expect(reads.checked).toBeGreaterThan(0);
    for (const count of Object.values({ ...writes, lost: 1 })) expect(count).toBeGreaterThan(0);
    expect(seen.cells_at_end).toBe(18_000 + 3 * (writes.inserted - writes.deleted));
    expect(seen.final_check.checked).toBe(seen.cells_at_end);
    expect(seen.cells_naming_new_key).toBe(seen.cells_at_end);
    expect(seen.deep_verify.cells).toBeGreaterThanOrEqual(seen.deep_verify.at_least);
    expect(batches.examined).toBe(batches.reencrypted + batches.current + batches.conflicted + batches.failed);
    expect(ledger).toEqual(batches);
    await expectNothingLeft(demo);
  },
  storyDeadlineMs,
);

/** By what is printed for it: a file for a shell, which leads to the database and to the root key. */
async function expectLookedAround(demo: Child): Promise<void> {
  const file = /^ {3}\. (\S+)$/m.exec(demo.stderr())?.[1] ?? '';
  expect(statSync(file).mode & 0o777).toBe(0o600);
  const variables = Object.fromEntries(
    [...readFileSync(file, 'utf8').matchAll(/^export (\w+)='(.*)'$/gm)].map(([, name, value]) => [name, value]),
  );
  const states = 'SELECT state FROM keyturn.data_key WHERE purpose = 1 ORDER BY version';
  expect(await ask(variables['DATABASE_URL'] ?? '', states)).toEqual([
    { state: 'retired' },
    { state: 'active' },
    { state: 'staged' },
  ]);
  const look = startNode(program, { env: variables, args: ['status', '--json'] });
  expect(await look.waitForExit(30_000)).toEqual({ code: 0, signal: null });
}

test('Ctrl-C in the middle of the demo ends its processes and removes its database, files and keys in Redis', async () => {
  const redisUrl = inject('redisUrl');
  const demo = startDemo(['--rows', '6000'], redisUrl);
  const pids = await until(
    async () => {
      const started = /supervisor \(pid (\d+)\), worker-1 \(pid (\d+)\), worker-2 \(pid (\d+)\)/.exec(demo.stderr());
      return started?.slice(1).map(Number);
    },
    { what: 'the demo to start its services', deadlineMs: 30_000 },
  );
  const prefix = redisUrl === undefined ? undefined : await untilMarked(demo, redisUrl);
  demo.kill('SIGINT');
  expect(await demo.waitForExit(30_000)).toEqual({ code: 130, signal: null });
  expect(redisUrl === undefined ? [] : await keysIn(redisUrl, `${prefix}:*`)).toEqual([]);
  for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow('ESRCH');
  expect(demo.lines).toEqual([]);
  await expectNothingLeft(demo);
});

async function keysIn(redisUrl: string, pattern: string): Promise<string[]> {
  const redis = new Redis(redisUrl);
  try {
    return await redis.keys(pattern);
  } finally {
    redis.disconnect();
  }
}

/** The prefix of the demo's queue, once there is something in it. */
async function untilMarked(demo: Child, redisUrl: string): Promise<string> {
  const url = new URL(inject('adminUrl'));
  url.pathname = `/${databaseOf(demo)}`;
  return until(
    async () => {
      const [row] = await ask(url.href, 'SELECT queue_prefix FROM keyturn.cluster');
      const prefix = String((row as Record<string, unknown> | undefined)?.['queue_prefix']);
      return (await keysIn(redisUrl, `${prefix}:*`)).length > 0 && prefix;
    },
    { what: 'the demo to mark its queue', deadlineMs: 30_000 },
  );
}

test('the demo refuses a table too small for its story, and says how many rows it takes', async () => {
  const demo = startDemo(['--rows', '500']);
  expect(await demo.waitForExit(30_000)).toEqual({ code: 2, signal: null });
  expect(demo.stderr()).toContain('the demo takes 2000 to 10000000 rows, got 500');
});
