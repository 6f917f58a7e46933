// What the leading supervisor reads of the cluster: progress, rate and time left out of the ledger, and how rarely it asks.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { removeSchedule, setSchedule } from '../../src/control/schedules.js';
import { openClusterMetrics } from '../../src/engine/cluster-metrics.js';
import { readKeyringNumbers, readRunNumbers } from '../../src/store/numbers.js';
import { openMetrics } from '../../src/telemetry/metrics.js';
import { openShop, type Shop } from '../support/shop.js';

let shop: Shop;
let run: number;

/** A run in the middle of its pass, as supervisor and workers would have left it: 600 of 1000 rows, all in the last minute. */
beforeAll(async () => {
  shop = await openShop();
  run = await shop.order();
  await shop.query(
    `UPDATE keyturn.run SET state = 'running', pass = 1, created_at = clock_timestamp() - interval '1 hour' WHERE id = $1`,
    [run],
  );
  await shop.query(
    'INSERT INTO keyturn.run_target (run_id, pass, target_id, estimated_rows) SELECT $1, 1, id, 1000 FROM keyturn.target',
    [run],
  );
  const batch = `INSERT INTO keyturn.batch (run_id, pass, target_id, kind, state, slices, started_at, finished_at, dispatched_at,
      rows_examined, rows_updated, rows_failed, cells_examined, cells_reencrypted, cells_failed)
    SELECT $1, $2, id, 'reencrypt', $3, 1, clock_timestamp(), $4::timestamptz, clock_timestamp() - interval '30 s', $5::int, $5::int - $6::int, $6::int, $5, $5::int - $6::int, $6
    FROM keyturn.target`;
  const hourAgo = new Date(Date.now() - 3_600_000);
  await shop.query(batch, [run, 1, 'done', new Date(), 400, 10]);
  await shop.query(batch, [run, 1, 'running', null, 200, 0]);
  await shop.query(batch, [run, 1, 'dispatched', null, 0, 0]);
  await shop.query(batch, [run, 0, 'done', hourAgo, 5_000, 0]);
  await shop.query(
    `INSERT INTO keyturn.ledger (batch_id, slice, member_id, committed_at, read_ms, crypto_ms, write_ms, rows_examined, rows_updated, rows_failed, cells_examined, cells_reencrypted, cells_failed)
     SELECT id, 1, gen_random_uuid(), coalesce(finished_at, clock_timestamp()), 1, 1, 1, rows_examined, rows_updated, rows_failed, cells_examined, cells_reencrypted, cells_failed
     FROM keyturn.batch WHERE run_id = $1 AND rows_examined > 0`,
    [run],
  );
});
afterAll(() => shop.close());

test('rows left are those estimated less those of this pass, the rate is that of the last minute, and the rest follows', async () => {
  const [numbers] = await readRunNumbers(shop.control.context.database);
  expect(numbers).toMatchObject({
    id: run,
    state: 'running',
    rows: { updated: 5_590, failed: 10, skipped: 0, conflicted: 0 },
    passRows: 600,
    passEstimatedRows: 1_000,
    rowsPerSecond: 10,
    batches: { pending: 0, dispatched: 1, running: 1, done: 1 },
  });
  // Slices were settled a moment ago, whatever the age of the run.
  expect(numbers?.idleSeconds).toBeLessThan(3_000);
});

test('scrapes that come together or soon after each other read the cluster once, and show what is left and for how long', async () => {
  const metrics = openMetrics('supervisor', '1');
  let asked = 0;
  const cluster = openClusterMetrics({
    database: shop.control.context.database,
    queue: {
      depth: async () => {
        asked++;
        return 7;
      },
    },
    metrics,
    isLeading: () => true,
    heldBack: () => new Map(),
    onTrouble: (error) => {
      throw error;
    },
  });
  await Promise.all([cluster.refresh(), cluster.refresh(), cluster.refresh()]);
  await cluster.refresh();
  const text = await metrics.text();
  metrics.stop();
  expect(asked).toBe(1);
  const labels = `{run="${run}",keyring="customers",kind="reencrypt"}`;
  for (const line of [
    `keyturn_run_rows_left${labels} 400`,
    `keyturn_run_rows_per_second${labels} 10`,
    `keyturn_run_eta_seconds${labels} 40`,
    'keyturn_runs{state="running"} 1',
    'keyturn_batches{state="dispatched"} 1',
    'keyturn_queue_jobs 7',
    'keyturn_pace_factor 1',
  ])
    expect(text).toContain(`${line}\n`);
  expect(Number(/^keyturn_queue_oldest_age_seconds (\S+)$/m.exec(text)?.[1])).toBeGreaterThanOrEqual(30);
});

test('reading the runs visits the ledger only of batches that are out or were done a moment ago', async () => {
  await shop.query(
    `INSERT INTO keyturn.batch (run_id, pass, target_id, kind, state, slices, finished_at)
     SELECT $1, 0, t.id, 'reencrypt', 'done', 1, clock_timestamp() - interval '1 hour' FROM keyturn.target t, generate_series(1, 500)`,
    [run],
  );
  let statement = '';
  const { database } = shop.control.context;
  await readRunNumbers({
    query(text, parameters) {
      statement = text;
      return database.query(text, parameters);
    },
  });
  const visited = await database.query(`EXPLAIN (ANALYZE, FORMAT JSON) ${statement}`, [60]);
  const explained = visited.rows[0]?.[0] as readonly { readonly Plan: PlanNode }[] | undefined;
  // The one that runs, the one that is dispatched, the one done a moment ago; of over 500.
  expect(explained?.map(({ Plan }) => ledgerVisits(Plan))).toEqual([3]);
});

test('the next rotation is counted down to where a schedule rotates the keyring, and absent where none does', async () => {
  const { database } = shop.control.context;
  const next = async (): Promise<number | undefined> => (await readKeyringNumbers(database))[0]?.nextRotationSeconds;
  expect(await next()).toBeUndefined();
  await setSchedule(shop.control.context, {
    keyring: undefined,
    cron: undefined,
    timeZone: undefined,
    gradualMs: undefined,
    reason: 'test',
  });
  await shop.query(`UPDATE keyturn.schedule SET next_at = clock_timestamp() + interval '2 days'`);
  expect(await next()).toBeGreaterThan(86_400);
  expect(await next()).toBeLessThanOrEqual(2 * 86_400);
  await removeSchedule(shop.control.context, undefined, 'test');
  expect(await next()).toBeUndefined();
});

interface PlanNode {
  readonly 'Relation Name'?: string;
  readonly 'Actual Loops': number;
  readonly Plans?: readonly PlanNode[];
}

/** How often the ledger was looked into while the statement ran. */
function ledgerVisits(node: PlanNode): number {
  const own = node['Relation Name'] === 'ledger' ? node['Actual Loops'] : 0;
  return own + (node.Plans ?? []).reduce((sum, below) => sum + ledgerVisits(below), 0);
}
