// Resolves what was in quarantine and is settled by a slice, in the transaction that settles it: a cell that was moved, one
// that the application has brought to the target key meanwhile, one that is empty now, a row that is gone.
import type { RowKey, Target } from '../rotation/target.js';
import type { CellRow } from '../store/cell-row.js';
import type { Queryable } from '../store/database.js';
import { settleQuarantined } from '../store/quarantine.js';
import { cellCodes, type TreatedRows } from './treat-rows.js';

export interface VisitedRows {
  readonly rows: readonly CellRow[];
  /** Per row, which columns were meant; undefined for all. */
  readonly visited: readonly (readonly boolean[])[] | undefined;
  readonly gone: readonly RowKey[];
  readonly treated: Pick<TreatedRows, 'codes'>;
}

/** `unwritten`: positions of rows whose new envelopes were not written. */
export async function resolveSettled(
  client: Queryable,
  target: Target,
  { rows, visited, gone, treated }: VisitedRows,
  unwritten: ReadonlySet<number>,
): Promise<void> {
  const width = target.columns.length;
  const isOpen = (row: number, column: number): boolean => {
    const code = treated.codes[row * width + column];
    return (
      code === cellCodes.failed ||
      (code === cellCodes.reencrypted && unwritten.has(row)) ||
      visited?.[row]?.[column] === false
    );
  };
  const seen = rows.map(({ key }, row) => ({
    key,
    stillOpen: target.columns.filter((_, column) => isOpen(row, column)).map((column) => column.id),
  }));
  await settleQuarantined(client, target.id, [...seen, ...gone.map((key) => ({ key, stillOpen: [] }))]);
}
