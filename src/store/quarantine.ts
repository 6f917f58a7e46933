// Cells that could not be decrypted: cause code, key id and address, never bytes. Primary keys stay in PostgreSQL.
import type { RowKey } from '../rotation/target.js';
import type { Queryable } from './database.js';

export interface QuarantinedCell {
  readonly columnId: string;
  readonly key: RowKey;
  readonly keyId: number | undefined;
  readonly cause: string;
}

/** One entry per run and cell; a cell that fails again in the same run is the same entry. */
export async function quarantineCells(
  client: Queryable,
  batch: { runId: number; id: number; targetId: string },
  cells: readonly QuarantinedCell[],
): Promise<void> {
  if (cells.length === 0) return;
  await client.query(
    `INSERT INTO keyturn.quarantine (run_id, batch_id, target_id, column_id, row_key, key_id, cause)
     SELECT $1, $2, $3, c.column_id, c.row_key, c.key_id, c.cause
     FROM jsonb_to_recordset($4::jsonb) AS c(column_id uuid, row_key text[], key_id bigint, cause text)
     ON CONFLICT (run_id, column_id, row_key) DO UPDATE SET cause = excluded.cause, key_id = excluded.key_id, batch_id = excluded.batch_id, seen_at = clock_timestamp()`,
    [
      batch.runId,
      batch.id,
      batch.targetId,
      JSON.stringify(
        cells.map((cell) => ({
          column_id: cell.columnId,
          row_key: cell.key,
          key_id: cell.keyId ?? null,
          cause: cell.cause,
        })),
      ),
    ],
  );
}

/** Which of these cells are in quarantine for this run. */
export async function quarantinedAmong(
  database: Queryable,
  runId: number,
  cells: readonly { columnId: string; key: RowKey }[],
): Promise<number> {
  const { rows } = await database.query(
    `SELECT count(*) FROM jsonb_to_recordset($2::jsonb) AS c(column_id uuid, row_key text[])
     JOIN keyturn.quarantine q ON q.run_id = $1 AND q.column_id = c.column_id AND q.row_key = c.row_key AND q.resolved_at IS NULL`,
    [runId, JSON.stringify(cells.map((cell) => ({ column_id: cell.columnId, row_key: cell.key })))],
  );
  return Number(rows[0]?.[0]);
}

export interface Failure {
  readonly target: string;
  readonly column: string;
  readonly cause: string;
  readonly keyId: number | undefined;
  readonly cells: number;
}

/** Failures of a run, grouped; what reports show. */
export async function listFailures(database: Queryable, runId: number): Promise<readonly Failure[]> {
  const { rows } = await database.query(
    `SELECT t.schema_name || '.' || t.table_name, c.name, q.cause, q.key_id, count(*)
     FROM keyturn.quarantine q JOIN keyturn.target t ON t.id = q.target_id JOIN keyturn.target_column c ON c.id = q.column_id
     WHERE q.run_id = $1 AND q.resolved_at IS NULL GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4`,
    [runId],
  );
  return rows.map(([target, column, cause, keyId, cells]) => ({
    target: String(target),
    column: String(column),
    cause: String(cause),
    keyId: keyId === null ? undefined : Number(keyId),
    cells: Number(cells),
  }));
}
