// The last dry run, kept as a run like any other, and what it says to whoever orders the real one. Its failures are those
// still unresolved in quarantine: cells that were mended, retried or declared dealt with no longer count.
import { KeyturnError } from '../errors.js';
import { noLimits } from '../rotation/limits.js';
import { listFailures } from '../store/quarantine.js';
import { findDryRun, sumRun } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { estimateWhole } from './estimate.js';
import { chooseKeyring } from './keys.js';
import { changeSteering, findTarget, type RunRequest } from './runs.js';

export interface DryRunSummary {
  readonly run_id: number;
  readonly finished_at: string;
  readonly age_seconds: number;
  readonly fields_would_move: number;
  readonly fields_failed: number;
  readonly seconds_low: number;
  readonly seconds_high: number;
}

/**
 * Asked before every order, whoever gives it. Answers the last dry run over exactly the rows of the request, null where
 * there was none; throws DRY_RUN_FAILED where its failures stand and nobody accepts them, and it is no emergency.
 */
export async function judgeByDryRun(context: ControlContext, request: RunRequest): Promise<DryRunSummary | null> {
  const dryRun = await readDryRun(context, request);
  if (dryRun === undefined) return null;
  if (dryRun.fields_failed > 0 && request.acceptFailures !== true && request.steering?.isEmergency !== true)
    throw new KeyturnError(
      'DRY_RUN_FAILED',
      `dry run ${dryRun.run_id} found ${dryRun.fields_failed} ${dryRun.fields_failed === 1 ? 'cell' : 'cells'} that would fail; see: keyturn quarantine list --run ${dryRun.run_id}; mend them and repeat the dry run, or begin all the same with --accept-failures`,
      { run: dryRun.run_id, failed: dryRun.fields_failed },
    );
  return dryRun;
}

async function readDryRun(context: ControlContext, request: RunRequest): Promise<DryRunSummary | undefined> {
  const { database } = context;
  const keyring = await chooseKeyring(database, request.keyring);
  const target = request.target === undefined ? undefined : await findTarget(context, request.target);
  const run = await findDryRun(database, { keyringId: keyring.id, targetId: target?.id, scope: request.scope });
  if (run?.finishedAt === undefined) return undefined;
  const { outcome } = await sumRun(database, run);
  const failures = await listFailures(database, run.id);
  // What named the key of that time is behind a newer one.
  const isBehind = keyring.keys.find((key) => key.state === 'active')?.id !== run.targetKeyId;
  const { limits } = changeSteering({ limits: noLimits, priority: 0 }, request.steering ?? {});
  const seconds = await estimateWhole(context, run, limits);
  const { rows } = await database.query('SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz)::float8', [
    run.finishedAt,
  ]);
  return {
    run_id: run.id,
    finished_at: run.finishedAt.toISOString(),
    age_seconds: Math.round(Number(rows[0]?.[0])),
    fields_would_move: outcome.cellsReencrypted + (isBehind ? outcome.cellsCurrent : 0),
    fields_failed: failures.reduce((sum, failure) => sum + failure.cells, 0),
    seconds_low: seconds.low,
    seconds_high: seconds.high,
  };
}
