// Entry point of the demo's reader: an application process that reads random customers through the library while the
// rotation goes on, and compares every plaintext with what was written. Value and acknowledgement come from one
// snapshot, so the newest acknowledged sequence number is the only one allowed, and no read is too old.
import { runApp, Traffic, type AppWithLog } from './app-process.js';
import { check } from './check.js';
import { Comparison } from './compare.js';
import { columnNames, deletedMark, selectedColumns, type ColumnName, type SelectedRow } from './customers.js';
import { fill } from './fill.js';
import type { AppTasks, ReadCounts } from './messages.js';

const readStatement = `SELECT ${selectedColumns},
    (SELECT jsonb_object_agg(a.column_name, a.seq) FROM demo_ack a WHERE a.customer_id = c.id) AS acknowledged
  FROM customer c WHERE c.id = $1`;

/** A deleted row stays away, so that a later look tells the truth as well. */
const deletedStatement = `SELECT 1 FROM demo_ack WHERE customer_id = $1 AND column_name = '${deletedMark}'`;

type ReadRow = SelectedRow & { readonly acknowledged: Partial<Record<ColumnName, number>> | null };

function startReading(app: AppWithLog): AppTasks<ReadCounts> {
  const traffic = new Traffic({ lanes: 2, pauseMs: 10, crowdedShare: 0.4 });
  const comparison = new Comparison(app);

  async function readFrom(id: number): Promise<void> {
    const { rows } = await app.pool.query<ReadRow>(readStatement, [id]);
    const [row] = rows;
    if (row === undefined) return expectDeleted(id);
    for (const column of columnNames) await comparison.isAsWritten(row, column, row.acknowledged?.[column] ?? 0);
  }

  async function expectDeleted(id: number): Promise<void> {
    const { rowCount } = await app.pool.query(deletedStatement, [id]);
    if (rowCount !== 1) throw new Error('a customer is missing');
  }

  return {
    fill: (range) => fill(app, range),
    begin: async (rows) => traffic.begin(rows, readFrom),
    async crowd(where) {
      // Reading makes no conflicts, so there is no urgency.
      traffic.crowd(where === null ? null : { ...where, isUrgent: false });
    },
    count: async () => comparison.counts(),
    async end() {
      await traffic.end();
      return comparison.counts();
    },
    check: (range) => check(app, range, app.log),
  };
}

await runApp('demo reader', startReading);
