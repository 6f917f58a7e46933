// Estimates against the truth: what a real run wrote and took lies where the estimate before it said, within factors that a
// busy machine leaves standing.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import { estimateAfterDryRun, estimateTargets, type TargetEstimate } from '../../src/control/estimate.js';
import { createPolicyVerbs } from '../../src/control/policy.js';
import { beginReencrypt, rotateAndReencrypt, type BegunRun } from '../../src/control/rotate-and-reencrypt.js';
import { resolveQuarantined } from '../../src/control/quarantine.js';
import type { RunRequest } from '../../src/control/runs.js';
import { setSchedule } from '../../src/control/schedules.js';
import { retryRun } from '../../src/control/steer-runs.js';
import { advanceOccurrence } from '../../src/engine/advance-occurrence.js';
import { listOpenOccurrences } from '../../src/store/schedules.js';
import { runCapturedWith } from '../cli/captured.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import { openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

const rows = 6_000;
const noSupply = { require: async () => undefined, start: async () => undefined };

let shop: Shop;
let runner: DirectRunner;

beforeAll(async () => {
  shop = await openShop({
    config: {
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: [{ table: 'note', keyring: 'customers', columns: { body: {} } }],
    },
    ddl: ['CREATE TABLE note (id int PRIMARY KEY, title text, body text)', 'CREATE INDEX ON note (title)'],
  });
  const keyturn = await shop.open();
  const column = keyturn.column('note', 'body');
  const ids = Array.from({ length: rows }, (_, at) => at + 1);
  const bodies: string[] = [];
  for (const id of ids) bodies.push(String(await column.encrypt({ pk: id }, `the body of note ${id}`.padEnd(80))));
  await shop.query(
    `INSERT INTO note SELECT id, 'note ' || id, body FROM unnest($1::int[], $2::text[]) AS n(id, body)`,
    [ids, bodies],
  );
  await shop.query('ANALYZE note');
  await keyturn.close();
  await shop.rotate();
  runner = await startDirectRunner(shop);
});

afterAll(async () => {
  await runner.close();
  await shop.close();
});

/** What rotates waits for members until they have looked, which takes seconds. */
async function whileNobodyIsLive<T>(work: () => Promise<T>): Promise<T> {
  await runner.close();
  const result = await work();
  runner = await startDirectRunner(shop);
  return result;
}

function begin(request: Partial<RunRequest> = {}): Promise<BegunRun> {
  const whole = { keyring: undefined, target: undefined, scope: undefined, deep: false, reason: 'test' };
  return beginReencrypt(shop.control.context, { kind: 'reencrypt', ...whole, ...request }, noSupply);
}

async function measure(work: () => Promise<void>): Promise<{ wal: number; seconds: number; growth: number }> {
  const read = async (): Promise<Record<string, unknown>> => {
    const [row] = await shop.query(
      `SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn AS wal, pg_total_relation_size('note') AS bytes, extract(epoch FROM clock_timestamp()) AS at`,
    );
    return row ?? {};
  };
  await shop.query('CHECKPOINT');
  const before = await read();
  await work();
  const after = await read();
  const grown = (name: string): number => Number(after[name]) - Number(before[name]);
  return { wal: grown('wal'), seconds: grown('at'), growth: grown('bytes') };
}

function expectTruth(
  estimate: TargetEstimate | undefined,
  truth: { wal: number; seconds: number; growth: number },
): void {
  if (estimate === undefined) throw new Error('there is no estimate');
  expect(estimate.rows).toBeGreaterThan(rows * 0.9);
  expect(estimate.rows).toBeLessThan(rows * 1.1);
  expect(truth.wal).toBeGreaterThan(estimate.wal_bytes_low / 3);
  expect(truth.wal).toBeLessThan(estimate.wal_bytes_high * 3);
  // A range so wide that it says nothing would pass as well.
  expect(estimate.wal_bytes_high / estimate.wal_bytes_low).toBeLessThan(8);
  expect(truth.growth).toBeLessThan(estimate.growth_bytes_high * 3);
}

describe('before anything has run', () => {
  test('a sample of the table gives an estimate, writes nothing, and says what it rests on', async () => {
    const before = await imageOf(shop, 'public');
    const [estimate] = await estimateTargets(shop.control.context, []);
    expect(await imageOf(shop, 'public')).toEqual(before);
    expect(estimate?.basis).toContain('first 300 rows');
    expect(estimate?.basis).toContain('1 to 4 times');
    expect(estimate?.seconds_low).toBeGreaterThan(0);
    expect(estimate?.seconds_high).toBeGreaterThan(estimate?.seconds_low ?? 0);
  });

  test('doctor prints it in words, and that free disk cannot be seen', async () => {
    const given = { environment: shop.environment(), openControl };
    const { stdout } = await runCapturedWith(given, 'doctor');
    for (const words of [
      'public.note: about 6,000 rows in ',
      'with 1 worker',
      'of WAL',
      'rests on its first 300 rows',
      'cannot be seen',
    ])
      expect(stdout).toContain(words);
    const { stdout: json } = await runCapturedWith(given, 'doctor', '--json');
    expect(JSON.parse(json)).toMatchObject({ estimates: [{ target: 'public.note', workers: 1 }] });
  });

  test('without a dry run the order is taken, and says that there was none', async () => {
    const begun = await begin({ target: 'note' });
    expect(begun).toMatchObject({ begin: 'ordered', dryRun: null });
    await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = $1`, [begun.report.run_id]);
  });
});

describe('a dry run', () => {
  let dry: number;

  test('that found failures refuses the order for the same rows and key, and no other, until it is told otherwise', async () => {
    const [kept] = await shop.query('SELECT body FROM note WHERE id = 77');
    await shop.query(`UPDATE note SET body = 'in clear' WHERE id = 77`);
    const failed = await runner.finish((await begin({ kind: 'dry_run' })).report.run_id);
    expect(failed.state).toBe('completed_with_failures');
    await expect(begin()).rejects.toMatchObject({
      code: 'DRY_RUN_FAILED',
      kind: 'refused',
      message: expect.stringContaining(`keyturn quarantine list --run ${failed.run_id}`) as string,
    });
    for (const told of [{ acceptFailures: true }, { steering: { isEmergency: true } }, { target: 'note' }]) {
      const begun = await begin(told);
      expect(begun.begin).toBe('ordered');
      await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = $1`, [begun.report.run_id]);
    }
    await shop.query('UPDATE note SET body = $1 WHERE id = 77', [kept?.['body']]);
    // A later clean one stands in its place.
    dry = (await begin({ kind: 'dry_run' })).report.run_id;
    expect(await runner.finish(dry)).toMatchObject({ state: 'succeeded', fields_reencrypted: rows });
  });

  test('that was clean is shown at the order, and its estimate holds what the run then takes', async () => {
    const [estimate] = await estimateAfterDryRun(shop.control.context, dry);
    expect(estimate?.basis).toContain(`all ${rows} rows that dry run ${dry} read`);
    const begun = await begin();
    expect(begun.dryRun).toMatchObject({ run_id: dry, fields_would_move: rows, fields_failed: 0 });
    const truth = await measure(async () => {
      const report = await runner.finish(begun.report.run_id);
      expect(report).toMatchObject({ state: 'succeeded', rows_updated: rows });
    });
    process.stdout.write(`estimated ${JSON.stringify(estimate)}, measured ${JSON.stringify(truth)}\n`);
    expectTruth(estimate, truth);
  });

  test('afterwards rests on what writing the table took', async () => {
    const [estimate] = await estimateTargets(shop.control.context, []);
    expect(estimate?.basis).toMatch(/^what writing took when runs last moved \d+ of its rows$/);
  });
});

test('cells of a failed dry run that were declared dealt with do not refuse an order', async () => {
  await whileNobodyIsLive(shop.rotate);
  await shop.query(`UPDATE note SET body = 'in clear' WHERE id = 78`);
  const failed = await runner.finish((await begin({ kind: 'dry_run' })).report.run_id);
  await expect(begin()).rejects.toMatchObject({ code: 'DRY_RUN_FAILED' });
  const filter = { run: failed.run_id, target: undefined, cause: undefined, reason: 'a test row' };
  expect(await resolveQuarantined(shop.control.context, filter)).toEqual({ cells: 1 });
  expect(await begin()).toMatchObject({ begin: 'ordered', dryRun: { run_id: failed.run_id, fields_failed: 0 } });
});

describe('a dry run before the rotation', () => {
  const rotation = { keyring: undefined, ifOlderThanMs: undefined, reason: 'quarterly', acceptFailures: false };
  let failed: number;

  beforeAll(async () => {
    const moving = (await begin()).report.run_id;
    await runner.finish(moving);
    await shop.query(
      `UPDATE note SET body = overlay(body PLACING CASE substr(body, 41, 1) WHEN 'A' THEN 'B' ELSE 'A' END FROM 41) WHERE id IN (79, 80)`,
    );
  });

  test('decrypts what names the active key as well, and estimates that all of it moves to the next key', async () => {
    const report = await runner.finish((await begin({ kind: 'dry_run' })).report.run_id);
    failed = report.run_id;
    expect(report).toMatchObject({
      state: 'completed_with_failures',
      fields_reencrypted: 0,
      fields_failed: 3,
      failures: [
        { cause: 'AUTHENTICATION_FAILED', cells: 2 },
        { cause: 'NOT_AN_ENVELOPE', cells: 1 },
      ],
    });
    const [estimate] = await estimateAfterDryRun(shop.control.context, failed);
    expect(estimate).toMatchObject({ rows });
    expect(estimate?.basis).toContain('as if each moved to the next key');
  });

  test('refuses rotation and run together, the run after the rotation, the run of a schedule, and a retry, until it is accepted', async () => {
    const { context } = shop.control;
    const keys = await shop.query('SELECT id, state FROM keyturn.data_key ORDER BY id');
    const refusal = {
      code: 'DRY_RUN_FAILED',
      message: expect.stringContaining(`dry run ${failed} found 3 cells`) as string,
    };
    await expect(rotateAndReencrypt(context, { ...rotation, supply: noSupply })).rejects.toMatchObject(refusal);
    expect(await shop.query('SELECT id, state FROM keyturn.data_key ORDER BY id')).toEqual(keys);

    await whileNobodyIsLive(shop.rotate);
    await expect(begin()).rejects.toMatchObject(refusal);
    expect(await waitOfSchedule()).toMatch(
      new RegExp(
        `^dry run ${failed} found 3 cells .* --accept-failures: keyturn reencrypt --keyring customers --accept-failures$`,
      ),
    );
    const accepted = await begin({ acceptFailures: true });
    expect(accepted).toMatchObject({ begin: 'ordered', dryRun: { run_id: failed, fields_would_move: rows - 3 } });
    const cancel = (id: number): Promise<unknown> =>
      shop.query(`UPDATE keyturn.run SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = $1`, [id]);
    await cancel(accepted.report.run_id);
    await expect(retryRun(context, accepted.report.run_id, { reason: 'test' })).rejects.toMatchObject(refusal);
    const retried = await retryRun(context, accepted.report.run_id, { reason: 'test', acceptFailures: true });
    await cancel(retried.run_id);

    const rotated = await whileNobodyIsLive(() =>
      rotateAndReencrypt(context, { ...rotation, acceptFailures: true, supply: noSupply }),
    );
    expect(rotated).toMatchObject({ begin: 'ordered', isNew: true, dryRun: { run_id: failed } });
    expect(await runner.finish(rotated.report.run_id)).toMatchObject({ state: 'completed_with_failures' });
  });

  test('says nothing once a run has moved its rows, nor after a quarter', async () => {
    const after = await begin();
    expect(after).toMatchObject({ begin: 'ordered', dryRun: null });
    await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = $1`, [after.report.run_id]);
    await runner.finish((await begin({ kind: 'dry_run' })).report.run_id);
    await expect(begin()).rejects.toMatchObject({ code: 'DRY_RUN_FAILED' });
    await shop.query(`UPDATE keyturn.run SET finished_at = finished_at - interval '91 days' WHERE kind = 'dry_run'`);
    const unjudged = await begin();
    expect(unjudged).toMatchObject({ begin: 'ordered', dryRun: null });
    await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = $1`, [unjudged.report.run_id]);
  });

  /** What the occurrence of a schedule that is to order its run waits for. */
  async function waitOfSchedule(): Promise<string> {
    const { context } = shop.control;
    const { database } = context;
    const policy = { keyring: undefined, cron: undefined, timeZone: undefined, gradualMs: 0, reason: undefined };
    await setSchedule(context, policy);
    await shop.query(
      `INSERT INTO keyturn.occurrence (schedule_id, period, state) SELECT id, clock_timestamp(), 'reencrypting' FROM keyturn.schedule`,
    );
    const leadership = await runner.lead();
    const [occurrence] = await listOpenOccurrences(database);
    if (occurrence === undefined) throw new Error('no occurrence is open');
    const verbs = createPolicyVerbs(context);
    await advanceOccurrence({ database, leadership, verbs }, occurrence, () => undefined);
    const [waiting] = await listOpenOccurrences(database);
    expect(waiting).toMatchObject({ state: 'reencrypting', runId: undefined });
    return waiting?.waitsFor ?? '';
  }
});

test('the estimate at the order heeds the limits of the order, and that of a dry run its own', async () => {
  const dryRun = (await begin({ kind: 'dry_run', steering: { rowsPerSecond: 100_000, workers: 1 } })).report.run_id;
  await runner.finish(dryRun);
  const seconds = async (steering: RunRequest['steering']): Promise<number> => {
    const begun = await begin({ target: undefined, acceptFailures: true, steering });
    await shop.query(`UPDATE keyturn.run SET state = 'cancelled' WHERE id = $1`, [begun.report.run_id]);
    return Number(begun.dryRun?.seconds_low);
  };
  const free = await seconds(undefined);
  expect(await seconds({ rowsPerSecond: 10 })).toBeGreaterThanOrEqual((2 * rows) / 10);
  expect(free).toBeLessThan(60);
  // Twenty minutes at 10 rows a second do not fit into ten of a night.
  const nightly = await seconds({ rowsPerSecond: 10, hours: '03:00-03:10', zone: 'UTC' });
  expect(nightly).toBeGreaterThan(86_400);
  const [estimate] = await estimateAfterDryRun(shop.control.context, dryRun);
  expect(estimate).toMatchObject({ workers: 1 });
});
