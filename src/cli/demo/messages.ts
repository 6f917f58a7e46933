// What the demo says to its writer and reader, and what they answer. Both ends are built from this file.
import type { ColumnName } from './customers.js';

export interface RowRange {
  readonly from: number;
  readonly upto: number;
}

/** Where a worker is busy right now, for traffic to go there. */
export interface Crowd extends RowRange {
  /** Without a pause, and nowhere else: until the first conflict has been seen. */
  readonly isUrgent: boolean;
}

export interface Mismatch {
  readonly id: number;
  readonly column: ColumnName;
  readonly expectedSeq: number;
  /** A sequence number, or why there was none: an error code, or `other text`. */
  readonly seen: number | string;
}

export interface ReadCounts {
  /** Cells read, decrypted and compared. */
  readonly checked: number;
  readonly mismatches: number;
  /** The first few. */
  readonly examples: readonly Mismatch[];
}

export interface WriteCounts {
  /** Changed cells, new rows and deleted rows. */
  readonly acknowledged: number;
  /** New rows; their ids follow those of the first ones. */
  readonly inserted: number;
  /** All of them among the first rows. */
  readonly deleted: number;
}

export interface CheckCounts extends ReadCounts {
  /** Cells whose last acknowledged write is not what they hold, and deleted rows that are there. */
  readonly lost: number;
}

/** What the writer and the reader each do when asked. */
export interface AppTasks<Counts> {
  fill(range: RowRange): Promise<void>;
  /** Traffic over the first `rows` customers begins and goes on by itself. */
  begin(rows: number): Promise<void>;
  /** Null: nowhere in particular. */
  crowd(where: Crowd | null): Promise<void>;
  /** So far. */
  count(): Promise<Counts>;
  /** Answers when the visits in hand are over: the last write was acknowledged and logged. */
  end(): Promise<Counts>;
  check(range: RowRange): Promise<CheckCounts>;
}

export interface Question {
  readonly id: number;
  readonly task: string;
  readonly argument: unknown;
}

export type Answer =
  | { readonly kind: 'ready' }
  | { readonly kind: 'done'; readonly id: number; readonly result: unknown }
  | { readonly kind: 'failed'; readonly words: string };

/** Names the file of acknowledged writes, one line each: row, column, sequence number, digest. */
export const logVariable = 'DEMO_WRITE_LOG';
