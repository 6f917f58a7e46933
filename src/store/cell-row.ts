// The rows of a slice as they come from the database and go back: plain data.
import type { Stored } from '../formats/format.js';
import type { RowKey, TargetColumn } from '../rotation/target.js';

/**
 * One row as read: its key, its tenant as text, and per encrypted column the stored value or null (no cell). Bytes stay the
 * hexadecimal text that travels; `storedOf` turns them into a value.
 */
export interface CellRow {
  readonly key: RowKey;
  readonly scope: string | null;
  readonly values: readonly (string | null)[];
}

export function storedOf(column: Pick<TargetColumn, 'sqlType'>, value: string): Stored {
  return column.sqlType === 'bytea' ? Buffer.from(value, 'hex') : value;
}

/** Rows to rewrite, as packed arrays: one per key column, and per encrypted column the envelopes read and their replacements. */
export interface PackedReplacements {
  readonly rows: number;
  readonly keys: readonly Buffer[];
  /** Undefined where no row changes the column; NULL in an array where that row does not. */
  readonly columns: readonly ({ readonly read: Buffer; readonly replacement: Buffer } | undefined)[];
}
