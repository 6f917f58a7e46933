// The last check, when no write is under way any more: every cell of a range against the writer's log, which knows
// nothing of the database. A cell without an acknowledged write must still hold what it was filled with; a deleted row
// must not be there.
import { readFileSync } from 'node:fs';
import type { App } from './app-process.js';
import { Comparison } from './compare.js';
import {
  cellName,
  columnNames,
  deletedMark,
  digestOf,
  selectedColumns,
  valueOf,
  type SelectedRow,
} from './customers.js';
import type { CheckCounts, RowRange } from './messages.js';

const rowsPerPage = 1_000;

/** `log`: path of the writer's log. */
export async function check(app: App, range: RowRange, log: string): Promise<CheckCounts> {
  const { acknowledged, deleted } = readLog(log);
  const comparison = new Comparison(app);
  let lost = 0;
  for (let from = range.from; from <= range.upto; from += rowsPerPage) {
    const { rows } = await app.pool.query<SelectedRow>(
      `SELECT ${selectedColumns} FROM customer c WHERE c.id BETWEEN $1 AND $2`,
      [from, Math.min(from + rowsPerPage - 1, range.upto)],
    );
    for (const row of rows) {
      if (deleted.has(row.id)) {
        lost++;
        continue;
      }
      for (const column of columnNames) {
        const seq = acknowledged.get(cellName(row.id, column));
        if (!(await comparison.isAsWritten(row, column, seq ?? 0)) && seq !== undefined) lost++;
      }
    }
  }
  return { ...comparison.counts(), lost };
}

interface Acknowledged {
  /** The highest acknowledged sequence number of each cell that was written. */
  readonly acknowledged: ReadonlyMap<string, number>;
  readonly deleted: ReadonlySet<number>;
}

function readLog(path: string): Acknowledged {
  const acknowledged = new Map<string, number>();
  const deleted = new Set<number>();
  for (const line of readFileSync(path, 'utf8').split('\n')) {
    if (line === '') continue;
    const [id, column, seq, digest] = line.split(' ');
    if (column === deletedMark) {
      deleted.add(Number(id));
      continue;
    }
    const name = columnNames.find((candidate) => candidate === column);
    if (name === undefined || digest !== digestOf(valueOf(Number(id), name, Number(seq)))) {
      throw new Error('a line of the write log is not what the writer writes');
    }
    const cell = cellName(Number(id), name);
    acknowledged.set(cell, Math.max(acknowledged.get(cell) ?? 0, Number(seq)));
  }
  return { acknowledged, deleted };
}
