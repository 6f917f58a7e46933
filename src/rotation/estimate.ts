// What a run over a table will take: time, write-ahead log, growth. Pure arithmetic over what was measured and over the
// shape of the table; every answer is a range. The true value depends on what else the server does.

import { batchesAllowed, openSecondsADay, type OpeningHours, type RunLimits } from './limits.js';

export interface Range {
  readonly low: number;
  readonly high: number;
}

/** As the catalogue has it, all partitions together. */
export interface TableShape {
  readonly rows: number;
  /** Heap and TOAST. */
  readonly tableBytes: number;
  readonly indexBytes: number;
  readonly indexes: number;
}

/** Milliseconds per row; `writeMs` is undefined where no run has ever written the table. */
export interface RowCosts {
  readonly readMs: number;
  readonly cryptoMs: number;
  readonly writeMs: number | undefined;
}

export interface Estimate {
  readonly rows: number;
  /** At work; how its hours stretch them is `overHours`, for all tables of a run together. */
  readonly seconds: Range;
  readonly walBytes: Range;
  /** Until vacuum has passed; what it frees is used again and not given back to the file system. */
  readonly growthBytes: Range;
}

export interface EstimateInput {
  readonly shape: TableShape;
  /** That the run looks at, and its second scan again. */
  readonly rowsToVisit: number;
  /** That have something to move. */
  readonly rowsToMove: number;
  readonly costs: RowCosts;
  /** That are live. */
  readonly workers: number;
  /** Rest per time of work that pacing demands beside an application at work (beside-application.ts). */
  readonly rest: number;
  readonly limits: Omit<RunLimits, 'hours'>;
  /** `checkpoint_timeout` of the server. */
  readonly checkpointSeconds: number;
}

/** Where no write was measured: so many times what reading and reencrypting the row takes. */
export const assumedWriteFactor: Range = { low: 1, high: 4 };
/** A measured write may take longer at another hour. */
const writeSlack = 1.5;
/** Planning, the second scan and the supervisor's ticks, whatever the size. */
const fixedSeconds: Range = { low: 0.5, high: 5 };

const pageBytes = 8_192;
/** Header of a WAL record that updates a row, and of one that adds an index entry. */
const updateRecordBytes = 60;
const indexRecordBytes = 64;

export function estimateRun(input: EstimateInput): Estimate {
  const seconds = estimateSeconds(input);
  return {
    rows: input.rowsToMove,
    seconds,
    walBytes: estimateWal(input, seconds.high),
    growthBytes: estimateGrowth(input),
  };
}

/**
 * At best nobody else is at work, and reading and reencrypting go on wholly while the slice before is written. At worst an
 * application is at work all the time, and nothing overlaps.
 */
function estimateSeconds({ rowsToVisit, rowsToMove, costs, workers, rest, limits }: EstimateInput): Range {
  const { readMs, cryptoMs, writeMs } = costs;
  const prepareMs = readMs + cryptoMs;
  const write: Range =
    writeMs === undefined
      ? { low: prepareMs * assumedWriteFactor.low, high: prepareMs * assumedWriteFactor.high }
      : { low: writeMs, high: writeMs * writeSlack };
  const scanMs = rowsToVisit * readMs;
  const low = rowsToMove * Math.max(prepareMs, write.low);
  const high = (rowsToMove * (prepareMs + write.high) + scanMs) * (1 + rest);
  const atWork = Math.min(workers, batchesAllowed({ ...limits, hours: undefined }));
  const allowedSeconds = limits.rowsPerSecond === undefined ? 0 : (2 * rowsToVisit) / limits.rowsPerSecond;
  return {
    low: fixedSeconds.low + Math.max(low / atWork / 1_000, allowedSeconds),
    high: fixedSeconds.high + Math.max(high / atWork / 1_000, allowedSeconds),
  };
}

const daySeconds = 86_400;

/** From the order to the end: at best it is given as the hours begin, at worst as they end. */
export function overHours(work: Range, hours: OpeningHours | undefined): Range {
  if (hours === undefined) return work;
  const open = openSecondsADay(hours);
  const nights = (seconds: number): number => Math.ceil(seconds / open);
  return {
    low: work.low + (nights(work.low) - 1) * (daySeconds - open),
    high: work.high + nights(work.high) * (daySeconds - open),
  };
}

/** rows × (row + index entries) + pages × 8 kB × checkpoints crossed; at best no index entry and no full page. */
function estimateWal({ shape, rowsToMove, checkpointSeconds }: EstimateInput, seconds: number): Range {
  const { rowBytes, entryBytes } = perRow(shape);
  const records = rowsToMove * (rowBytes + updateRecordBytes);
  const entries = rowsToMove * (entryBytes + shape.indexes * indexRecordBytes);
  const share = shape.rows === 0 ? 0 : Math.min(1, rowsToMove / shape.rows);
  const pages = ((shape.tableBytes + shape.indexBytes) / pageBytes) * share;
  // A page is logged whole when it is first changed after a checkpoint; the walk along the key comes by but once or twice.
  const checkpoints = Math.min(2, 1 + Math.floor(seconds / checkpointSeconds));
  return { low: records, high: records + entries + pages * pageBytes * checkpoints };
}

/** Each moved row leaves its old version behind; at best vacuum keeps pace and its space is used again. */
function estimateGrowth({ shape, rowsToMove }: EstimateInput): Range {
  const { rowBytes, entryBytes } = perRow(shape);
  return { low: 0, high: rowsToMove * (rowBytes + entryBytes) };
}

function perRow(shape: TableShape): { rowBytes: number; entryBytes: number } {
  const rows = Math.max(1, shape.rows);
  return { rowBytes: shape.tableBytes / rows, entryBytes: shape.indexBytes / rows };
}
