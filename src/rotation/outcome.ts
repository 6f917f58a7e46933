// Counting. Cells: examined = reencrypted + current + conflicted + failed. A row has the worst class of its cells:
// failed > conflicted > updated > skipped.

export interface Outcome {
  readonly rowsExamined: number;
  readonly rowsUpdated: number;
  readonly rowsSkipped: number;
  readonly rowsConflicted: number;
  readonly rowsFailed: number;
  readonly cellsExamined: number;
  readonly cellsReencrypted: number;
  readonly cellsCurrent: number;
  readonly cellsConflicted: number;
  readonly cellsFailed: number;
}

export type CellOutcome = 'reencrypted' | 'current' | 'conflicted' | 'failed';

export const emptyOutcome: Outcome = {
  rowsExamined: 0,
  rowsUpdated: 0,
  rowsSkipped: 0,
  rowsConflicted: 0,
  rowsFailed: 0,
  cellsExamined: 0,
  cellsReencrypted: 0,
  cellsCurrent: 0,
  cellsConflicted: 0,
  cellsFailed: 0,
};

/** `rows`: per row, how each of its cells ended. A row without cells is skipped. */
export function countRows(rows: Iterable<readonly CellOutcome[]>): Outcome {
  const counts = { ...emptyOutcome } as { -readonly [name in keyof Outcome]: number };
  for (const cells of rows) {
    const tally: Record<CellOutcome, number> = { reencrypted: 0, current: 0, conflicted: 0, failed: 0 };
    for (const cell of cells) tally[cell]++;
    counts.rowsExamined++;
    if (tally.failed > 0) counts.rowsFailed++;
    else if (tally.conflicted > 0) counts.rowsConflicted++;
    else if (tally.reencrypted > 0) counts.rowsUpdated++;
    else counts.rowsSkipped++;
    counts.cellsExamined += cells.length;
    counts.cellsReencrypted += tally.reencrypted;
    counts.cellsCurrent += tally.current;
    counts.cellsConflicted += tally.conflicted;
    counts.cellsFailed += tally.failed;
  }
  return counts;
}

/** Cells that need no further visit. */
export function settledCells(outcome: Outcome): number {
  return outcome.cellsExamined - outcome.cellsConflicted;
}
