// What the ledger tells a worker when it takes a batch and after each slice, and what follows from it: go on or hand the
// batch back, how small to keep the next slice, how long to rest. Pure rules; PostgreSQL says what is so.
import { batchesAllowed, isOpenAt, type RunLimits } from './limits.js';
import { isWorking, type RunState } from './run.js';

/** The pace of all workers together, as the leading supervisor last set it. */
export interface FleetPace {
  /** Batches that workers may have at a time, over all runs; undefined for no bound. */
  readonly targetWorkers: number | undefined;
  /** Rest per time of work: 0 for none, 1 to work half of the time. */
  readonly nice: number;
  readonly ageSeconds: number;
}

export interface Standing {
  readonly runState: RunState;
  /** The database's clock. */
  readonly now: Date;
  readonly limits: RunLimits;
  /** Workers among whom the run's rows per second are shared, this one included. */
  readonly sharers: number;
  /** Batches in workers' hands that come before this one, of its run and of all runs. */
  readonly aheadInRun: number;
  readonly ahead: number;
  /** Undefined when nobody has ever set one. */
  readonly pace: FleetPace | undefined;
}

/** False when the batch goes back: a stop was asked for, the hours are over, or fewer batches may be out. */
export function mayGoOn(standing: Standing): boolean {
  const { runState, limits, aheadInRun, ahead, pace, now } = standing;
  return (
    isWorking(runState) &&
    (limits.hours === undefined || isOpenAt(limits.hours, now)) &&
    aheadInRun < batchesAllowed(limits) &&
    ahead < (paceInForce(pace).targetWorkers ?? Infinity)
  );
}

/** Well below the 15 s of a lease, which is renewed before the rest and has to last for the slice after it. */
const maxRestMs = 5_000;
/** A slice under a limit is about this much of the worker's share, so that a stop is heard soon. */
const limitedSliceSeconds = 1;
/** A pace that nobody renews for so long stands for a database of which nothing is known: slow, but not stopped for good. */
export const paceValidSeconds = 15;
const slowNice = 1;
const slowWorkers = 1;

/** What workers keep to. */
export function paceInForce(pace: FleetPace | undefined): Omit<FleetPace, 'ageSeconds'> {
  if (pace === undefined) return { targetWorkers: undefined, nice: 0 };
  if (pace.ageSeconds <= paceValidSeconds) return pace;
  const { targetWorkers, nice } = pace;
  return {
    targetWorkers: targetWorkers === undefined ? undefined : Math.max(slowWorkers, targetWorkers),
    nice: Math.max(slowNice, nice),
  };
}

/** Rest per time of work. */
export function niceOf(standing: Standing): number {
  return paceInForce(standing.pace).nice;
}

const unmeasured = `nobody has measured the database's health for over ${paceValidSeconds} s, so the workers go slowly; look at the log of the supervisor`;

/** In words, what holds the workers back; undefined at full pace. */
export function paceReason(
  pace: { readonly reason: string | undefined; readonly ageSeconds: number } | undefined,
): string | undefined {
  return pace !== undefined && pace.ageSeconds > paceValidSeconds ? unmeasured : pace?.reason;
}

/** The most rows that the next slice may have. */
export function mostSliceRows(standing: Standing): number {
  const { limits, sharers } = standing;
  if (limits.rowsPerSecond === undefined) return Infinity;
  return Math.max(1, Math.floor((limits.rowsPerSecond / sharers) * limitedSliceSeconds));
}

/** After a slice of `rows` that took `workMs` since the last rest. */
export function restAfter(standing: Standing, slice: { readonly rows: number; readonly workMs: number }): number {
  const forPace = niceOf(standing) * slice.workMs;
  const forLimit = shareMs(standing, slice.rows) - slice.workMs;
  return Math.min(maxRestMs, Math.max(0, forPace, forLimit));
}

/**
 * Whether a slice that was read before the limit was known is too large for it. Twice the share is let pass, for it also
 * changes with the number of workers.
 */
export function exceedsShare(standing: Standing, rows: number): boolean {
  return rows > 2 * mostSliceRows(standing);
}

/** The time in which the worker's share of the run's limit is as many rows. */
function shareMs({ limits, sharers }: Standing, rows: number): number {
  return limits.rowsPerSecond === undefined ? 0 : (rows * sharers * 1_000) / limits.rowsPerSecond;
}
