// Counting: the identity of cells, the class of a row, and what sums keep.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type CellOutcome, countRows, emptyOutcome, type Outcome, settledCells } from '../../src/rotation/outcome.js';

const cellOutcome = fc.constantFrom<CellOutcome>('reencrypted', 'current', 'conflicted', 'failed');
const rows = fc.array(fc.array(cellOutcome, { maxLength: 5 }), { maxLength: 40 });

function add(one: Outcome, other: Outcome): Outcome {
  const names = Object.keys(emptyOutcome) as (keyof Outcome)[];
  return Object.fromEntries(names.map((name) => [name, one[name] + other[name]])) as unknown as Outcome;
}

describe('counting cells and rows', () => {
  test('I4 examined = reencrypted + current + conflicted + failed, and rows add up alike, for any slice', () => {
    fc.assert(
      fc.property(rows, (slice) => {
        const counted = countRows(slice);
        expect(counted.cellsExamined).toBe(slice.flat().length);
        expect(counted.cellsExamined).toBe(
          counted.cellsReencrypted + counted.cellsCurrent + counted.cellsConflicted + counted.cellsFailed,
        );
        expect(counted.rowsExamined).toBe(slice.length);
        expect(counted.rowsExamined).toBe(
          counted.rowsUpdated + counted.rowsSkipped + counted.rowsConflicted + counted.rowsFailed,
        );
        expect(settledCells(counted)).toBe(slice.flat().filter((cell) => cell !== 'conflicted').length);
      }),
    );
  });

  test('I4 two slices counted apart make the sum of both counted together', () => {
    fc.assert(
      fc.property(rows, rows, (one, other) => {
        expect(add(countRows(one), countRows(other))).toEqual(countRows([...one, ...other]));
      }),
    );
  });

  for (const { cells, row } of [
    { cells: [], row: 'rowsSkipped' },
    { cells: ['current', 'current'], row: 'rowsSkipped' },
    { cells: ['current', 'reencrypted'], row: 'rowsUpdated' },
    { cells: ['reencrypted', 'conflicted'], row: 'rowsConflicted' },
    { cells: ['reencrypted', 'conflicted', 'failed', 'current'], row: 'rowsFailed' },
  ] as readonly { cells: CellOutcome[]; row: 'rowsUpdated' | 'rowsSkipped' | 'rowsConflicted' | 'rowsFailed' }[]) {
    test(`a row with ${cells.join(', ') || 'no cells'} counts under ${row}`, () => {
      expect(countRows([cells])).toMatchObject({ rowsExamined: 1, [row]: 1, cellsExamined: cells.length });
    });
  }

  test('a healthy cell of a row with a failed one is still counted as reencrypted', () => {
    expect(countRows([['reencrypted', 'failed']])).toMatchObject({
      rowsFailed: 1,
      rowsUpdated: 0,
      cellsReencrypted: 1,
      cellsFailed: 1,
    });
  });

  test('no rows count as nothing', () => {
    expect(countRows([])).toEqual(emptyOutcome);
  });
});
