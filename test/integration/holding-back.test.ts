// What a step of a run answers to hold it back, and what the metrics make of it: a run that rests is neither idle nor work
// that waits for workers.
import { randomUUID } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { advanceRun } from '../../src/engine/advance-run.js';
import { openClusterMetrics } from '../../src/engine/cluster-metrics.js';
import type { HeldReason } from '../../src/rotation/held-back.js';
import { holdLeadership, type Leadership } from '../../src/store/leadership.js';
import { writePace } from '../../src/store/pace.js';
import { getRun } from '../../src/store/runs.js';
import { openMetrics } from '../../src/telemetry/metrics.js';
import { samplesOf } from '../support/health.js';
import { insertMember } from '../support/members.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
let run: number;
let leadership: Leadership;
beforeAll(async () => {
  shop = await openShop();
  await shop.query(`INSERT INTO customer (id, tenant_id) VALUES (1, 'a')`);
  const held = await holdLeadership(shop.control.context.database, randomUUID());
  if (held === undefined) throw new Error('nobody else leads');
  leadership = held;
  run = await shop.order();
});
afterAll(() => shop.close());

async function step(rest?: Parameters<typeof advanceRun>[2]): ReturnType<typeof advanceRun> {
  const { database } = shop.control.context;
  return advanceRun({ database, leadership }, await getRun(database, run), rest);
}

async function wordsOfRun(): Promise<unknown> {
  return (await shop.query('SELECT held_back_by FROM keyturn.run WHERE id = $1', [run]))[0]?.['held_back_by'];
}

test('each step of a run answers what holds it back, in the words that the run shows', async () => {
  const laggard = await insertMember(shop, { name: 'billing', holds: [1], writes: 0 });
  expect(await step()).toEqual({ reason: 'member', words: expect.stringContaining('waiting for application billing') });
  expect(await wordsOfRun()).toMatch(/^waiting for application billing/);
  const rest = { reason: 'hours', words: 'outside its hours' } as const;
  expect(await step(rest)).toEqual(rest);
  expect(await wordsOfRun()).toBe('outside its hours');
  await shop.query('DELETE FROM keyturn.member WHERE id = $1', [laggard]);
  expect(await step()).toBeUndefined();

  const noWorker = { reason: 'no_worker', words: 'no live worker; start one with: keyturn worker' };
  expect(await step()).toEqual(noWorker);
  await insertMember(shop, { name: 'worker', kind: 'worker', holds: [1], writes: 1 });
  const { database } = shop.control.context;
  await writePace(database, { targetWorkers: 1, nice: 1, reason: 'replica r1 lags', signals: {} });
  expect(await step()).toEqual({ reason: 'pace', words: 'replica r1 lags' });
  await shop.query(`UPDATE keyturn.pace SET measured_at = measured_at - interval '1 minute'`);
  expect(await step()).toEqual({
    reason: 'pace',
    words:
      "nobody has measured the database's health for over 15 s, so the workers go slowly; look at the log of the supervisor",
  });
  expect(await wordsOfRun()).toMatch(/^nobody has measured/);
  await shop.query('DELETE FROM keyturn.pace');
  expect(await step()).toBeUndefined();
  expect(await wordsOfRun()).toBeNull();
});

test('a run that rests shows why, is not idle, and its batches are not work that waits; one for want of a worker is all of that', async () => {
  const shown = async (reason: HeldReason | undefined): Promise<ReadonlyMap<string, number>> => {
    const metrics = openMetrics('supervisor', '1');
    const cluster = openClusterMetrics({
      database: shop.control.context.database,
      queue: { depth: async () => 0 },
      metrics,
      isLeading: () => true,
      heldBack: () => new Map(reason === undefined ? [] : [[run, reason]]),
      onTrouble: (error) => {
        throw error;
      },
    });
    await cluster.refresh();
    const samples = samplesOf(await metrics.text());
    metrics.stop();
    return samples;
  };
  const labels = `run="${run}",keyring="customers",kind="reencrypt"`;
  for (const reason of ['hours', 'emergency', 'member'] as const) {
    const samples = await shown(reason);
    expect(samples.get(`keyturn_run_held{${labels},reason="${reason}"}`)).toBe(1);
    expect(samples.has(`keyturn_run_idle_seconds{${labels}}`)).toBe(false);
    expect(samples.get('keyturn_batches{state="pending"}')).toBe(0);
    expect(samples.get('keyturn_runs{state="running"}')).toBe(1);
  }
  for (const reason of ['no_worker', 'pace', 'locks', 'trouble', undefined] as const) {
    const samples = await shown(reason);
    expect(samples.get(`keyturn_run_held{${labels},reason="${reason}"}`)).toBe(reason && 1);
    expect(samples.get(`keyturn_run_idle_seconds{${labels}}`)).toBeGreaterThanOrEqual(0);
    expect(samples.get('keyturn_batches{state="pending"}')).toBe(1);
  }
  await shop.query(`UPDATE keyturn.run SET state = 'paused', resume_state = 'running' WHERE id = $1`, [run]);
  const paused = await shown('paused');
  expect(paused.has(`keyturn_run_idle_seconds{${labels}}`)).toBe(false);
  expect(paused.get('keyturn_batches{state="pending"}')).toBe(0);
});
