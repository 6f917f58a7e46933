// Estimates and the last dry run in words.
import type { DryRunSummary } from '../control/dry-run.js';
import type { TargetEstimate } from '../control/estimate.js';
import { describeAge, describeSeconds } from './duration.js';
import { countOf, formatCount } from './table.js';

export function estimateLines(estimates: readonly TargetEstimate[]): readonly string[] {
  if (estimates.length === 0) return [];
  const lines = estimates.flatMap((estimate) => [
    `  ${estimate.target}: about ${formatCount(estimate.rows)} rows in ${secondsWords(estimate.seconds_low, estimate.seconds_high)} with ${countOf(estimate.workers, 'worker')}; ${describeBytes(estimate.wal_bytes_low)} to ${describeBytes(estimate.wal_bytes_high)} of WAL; grows by up to ${describeBytes(estimate.growth_bytes_high)} until vacuum has passed`,
    `    rests on ${estimate.basis}`,
  ]);
  return [
    ...lines,
    '  The longer time is beside an application that is at work all the while: a run gives way to it.',
    '  How much disk is free cannot be seen from SQL: look at the server before you begin.',
  ];
}

/** `null`: there was no dry run. */
export function dryRunWords(dryRun: DryRunSummary | null): string {
  if (dryRun === null)
    return 'no dry run since these rows were last moved; one would say what fails: keyturn reencrypt --dry-run';
  return `last dry run ${describeAge(dryRun.age_seconds)} ago: ${formatCount(dryRun.fields_would_move)} fields would move, ${countOf(dryRun.fields_failed, 'failure')}, ${secondsWords(dryRun.seconds_low, dryRun.seconds_high)}`;
}

function secondsWords(low: number, high: number): string {
  return `${describeSeconds(low)} to ${describeSeconds(high)}`;
}

/** `850 B`, `12 kB`, `3.4 MB`, `1.2 GB` */
function describeBytes(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB'];
  let value = bytes;
  let unit = 0;
  for (; value >= 1_000 && unit < units.length - 1; unit++) value /= 1_000;
  return `${value < 10 && unit > 0 ? value.toFixed(1) : formatCount(Math.round(value))} ${units[unit] ?? ''}`;
}
