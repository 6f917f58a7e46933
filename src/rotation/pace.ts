// How much to do at once: rows per slice from measured write time, rows per batch from measured throughput, batches in the
// queue from the number of workers. Pure rules; the numbers are the design's.

export interface SlicePace {
  readonly rows: number;
  /** Decayed sums behind the estimate. */
  readonly weightedRows: number;
  readonly weightedSeconds: number;
}

const targetWriteSeconds = 0.2;
/** In an emergency the application may wait longer for a row, so that the run ends sooner. */
const emergencyWriteSeconds = 0.5;
const decay = 0.75;
const minSliceRows = 20;
/** More gains nothing in speed, and costs memory and the collector's time: two slices are in hand at once. */
const maxSliceRows = 1_000;

export const initialSlicePace: SlicePace = { rows: 200, weightedRows: 0, weightedSeconds: 0 };

export interface SliceManner {
  readonly isEmergency: boolean;
  /** Rest per time of work: a fleet that gives way also works in smaller bites, so that nobody waits for a whole one. */
  readonly nice: number;
}

/** After a slice of `rows` whose write transaction took `writeSeconds`. Grows by at most a fifth, shrinks by at most half. */
export function paceAfterWrite(
  pace: SlicePace,
  { rows, writeSeconds }: { readonly rows: number; readonly writeSeconds: number },
  { isEmergency, nice }: SliceManner,
): SlicePace {
  const weightedRows = decay * pace.weightedRows + rows;
  const weightedSeconds = decay * pace.weightedSeconds + writeSeconds;
  const wantedSeconds = (isEmergency ? emergencyWriteSeconds : targetWriteSeconds) / (1 + nice);
  const wanted = (weightedRows / Math.max(weightedSeconds, 1e-6)) * wantedSeconds;
  const next = Math.min(Math.max(wanted, pace.rows * 0.5), pace.rows * 1.2);
  const mostRows = Math.max(minSliceRows, Math.floor(maxSliceRows / (1 + nice)));
  return { rows: clamp(Math.round(next), minSliceRows, mostRows), weightedRows, weightedSeconds };
}

/** After a statement timeout, lock timeout or deadlock. */
export function paceAfterTimeout(pace: SlicePace): SlicePace {
  return { ...pace, rows: Math.max(minSliceRows, Math.floor(pace.rows / 2)) };
}

const initialBatchRows = 4_000;
const targetBatchSeconds = 5;

/** Rows of the next batch, from the rows per second that finished batches of this run reached. */
export function batchRows(rowsPerSecond: number | undefined): number {
  return rowsPerSecond === undefined
    ? initialBatchRows
    : clamp(Math.round(rowsPerSecond * targetBatchSeconds), 1_000, 50_000);
}

/** Batches handed out and not finished, for this many live workers. */
export function dispatchWindow(liveWorkers: number): number {
  return clamp(2 * liveWorkers, 4, 200);
}

/** Follow-ups handed out besides: a few cells each, so a busy application must not fill the window of ranges with them. */
export function followUpWindow(liveWorkers: number): number {
  return 8 * dispatchWindow(liveWorkers);
}

/** Wait before a follow-up visits conflicted cells again: full jitter below 250 ms × 2^visits, at most 30 s. */
export function followUpDelayMs(visits: number, random: number): number {
  return Math.round(random * Math.min(30_000, 250 * 2 ** visits));
}

/** A cell that lost this many races is quarantined instead of visited again. Finding its row locked is no race. */
export const maxFollowUps = 20;

function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}
