// The demo as people run it, over the command line, in a process of its own.

import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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

/** On the server of the test run, in a database of the demo's own; queue in PostgreSQL. */
function startDemo(...args: string[]): Child {
  const env = { DATABASE_URL: inject('adminUrl'), REDIS_URL: '', REDIS_URL_FILE: '', TMPDIR: temporary };
  return startNode(program, { env, args: ['demo', ...args] });
}

async function expectNothingLeft(demo: Child): Promise<void> {
  const name = /database (keyturn_demo_\w+) on the given server/.exec(demo.stderr())?.[1];
  expect(name).toBeDefined();
  const client = new pg.Client({ connectionString: inject('adminUrl') });
  await client.connect();
  try {
    const { rows } = await client.query('SELECT datname FROM pg_database WHERE datname = $1', [name]);
    expect(rows).toEqual([]);
  } finally {
    await client.end();
  }
  expect(readdirSync(temporary)).toEqual([]);
}

test(
  'I3 I4 the demo proves its story: rows move under live traffic, a killed worker’s batch is finished by another, nothing is lost',
  async () => {
    const demo = startDemo('--rows', '6000', '--json');
    const exit = await demo.waitForExit(storyDeadlineMs);
    if (exit.code !== 0) throw new Error(`the demo ended with ${JSON.stringify(exit)}:\n${demo.stderr()}`);
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
      final_check: { checked: 18_000, mismatches: 0 },
      deep_verify: { state: 'succeeded', cells: 18_000 },
      cells_naming_new_key: 18_000,
      cells_naming_others: 0,
      rows_with_changed_updated_at: 0,
      old_key: { state: 'retired' },
      killed: { signal: 'SIGKILL' },
    });
    const { killed, conflicted, reads, writes, batches, ledger } = report as {
      killed: Record<'slices_before' | 'slices_after', number> & Record<'member_id' | 'finished_by_member_id', string>;
      conflicted: number;
      reads: { checked: number };
      writes: { acknowledged: number };
      batches: Record<'examined' | 'reencrypted' | 'current' | 'conflicted' | 'failed', number>;
      ledger: unknown;
    };
    expect(killed.slices_before).toBeGreaterThan(0);
    expect(killed.slices_after).toBeGreaterThan(0);
    expect(killed.finished_by_member_id).toMatch(/^[0-9a-f-]{36}$/);
    expect(killed.finished_by_member_id).not.toBe(killed.member_id);
    expect(conflicted).toBeGreaterThan(0);
    expect(reads.checked).toBeGreaterThan(0);
    expect(writes.acknowledged).toBeGreaterThan(0);
    expect(batches.examined).toBe(batches.reencrypted + batches.current + batches.conflicted + batches.failed);
    expect(ledger).toEqual(batches);
    await expectNothingLeft(demo);
  },
  storyDeadlineMs,
);

test('Ctrl-C in the middle of the demo ends its processes and removes its database and files', async () => {
  const demo = startDemo('--rows', '6000');
  const pids = await until(
    async () => {
      const started = /supervisor \(pid (\d+)\), worker-1 \(pid (\d+)\), worker-2 \(pid (\d+)\)/.exec(demo.stderr());
      return started?.slice(1).map(Number);
    },
    { what: 'the demo to start its services', deadlineMs: 30_000 },
  );
  demo.kill('SIGINT');
  expect(await demo.waitForExit(30_000)).toEqual({ code: 130, signal: null });
  for (const pid of pids) expect(() => process.kill(pid, 0)).toThrow('ESRCH');
  expect(demo.lines).toEqual([]);
  await expectNothingLeft(demo);
});

test('the demo refuses a table too small for its story, and says how many rows it takes', async () => {
  const demo = startDemo('--rows', '500');
  expect(await demo.waitForExit(30_000)).toEqual({ code: 2, signal: null });
  expect(demo.stderr()).toContain('the demo takes 2000 to 10000000 rows, got 500');
});
