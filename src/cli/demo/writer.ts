// Entry point of the demo's writer: an application process that updates random customers through the library while the
// rotation goes on. What the database acknowledged goes into a log, with nothing in between.
import { randomInt } from 'node:crypto';
import { openSync, writeSync } from 'node:fs';
import { runApp, Traffic, type AppWithLog } from './app-process.js';
import { check } from './check.js';
import { cellName, columnNames, digestOf, tenantOf, valueOf, type ColumnName } from './customers.js';
import { fill } from './fill.js';
import type { AppTasks, WriteCounts } from './messages.js';

const assignments: Record<ColumnName, string> = {
  email: 'email = $3::text',
  phone: 'phone = $3::bytea',
  'profile.ssn': `profile = jsonb_set(profile, '{ssn}', to_jsonb($3::text))`,
};

/** Value and acknowledgement in one statement: no snapshot holds one without the other. */
function writeStatement(column: ColumnName): string {
  return `WITH written AS (
      UPDATE customer SET ${assignments[column]}, updated_at = clock_timestamp() WHERE id = $1 RETURNING id, updated_at)
    INSERT INTO demo_ack (customer_id, column_name, seq, written_at) SELECT id, $2, $4, updated_at FROM written
    ON CONFLICT (customer_id, column_name) DO UPDATE SET seq = excluded.seq, written_at = excluded.written_at`;
}

function startWriting(app: AppWithLog): AppTasks<WriteCounts> {
  const log = openSync(app.log, 'a', 0o600);
  const sequences = new Map<string, number>();
  /** Rows with a write under way: the next one must wait, or its order would be the database's to choose. */
  const busy = new Set<number>();
  const traffic = new Traffic({ lanes: 3, pauseMs: 10, crowdedShare: 0.4 });
  let acknowledged = 0;

  async function writeTo(id: number): Promise<void> {
    if (busy.has(id)) return;
    busy.add(id);
    const column = columnNames[randomInt(columnNames.length)] ?? 'email';
    const cell = cellName(id, column);
    const seq = (sequences.get(cell) ?? 0) + 1;
    const plaintext = valueOf(id, column, seq);
    const stored = await app.column(column).encrypt({ pk: id, scope: tenantOf(id) }, plaintext);
    const { rowCount } = await app.pool.query(writeStatement(column), [id, column, stored, seq]);
    if (rowCount !== 1) throw new Error('a customer is missing');
    writeSync(log, `${cell} ${seq} ${digestOf(plaintext)}\n`);
    sequences.set(cell, seq);
    acknowledged++;
    busy.delete(id);
  }

  return {
    fill: (range) => fill(app, range),
    begin: async (rows) => traffic.begin(rows, writeTo),
    async crowd(where) {
      traffic.crowd(where);
      return { acknowledged };
    },
    async end() {
      await traffic.end();
      return { acknowledged };
    },
    check: (range) => check(app, range, app.log),
  };
}

await runApp('demo writer', startWriting);
