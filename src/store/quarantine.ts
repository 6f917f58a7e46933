// Cells that could not be decrypted or written: cause code, key id and address, never bytes. Primary keys stay in PostgreSQL
// and on the operator's terminal. An entry is resolved by the slice that settles its cell, or by an operator's word.
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
     ON CONFLICT (run_id, column_id, row_key) DO UPDATE SET cause = excluded.cause, key_id = excluded.key_id, batch_id = excluded.batch_id, seen_at = clock_timestamp(),
       resolved_at = NULL, resolution = NULL`,
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

export async function hasUnresolved(database: Queryable, targetId: string): Promise<boolean> {
  const { rows } = await database.query(
    'SELECT EXISTS (SELECT FROM keyturn.quarantine WHERE target_id = $1 AND resolved_at IS NULL)',
    [targetId],
  );
  return rows[0]?.[0] === true;
}

/** Entries of these rows are settled, of whatever run, but for the columns that are still open. */
export async function settleQuarantined(
  client: Queryable,
  targetId: string,
  visited: readonly { readonly key: RowKey; readonly stillOpen: readonly string[] }[],
): Promise<void> {
  // OFFSET 0 keeps the planner, which has no statistics here, from comparing every row with every entry.
  await client.query(
    `UPDATE keyturn.quarantine q SET resolved_at = clock_timestamp(), resolution = 'settled'
     FROM jsonb_to_recordset($2::jsonb) AS v("key" text[], "stillOpen" uuid[]),
       LATERAL (SELECT id FROM keyturn.quarantine o WHERE o.target_id = $1 AND o.row_key = v.key AND o.resolved_at IS NULL
         AND NOT o.column_id = ANY (v."stillOpen") OFFSET 0) AS found
     WHERE q.id = found.id`,
    [targetId, JSON.stringify(visited)],
  );
}

/** Unresolved cells with an entry that fits; undefined fits all. */
export interface QuarantineSelection {
  readonly runId: number | undefined;
  readonly targetId: string | undefined;
  readonly cause: string | undefined;
}

/** One row per cell, its newest entry that fits. */
const selectedCells = `SELECT DISTINCT ON (q.target_id, q.row_key, q.column_id) q.* FROM keyturn.quarantine q
  WHERE q.resolved_at IS NULL AND ($1::bigint IS NULL OR q.run_id = $1) AND ($2::uuid IS NULL OR q.target_id = $2)
    AND ($3::text IS NULL OR q.cause = $3)
  ORDER BY q.target_id, q.row_key, q.column_id, q.id DESC`;

function selectionParameters(selection: QuarantineSelection): unknown[] {
  return [selection.runId ?? null, selection.targetId ?? null, selection.cause ?? null];
}

export interface FailureGroup extends Failure {
  readonly keyringName: string;
  readonly targetId: string;
}

/** The selected cells, grouped; the largest group first. */
export async function groupQuarantined(
  database: Queryable,
  selection: QuarantineSelection,
): Promise<readonly FailureGroup[]> {
  const { rows } = await database.query(
    `SELECT k.name, t.id, t.schema_name || '.' || t.table_name, c.name, q.cause, q.key_id, count(*)
     FROM (${selectedCells}) q JOIN keyturn.target t ON t.id = q.target_id JOIN keyturn.keyring k ON k.id = t.keyring_id
       JOIN keyturn.target_column c ON c.id = q.column_id
     GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 7 DESC, 3, 4, 5, 6`,
    selectionParameters(selection),
  );
  return rows.map(([keyring, targetId, target, column, cause, keyId, cells]) => ({
    keyringName: String(keyring),
    targetId: String(targetId),
    target: String(target),
    column: String(column),
    cause: String(cause),
    keyId: keyId === null ? undefined : Number(keyId),
    cells: Number(cells),
  }));
}

export interface QuarantineEntry extends Omit<Failure, 'cells'> {
  readonly runId: number;
  readonly keyNames: readonly string[];
  readonly key: RowKey;
  readonly seenAt: Date;
}

/** The selected cells, the latest first. */
export async function listQuarantined(
  database: Queryable,
  selection: QuarantineSelection,
  limit: number,
): Promise<readonly QuarantineEntry[]> {
  const { rows } = await database.query(
    `SELECT q.run_id, t.schema_name || '.' || t.table_name, c.name, t.key_names, q.row_key, q.cause, q.key_id, q.seen_at
     FROM (${selectedCells}) q JOIN keyturn.target t ON t.id = q.target_id JOIN keyturn.target_column c ON c.id = q.column_id
     ORDER BY q.id DESC LIMIT $4`,
    [...selectionParameters(selection), limit],
  );
  return rows.map(([runId, target, column, keyNames, key, cause, keyId, seenAt]) => ({
    runId: Number(runId),
    target: String(target),
    column: String(column),
    keyNames: keyNames as string[],
    key: key as string[],
    cause: String(cause),
    keyId: keyId === null ? undefined : Number(keyId),
    seenAt: seenAt as Date,
  }));
}

const rowsPerRetryBatch = 500;

/** Writes the batches that visit exactly the selected cells, in the database alone: no key of a row travels. */
export async function insertRetryBatches(
  client: Queryable,
  run: { readonly id: number; readonly pass: number },
  selection: QuarantineSelection,
): Promise<void> {
  await client.query(
    `WITH cell AS (${selectedCells}),
     target_columns AS (SELECT target_id, array_agg(DISTINCT column_id) AS ids FROM cell GROUP BY 1),
     listed AS (
       SELECT target_id, row_key, jsonb_agg(array_position(ids, column_id) - 1) AS positions,
         (row_number() OVER (PARTITION BY target_id ORDER BY row_key) - 1) / ${rowsPerRetryBatch} AS batch
       FROM cell JOIN target_columns USING (target_id) GROUP BY target_id, row_key)
     INSERT INTO keyturn.batch (run_id, pass, target_id, kind, cells)
     SELECT $4, $5, target_id, 'reencrypt', jsonb_build_object('columns', to_jsonb(ids),
       'rows', jsonb_agg(jsonb_build_array(positions) || to_jsonb(row_key) ORDER BY row_key))
     FROM listed JOIN target_columns USING (target_id) GROUP BY target_id, batch, ids ORDER BY target_id, batch`,
    [...selectionParameters(selection), run.id, run.pass],
  );
}

/** Every entry of the selected cells, of whatever run. Answers how many cells. */
export async function declareResolved(client: Queryable, selection: QuarantineSelection): Promise<number> {
  const { rows } = await client.query(
    `WITH cell AS (${selectedCells}),
     resolved AS (
       UPDATE keyturn.quarantine q SET resolved_at = clock_timestamp(), resolution = 'declared' FROM cell
       WHERE q.target_id = cell.target_id AND q.row_key = cell.row_key AND q.column_id = cell.column_id AND q.resolved_at IS NULL
       RETURNING q.column_id, q.row_key)
     SELECT count(*) FROM (SELECT DISTINCT column_id, row_key FROM resolved) c`,
    selectionParameters(selection),
  );
  return Number(rows[0]?.[0]);
}

/** Unresolved cells of all targets of a keyring. */
export async function countUnresolved(database: Queryable, keyringId: string): Promise<number> {
  const { rows } = await database.query(
    `SELECT count(*) FROM (SELECT DISTINCT q.column_id, q.row_key FROM keyturn.quarantine q JOIN keyturn.target t ON t.id = q.target_id
     WHERE t.keyring_id = $1 AND q.resolved_at IS NULL) c`,
    [keyringId],
  );
  return Number(rows[0]?.[0]);
}
