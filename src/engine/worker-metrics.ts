// What a worker shows of its own work: counts and durations of the slices it settled, how its batches ended, what it holds.
import type { Outcome } from '../rotation/outcome.js';
import type { Metrics } from '../telemetry/metrics.js';
import type { SliceReport } from './services.js';
import type { Worked } from './work-batch.js';

export function countSlice(metrics: Metrics, slice: SliceReport): void {
  const { kind, outcome } = slice;
  for (const [name, value] of Object.entries(rowsOf(outcome)))
    metrics.add('keyturn_rows_total', { kind, outcome: name }, value);
  for (const [name, value] of Object.entries(cellsOf(outcome)))
    metrics.add('keyturn_cells_total', { kind, outcome: name }, value);
  metrics.add('keyturn_bytes_total', { kind }, slice.bytes);
  for (const [step, milliseconds] of [
    ['read', slice.readMs],
    ['crypto', slice.cryptoMs],
    ['write', slice.writeMs],
  ] as const)
    metrics.observe('keyturn_slice_seconds', { kind, step }, milliseconds / 1_000);
}

function rowsOf(outcome: Outcome): Record<string, number> {
  return {
    updated: outcome.rowsUpdated,
    skipped: outcome.rowsSkipped,
    conflicted: outcome.rowsConflicted,
    failed: outcome.rowsFailed,
  };
}

function cellsOf(outcome: Outcome): Record<string, number> {
  return {
    reencrypted: outcome.cellsReencrypted,
    current: outcome.cellsCurrent,
    conflicted: outcome.cellsConflicted,
    failed: outcome.cellsFailed,
  };
}

export function countVisit(metrics: Metrics, worked: Worked): void {
  if (worked.end === 'dropped') metrics.add('keyturn_jobs_dropped_total', {});
  else metrics.add('keyturn_batches_total', { kind: worked.batch.kind, end: worked.end });
}

/** `generations`: by keyring. */
export function showHeld(metrics: Metrics, generations: ReadonlyMap<string, number>): void {
  metrics.replace(
    'keyturn_held_generation',
    [...generations].map(([keyring, value]) => ({ labels: { keyring }, value })),
  );
}
