// A run's limits as its row holds them.
import type { RunLimits } from '../rotation/limits.js';
import type { Row } from './database.js';

/** Of keyturn.run as `r`; for `limitsOf`. */
export const limitColumns =
  'r.max_rows_per_second, r.max_workers, r.hours_from::text, r.hours_to::text, r.hours_zone' as const;

/** How many values `limitsOf` takes. */
export const limitWidth = 5;

export function limitsOf(row: Row): RunLimits {
  const [rowsPerSecond, workers, from, to, zone] = row;
  return {
    rowsPerSecond: rowsPerSecond === null ? undefined : Number(rowsPerSecond),
    workers: workers === null ? undefined : Number(workers),
    hours: zone === null ? undefined : { from: timeOf(from), to: timeOf(to), zone: String(zone) },
  };
}

/** `22:00:00` as `22:00`. */
function timeOf(value: unknown): string {
  return String(value).slice(0, 5);
}
