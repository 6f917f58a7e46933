// Moving values as they are read: how many rows a process may rewrite now, and when waiting for reads is no longer wise.

/** Rows that may be rewritten at a moment; grows with time up to one second's worth. */
export interface Allowance {
  readonly rows: number;
  readonly atMs: number;
}

export function refill(allowance: Allowance | undefined, nowMs: number, rowsPerSecond: number): Allowance {
  if (allowance === undefined) return { rows: rowsPerSecond, atMs: nowMs };
  const grown = allowance.rows + ((nowMs - allowance.atMs) / 1_000) * rowsPerSecond;
  return { rows: Math.min(rowsPerSecond, grown), atMs: nowMs };
}

const patienceDays = 30;

/** Why a bulk run is wise now; undefined while reads are on their way to move the rest within a month. */
export function adviseBulkRun(seen: {
  readonly staleCells: number;
  readonly cellsThisWeek: number;
  readonly keyAgeDays: number;
  readonly isLazyOn: boolean;
}): string | undefined {
  if (seen.staleCells === 0) return undefined;
  if (!seen.isLazyOn) return 'lazy upgrades are off, so nothing else moves what is left';
  // A young key has not had a week of reads.
  const days = Math.min(7, Math.max(1, seen.keyAgeDays));
  if (seen.keyAgeDays < 1) return undefined;
  if (seen.cellsThisWeek === 0) return 'reads move nothing';
  const left = Math.ceil(seen.staleCells / (seen.cellsThisWeek / days));
  return left <= patienceDays
    ? undefined
    : `at the pace of the last ${Math.round(days)} days reads need ${left} days more`;
}
