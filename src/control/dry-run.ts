// The last dry run, kept as a run like any other, and what it says to whoever orders the real one. Its failures are those
// still unresolved in quarantine: cells that were mended, retried or declared dealt with no longer count.
import { KeyturnError } from '../errors.js';
import { listFailures } from '../store/quarantine.js';
import { findDryRun, sumRun } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { estimateAfterDryRun } from './estimate.js';
import { prepareOrder, type RunRequest } from './runs.js';

export interface DryRunSummary {
  readonly run_id: number;
  readonly finished_at: string;
  readonly age_seconds: number;
  readonly fields_would_move: number;
  readonly fields_failed: number;
  readonly seconds_low: number;
  readonly seconds_high: number;
}

/** Over exactly the rows of the request, toward the key that is active now; undefined where there was none. */
export async function readDryRun(context: ControlContext, request: RunRequest): Promise<DryRunSummary | undefined> {
  const { database } = context;
  const run = await findDryRun(database, await prepareOrder(context, request));
  if (run?.finishedAt === undefined) return undefined;
  const { outcome } = await sumRun(database, run);
  const failures = await listFailures(database, run.id);
  const estimates = await estimateAfterDryRun(context, run.id);
  const { rows } = await database.query('SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz)::float8', [
    run.finishedAt,
  ]);
  return {
    run_id: run.id,
    finished_at: run.finishedAt.toISOString(),
    age_seconds: Math.round(Number(rows[0]?.[0])),
    fields_would_move: outcome.cellsReencrypted,
    fields_failed: failures.reduce((sum, failure) => sum + failure.cells, 0),
    seconds_low: estimates.reduce((sum, estimate) => sum + estimate.seconds_low, 0),
    seconds_high: estimates.reduce((sum, estimate) => sum + estimate.seconds_high, 0),
  };
}

/** Throws DRY_RUN_FAILED. */
export function refuseAfterFailedDryRun(dryRun: DryRunSummary): void {
  if (dryRun.fields_failed === 0) return;
  throw new KeyturnError(
    'DRY_RUN_FAILED',
    `dry run ${dryRun.run_id} found ${dryRun.fields_failed} ${dryRun.fields_failed === 1 ? 'cell' : 'cells'} that would fail; see: keyturn quarantine list --run ${dryRun.run_id}; mend them and repeat the dry run, or begin all the same with --accept-failures`,
    { run: dryRun.run_id, failed: dryRun.fields_failed },
  );
}
