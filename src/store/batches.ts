// Batches and their ledger. A batch is claimed with a random lease token; every slice advances cursor, counts and lease
// only while that token is still the batch's (I4): a worker that lost its lease rolls its row changes back.
import type { Outcome } from '../rotation/outcome.js';
import type { RunKind } from '../rotation/run.js';
import type { Standing } from '../rotation/standing.js';
import type { RowKey } from '../rotation/target.js';
import type { Queryable, Row } from './database.js';
import { standingColumns, standingFrom, standingOf, standingWidth } from './standing.js';

export const leaseSeconds = 15;

/** Rows to visit again; of each the columns that are meant, as positions in `columns` (ids). */
export interface CellList {
  readonly columns: readonly string[];
  readonly rows: readonly { readonly columns: readonly number[]; readonly key: RowKey }[];
}

export interface ClaimedBatch {
  readonly id: number;
  readonly runId: number;
  readonly pass: number;
  readonly targetId: string;
  readonly kind: RunKind;
  readonly after: RowKey | undefined;
  readonly upto: RowKey | undefined;
  readonly cells: CellList | undefined;
  /** Last key settled; for a list, the number of rows settled as its one part. */
  readonly cursor: RowKey | undefined;
  /** Races that its rows have lost in a row. */
  readonly depth: number;
  /** How often its rows were found locked by somebody else. */
  readonly waits: number;
  readonly attempts: number;
  readonly leaseToken: string;
  readonly run: {
    readonly kind: RunKind;
    readonly keyringName: string;
    readonly targetKeyId: number;
    readonly generation: number;
    readonly scope: string | undefined;
    readonly deep: boolean;
    readonly isEmergency: boolean;
  };
  /** As it was when the batch was claimed. */
  readonly standing: Standing;
}

const batchColumns = `b.id, b.run_id, b.pass, b.target_id, b.kind, b.after_key, b.upto_key, b.cells, b.cursor_key, b.depth, b.waits, b.attempts, b.lease_token`;

/** Takes a dispatched batch for 15 s; undefined when another generation, another worker or a pause got there first. */
export async function claimIfDispatched(
  database: Queryable,
  claim: { batchId: number; generation: number; memberId: string },
): Promise<ClaimedBatch | undefined> {
  const { rows } = await database.query(
    `WITH claimed AS (
       UPDATE keyturn.batch b SET state = 'running', lease_token = gen_random_uuid(), lease_until = clock_timestamp() + make_interval(secs => $4),
         member_id = $3, started_at = coalesce(b.started_at, clock_timestamp())
       FROM keyturn.run r
       WHERE b.id = $1 AND b.generation = $2 AND b.state = 'dispatched' AND r.id = b.run_id AND r.state IN ('running', 'verifying')
       RETURNING b.*)
     SELECT ${standingColumns}, ${batchColumns}, r.kind, k.name, r.target_key_id, r.generation, r.scope, r.deep, r.emergency
     ${standingFrom('claimed')} JOIN keyturn.keyring k ON k.id = r.keyring_id`,
    [claim.batchId, claim.generation, claim.memberId, leaseSeconds],
  );
  return rows[0] === undefined ? undefined : claimedOf(rows[0]);
}

function claimedOf(row: Row): ClaimedBatch {
  const [
    id,
    runId,
    pass,
    targetId,
    kind,
    after,
    upto,
    cells,
    cursor,
    depth,
    waits,
    attempts,
    leaseToken,
    runKind,
    keyringName,
    targetKeyId,
    generation,
    scope,
    deep,
    emergency,
  ] = row.slice(standingWidth);
  const list = cells as { columns: string[]; rows: [number[], ...string[]][] } | null;
  return {
    id: Number(id),
    runId: Number(runId),
    pass: Number(pass),
    targetId: String(targetId),
    kind: String(kind) as RunKind,
    after: (after as string[] | null) ?? undefined,
    upto: (upto as string[] | null) ?? undefined,
    cells:
      list === null
        ? undefined
        : { columns: list.columns, rows: list.rows.map(([columns, ...key]) => ({ columns, key })) },
    cursor: (cursor as string[] | null) ?? undefined,
    depth: Number(depth),
    waits: Number(waits),
    attempts: Number(attempts),
    leaseToken: String(leaseToken),
    run: {
      kind: String(runKind) as RunKind,
      keyringName: String(keyringName),
      targetKeyId: Number(targetKeyId),
      generation: Number(generation),
      scope: scope === null ? undefined : String(scope),
      deep: deep === true,
      isEmergency: emergency === true,
    },
    standing: standingOf(row),
  };
}

export interface SliceEntry {
  readonly batch: ClaimedBatch;
  readonly memberId: string;
  readonly cursor: RowKey;
  readonly isLast: boolean;
  readonly outcome: Outcome;
  readonly staleCells: number;
  readonly readMs: number;
  readonly cryptoMs: number;
  readonly writeMs: number;
}

/**
 * Advances the batch by one slice and writes its ledger entry, in the caller's transaction. Undefined when the lease
 * token is no longer the batch's: the caller must roll back. Otherwise how run and fleet stand, so that a pause, a limit
 * and a new pace are seen.
 */
export async function advanceIfLeased(client: Queryable, entry: SliceEntry): Promise<Standing | undefined> {
  const { batch, outcome } = entry;
  const { rows } = await client.query(
    `WITH advanced AS (
       UPDATE keyturn.batch SET cursor_key = $3, slices = slices + 1, lease_until = clock_timestamp() + make_interval(secs => $4),
         state = CASE WHEN $5 THEN 'done' ELSE state END, lease_token = CASE WHEN $5 THEN NULL ELSE lease_token END,
         finished_at = CASE WHEN $5 THEN clock_timestamp() END, attempts = 0, cells_stale = cells_stale + $6,
         rows_examined = rows_examined + $7, rows_updated = rows_updated + $8, rows_skipped = rows_skipped + $9,
         rows_conflicted = rows_conflicted + $10, rows_failed = rows_failed + $11,
         cells_examined = cells_examined + $12, cells_reencrypted = cells_reencrypted + $13, cells_current = cells_current + $14,
         cells_conflicted = cells_conflicted + $15, cells_failed = cells_failed + $16
       WHERE id = $1 AND lease_token = $2 AND state = 'running'
       RETURNING id, slices, run_id, pass, member_id),
     entry AS (
       INSERT INTO keyturn.ledger (batch_id, slice, member_id, read_ms, crypto_ms, write_ms,
         rows_examined, rows_updated, rows_skipped, rows_conflicted, rows_failed,
         cells_examined, cells_reencrypted, cells_current, cells_conflicted, cells_failed)
       SELECT id, slices, $17, $18, $19, $20, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16 FROM advanced)
     SELECT ${standingColumns} ${standingFrom('advanced')}`,
    [
      batch.id,
      batch.leaseToken,
      entry.cursor,
      leaseSeconds,
      entry.isLast,
      entry.staleCells,
      outcome.rowsExamined,
      outcome.rowsUpdated,
      outcome.rowsSkipped,
      outcome.rowsConflicted,
      outcome.rowsFailed,
      outcome.cellsExamined,
      outcome.cellsReencrypted,
      outcome.cellsCurrent,
      outcome.cellsConflicted,
      outcome.cellsFailed,
      entry.memberId,
      entry.readMs,
      entry.cryptoMs,
      entry.writeMs,
    ],
  );
  return rows[0] === undefined ? undefined : standingOf(rows[0]);
}

/** Ends a batch whose rest holds no rows. False when the lease was lost. */
export async function finishIfLeased(client: Queryable, batch: ClaimedBatch): Promise<boolean> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.batch SET state = 'done', lease_token = NULL, finished_at = clock_timestamp() WHERE id = $1 AND lease_token = $2 AND state = 'running'`,
    [batch.id, batch.leaseToken],
  );
  return rowCount === 1;
}

/** Ends a batch where it stands, for others that take its rest. False when the lease was lost. */
export async function splitIfLeased(client: Queryable, batch: ClaimedBatch, error: string): Promise<boolean> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.batch SET state = 'split', lease_token = NULL, last_error = $3, finished_at = clock_timestamp()
     WHERE id = $1 AND lease_token = $2 AND state = 'running'`,
    [batch.id, batch.leaseToken, error],
  );
  return rowCount === 1;
}

/** Hands a batch back with its cursor; it is dispatched again after `delayMs`. */
export async function releaseIfLeased(
  client: Queryable,
  batch: ClaimedBatch,
  release: { delayMs: number; error: string | undefined },
): Promise<boolean> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.batch SET state = 'pending', lease_token = NULL, lease_until = NULL, last_error = $3::text,
       attempts = attempts + CASE WHEN $3::text IS NULL THEN 0 ELSE 1 END,
       not_before = clock_timestamp() + make_interval(secs => $4)
     WHERE id = $1 AND lease_token = $2 AND state = 'running'`,
    [batch.id, batch.leaseToken, release.error ?? null, release.delayMs / 1000],
  );
  return rowCount === 1;
}

export interface PlannedBatch {
  readonly runId: number;
  readonly pass: number;
  readonly targetId: string;
  readonly kind: RunKind;
  readonly after?: RowKey | undefined;
  readonly upto?: RowKey | undefined;
  readonly cells?: CellList | undefined;
  readonly follows?: number | undefined;
  readonly depth?: number | undefined;
  readonly waits?: number | undefined;
  readonly attempts?: number | undefined;
  readonly delayMs?: number | undefined;
}

export async function insertBatch(client: Queryable, batch: PlannedBatch): Promise<void> {
  const cells = batch.cells && {
    columns: batch.cells.columns,
    rows: batch.cells.rows.map(({ columns, key }) => [columns, ...key]),
  };
  await client.query(
    `INSERT INTO keyturn.batch (run_id, pass, target_id, kind, after_key, upto_key, cells, follows, depth, waits, attempts, not_before)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, clock_timestamp() + make_interval(secs => $12))`,
    [
      batch.runId,
      batch.pass,
      batch.targetId,
      batch.kind,
      batch.after ?? null,
      batch.upto ?? null,
      cells === undefined ? null : JSON.stringify(cells),
      batch.follows ?? null,
      batch.depth ?? 0,
      batch.waits ?? 0,
      batch.attempts ?? 0,
      (batch.delayMs ?? 0) / 1000,
    ],
  );
}

export interface DispatchedBatch {
  readonly id: number;
  readonly generation: number;
}

export type BatchShape = 'range' | 'list';

export interface DispatchOptions {
  /** Any where none is named. */
  readonly shape?: BatchShape | undefined;
  /** Runs that get none for now. */
  readonly resting?: readonly number[] | undefined;
}

/**
 * Marks up to `limit` due batches of working runs as dispatched under a new generation. The run of the higher priority is
 * served first; equals in turn, by how many batches each has out; a run never has more out than it is allowed (as
 * `batchesAllowed` has it). Answered in the order in which they are due.
 */
export async function dispatchDue(
  client: Queryable,
  limit: number,
  { shape, resting = [] }: DispatchOptions = {},
): Promise<readonly DispatchedBatch[]> {
  const { rows } = await client.query(
    `WITH contender AS (
       SELECT r.id, r.pass, r.priority, least(r.max_workers, r.max_rows_per_second) AS allowed,
         (SELECT count(*) FROM keyturn.batch o WHERE o.run_id = r.id AND o.state IN ('dispatched', 'running')) AS out
       FROM keyturn.run r WHERE r.state IN ('running', 'verifying') AND r.id <> ALL ($3)),
     due AS (
       SELECT b.id, c.id AS run_id, c.priority, c.allowed, c.out + row_number() OVER (PARTITION BY b.run_id ORDER BY b.id) AS place
       FROM keyturn.batch b JOIN contender c ON c.id = b.run_id AND c.pass = b.pass
       WHERE b.state = 'pending' AND b.not_before <= clock_timestamp() AND ($2::boolean IS NULL OR (b.cells IS NULL) = $2)),
     chosen AS (
       SELECT id, row_number() OVER (ORDER BY priority DESC, place, run_id) AS turn FROM due
       WHERE allowed IS NULL OR place <= allowed ORDER BY turn LIMIT $1),
     dispatched AS (
       UPDATE keyturn.batch SET state = 'dispatched', generation = generation + 1, dispatched_at = clock_timestamp()
       WHERE id IN (SELECT id FROM chosen) AND state = 'pending' RETURNING id, generation)
     SELECT d.id, d.generation FROM dispatched d JOIN chosen c ON c.id = d.id ORDER BY c.turn`,
    [limit, shape === undefined ? null : shape === 'range', resting],
  );
  return rows.map(([id, generation]) => ({ id: Number(id), generation: Number(generation) }));
}

/** Batches handed out and not finished, over all runs. */
export async function countOut(database: Queryable): Promise<Record<BatchShape, number>> {
  const { rows } = await database.query(
    `SELECT count(*) FILTER (WHERE cells IS NULL), count(*) FILTER (WHERE cells IS NOT NULL) FROM keyturn.batch WHERE state IN ('dispatched', 'running')`,
  );
  return { range: Number(rows[0]?.[0]), list: Number(rows[0]?.[1]) };
}

/** Planned ranges of a pass that wait to be handed out. */
export async function countPendingRanges(database: Queryable, runId: number, pass: number): Promise<number> {
  const { rows } = await database.query(
    `SELECT count(*) FROM keyturn.batch WHERE run_id = $1 AND pass = $2 AND state = 'pending' AND cells IS NULL`,
    [runId, pass],
  );
  return Number(rows[0]?.[0]);
}

/** Dispatched batches that no worker has taken for a while: the queue may have lost them. */
export async function listUnclaimed(
  database: Queryable,
  olderThanSeconds: number,
): Promise<readonly DispatchedBatch[]> {
  const { rows } = await database.query(
    `SELECT id, generation FROM keyturn.batch WHERE state = 'dispatched' AND dispatched_at < clock_timestamp() - make_interval(secs => $1) ORDER BY id`,
    [olderThanSeconds],
  );
  return rows.map(([id, generation]) => ({ id: Number(id), generation: Number(generation) }));
}

export async function returnIfStillDispatched(client: Queryable, batch: DispatchedBatch): Promise<boolean> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.batch SET state = 'pending' WHERE id = $1 AND generation = $2 AND state = 'dispatched'`,
    [batch.id, batch.generation],
  );
  return rowCount === 1;
}

/** Batches whose worker stopped renewing its lease go back to pending; the old token is void from here on. */
export async function expireLeases(client: Queryable): Promise<readonly number[]> {
  const { rows } = await client.query(
    `UPDATE keyturn.batch SET state = 'pending', lease_token = NULL, lease_until = NULL, attempts = attempts + 1, last_error = 'LEASE_EXPIRED'
     WHERE state = 'running' AND lease_until < clock_timestamp() RETURNING id`,
  );
  return rows.map((row) => Number(row[0]));
}

/** Takes dispatched batches of a run back, when it pauses, is cancelled or rests. */
export async function recallDispatched(client: Queryable, runId: number): Promise<void> {
  await client.query(`UPDATE keyturn.batch SET state = 'pending' WHERE run_id = $1 AND state = 'dispatched'`, [runId]);
}

export async function cancelPending(client: Queryable, runId: number): Promise<void> {
  await client.query(
    `UPDATE keyturn.batch SET state = 'cancelled', finished_at = clock_timestamp() WHERE run_id = $1 AND state = 'pending'`,
    [runId],
  );
}

export interface BatchCensus {
  readonly pending: number;
  readonly dispatched: number;
  readonly running: number;
  readonly done: number;
}

export async function countBatches(database: Queryable, runId: number, pass: number): Promise<BatchCensus> {
  const { rows } = await database.query(
    `SELECT count(*) FILTER (WHERE state = 'pending'), count(*) FILTER (WHERE state = 'dispatched'), count(*) FILTER (WHERE state = 'running'), count(*) FILTER (WHERE state = 'done')
     FROM keyturn.batch WHERE run_id = $1 AND pass = $2`,
    [runId, pass],
  );
  const [pending, dispatched, running, done] = (rows[0] ?? []).map(Number);
  return { pending: pending ?? 0, dispatched: dispatched ?? 0, running: running ?? 0, done: done ?? 0 };
}

/** Rows that somebody else holds locked, where nothing else of the pass is left to do; else undefined. */
export async function countRowsWaitedFor(
  database: Queryable,
  runId: number,
  pass: number,
): Promise<number | undefined> {
  const { rows } = await database.query(
    `SELECT sum(jsonb_array_length(cells -> 'rows') - coalesce(cursor_key[1]::int, 0)) FROM keyturn.batch
     WHERE run_id = $1 AND pass = $2 AND state IN ('pending', 'dispatched', 'running') HAVING bool_and(waits > 0)`,
    [runId, pass],
  );
  return rows[0] === undefined ? undefined : Number(rows[0][0]);
}

/** Ids of the targets that a run has batches for. */
export async function listTargetsOfBatches(database: Queryable, runId: number): Promise<readonly string[]> {
  const { rows } = await database.query('SELECT DISTINCT target_id FROM keyturn.batch WHERE run_id = $1', [runId]);
  return rows.map((row) => String(row[0]));
}

/** Rows per second over the last finished batches of a run, per worker; undefined before the first. */
export async function recentThroughput(database: Queryable, runId: number, kind: RunKind): Promise<number | undefined> {
  const { rows } = await database.query(
    `SELECT sum(rows_examined)::float8 / nullif(sum(extract(epoch FROM finished_at - started_at)), 0)::float8
     FROM (SELECT * FROM keyturn.batch WHERE run_id = $1 AND kind = $2 AND state = 'done' AND cells IS NULL AND rows_examined > 0 ORDER BY finished_at DESC LIMIT 8) b`,
    [runId, kind],
  );
  const value = rows[0]?.[0];
  return typeof value === 'number' ? value : undefined;
}

/** Cells by failure cause of the latest ranges that a pass has finished since the run was last resumed, newest first. */
export async function latestFailures(
  database: Queryable,
  runId: number,
  pass: number,
  limit: number,
): Promise<readonly { cellsExamined: number; failedByCause: ReadonlyMap<string, number> }[]> {
  const { rows } = await database.query(
    `SELECT b.cells_examined, coalesce((SELECT jsonb_object_agg(cause, n) FROM (SELECT q.cause, count(*) AS n FROM keyturn.quarantine q WHERE q.batch_id = b.id GROUP BY q.cause) c), '{}')
     FROM keyturn.batch b JOIN keyturn.run r ON r.id = b.run_id
     WHERE b.run_id = $1 AND b.pass = $2 AND b.state = 'done' AND b.cells IS NULL AND b.cells_examined > 0 AND b.finished_at > coalesce(r.resumed_at, '-infinity')
     ORDER BY b.finished_at DESC LIMIT $3`,
    [runId, pass, limit],
  );
  return rows.map(([cells, causes]) => ({
    cellsExamined: Number(cells),
    failedByCause: new Map(Object.entries(causes as Record<string, number>)),
  }));
}
