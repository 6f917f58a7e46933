// Entry point of the demo's writer: an application process that updates random customers through the library while the
// rotation goes on, deletes one now and then, and takes on new ones. What the database acknowledged goes into a log, with nothing in between.
import { randomInt } from 'node:crypto';
import { openSync, writeSync } from 'node:fs';
import { runApp, Traffic, type AppWithLog } from './app-process.js';
import { check } from './check.js';
import { cellName, columnNames, deletedMark, digestOf, tenantOf, valueOf, type ColumnName } from './customers.js';
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

/** Deletion and acknowledgement, likewise. */
const deleteStatement = `WITH gone AS (DELETE FROM customer WHERE id = $1 RETURNING id)
    INSERT INTO demo_ack (customer_id, column_name, seq, written_at) SELECT id, '${deletedMark}', 0, clock_timestamp() FROM gone`;

/** Every so many visits a customer goes, and a new one comes. */
const turnover = 25;

function startWriting(app: AppWithLog): AppTasks<WriteCounts> {
  const log = openSync(app.log, 'a', 0o600);
  const sequences = new Map<string, number>();
  /** Rows with a write under way: the next one must wait, or its order would be the database's to choose. */
  const busy = new Set<number>();
  const deleted = new Set<number>();
  const traffic = new Traffic({ lanes: 3, pauseMs: 10, crowdedShare: 0.4 });
  let visits = 0;
  let lastId = 0;
  let written = 0;
  let inserted = 0;

  async function visit(id: number): Promise<void> {
    const turn = ++visits % turnover;
    if (turn === 0) return insertNext();
    if (busy.has(id) || deleted.has(id)) return;
    busy.add(id);
    await (turn === 1 ? remove(id) : writeTo(id));
    busy.delete(id);
  }

  async function writeTo(id: number): Promise<void> {
    const column = columnNames[randomInt(columnNames.length)] ?? 'email';
    const cell = cellName(id, column);
    const seq = (sequences.get(cell) ?? 0) + 1;
    const plaintext = valueOf(id, column, seq);
    const stored = await app.column(column).encrypt({ pk: id, scope: tenantOf(id) }, plaintext);
    await change(writeStatement(column), [id, column, stored, seq]);
    writeSync(log, `${cell} ${seq} ${digestOf(plaintext)}\n`);
    sequences.set(cell, seq);
    written++;
  }

  async function remove(id: number): Promise<void> {
    await change(deleteStatement, [id]);
    writeSync(log, `${id} ${deletedMark}\n`);
    deleted.add(id);
  }

  async function insertNext(): Promise<void> {
    const id = ++lastId;
    await fill(app, { from: id, upto: id });
    inserted++;
  }

  async function change(statement: string, parameters: unknown[]): Promise<void> {
    const { rowCount } = await app.pool.query(statement, parameters);
    if (rowCount !== 1) throw new Error('a customer is missing');
  }

  const counts = (): WriteCounts => ({
    acknowledged: written + inserted + deleted.size,
    inserted,
    deleted: deleted.size,
  });

  return {
    fill: (range) => fill(app, range),
    async begin(rows) {
      lastId = rows;
      traffic.begin(rows, visit);
    },
    crowd: async (where) => traffic.crowd(where),
    count: async () => counts(),
    async end() {
      await traffic.end();
      return counts();
    },
    check: (range) => check(app, range, app.log),
  };
}

await runApp('demo writer', startWriting);
