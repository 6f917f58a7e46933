// Runs and the planning state of their passes. A state change is conditional on the state it leaves and writes its audit
// record in the same transaction (I10).
import { KeyturnError } from '../errors.js';
import type { Outcome } from '../rotation/outcome.js';
import { mayMoveRun, type RunKind, type RunState } from '../rotation/run.js';
import type { RunLimits } from '../rotation/limits.js';
import { emergencyPriority } from '../rotation/precedence.js';
import type { RowKey } from '../rotation/target.js';
import { writeAudit } from './audit.js';
import type { Queryable, Row } from './database.js';
import { limitColumns, limitsOf } from './limits.js';

export interface Run {
  readonly id: number;
  readonly kind: RunKind;
  readonly state: RunState;
  /** Where `resume` goes back to. */
  readonly resumeState: RunState | undefined;
  readonly keyringId: string;
  readonly keyringName: string;
  readonly targetKeyId: number;
  readonly generation: number;
  readonly targetId: string | undefined;
  readonly scope: string | undefined;
  readonly deep: boolean;
  /** Visits listed cells and nothing else; no scan follows. */
  readonly onlyCells: boolean;
  readonly pass: number;
  readonly round: number;
  /** In words, why the run is not going on. */
  readonly heldBackBy: string | undefined;
  readonly limits: RunLimits;
  /** 0 to 9; 10 for an emergency. */
  readonly priority: number;
  /** The finished run whose rest this one takes up. */
  readonly retries: number | undefined;
  readonly reason: string | undefined;
  readonly requestedBy: string;
  readonly createdAt: Date;
  readonly startedAt: Date | undefined;
  readonly verifiedAt: Date | undefined;
  readonly finishedAt: Date | undefined;
  /** When all this was so, by the database's clock. */
  readonly readAt: Date;
}

const runSelect = `SELECT r.id, r.kind, r.state, r.resume_state, r.keyring_id, k.name, r.target_key_id, r.generation, r.target_id, r.scope, r.deep, r.only_cells, r.pass, r.round,
  r.held_back_by, r.reason, r.requested_by, r.created_at, r.started_at, r.verified_at, r.finished_at,
  r.priority, r.retries, clock_timestamp(), ${limitColumns}
  FROM keyturn.run r JOIN keyturn.keyring k ON k.id = r.keyring_id`;

const finishedStates = `('cancelled', 'succeeded', 'completed_with_failures', 'failed')`;

function runOf(row: Row): Run {
  const [
    id,
    kind,
    state,
    resumeState,
    keyringId,
    keyringName,
    targetKeyId,
    generation,
    targetId,
    scope,
    deep,
    onlyCells,
    pass,
    round,
    heldBackBy,
    reason,
    requestedBy,
    createdAt,
    startedAt,
    verifiedAt,
    finishedAt,
    priority,
    retries,
    readAt,
    ...limits
  ] = row;
  return {
    id: Number(id),
    kind: String(kind) as RunKind,
    state: String(state) as RunState,
    resumeState: resumeState === null ? undefined : (String(resumeState) as RunState),
    keyringId: String(keyringId),
    keyringName: String(keyringName),
    targetKeyId: Number(targetKeyId),
    generation: Number(generation),
    targetId: targetId === null ? undefined : String(targetId),
    scope: scope === null ? undefined : String(scope),
    deep: deep === true,
    onlyCells: onlyCells === true,
    pass: Number(pass),
    round: Number(round),
    heldBackBy: heldBackBy === null ? undefined : String(heldBackBy),
    limits: limitsOf(limits),
    priority: Number(priority),
    retries: retries === null ? undefined : Number(retries),
    reason: reason === null ? undefined : String(reason),
    requestedBy: String(requestedBy),
    createdAt: createdAt as Date,
    startedAt: (startedAt as Date | null) ?? undefined,
    verifiedAt: (verifiedAt as Date | null) ?? undefined,
    finishedAt: (finishedAt as Date | null) ?? undefined,
    readAt: readAt as Date,
  };
}

export interface RunOrder {
  readonly kind: RunKind;
  readonly keyringId: string;
  readonly targetKeyId: number;
  readonly generation: number;
  readonly targetId: string | undefined;
  readonly scope: string | undefined;
  readonly deep: boolean;
  readonly limits: RunLimits;
  readonly priority: number;
  readonly retries: number | undefined;
  readonly onlyCells?: boolean | undefined;
  readonly reason: string | undefined;
}

/** "ktrn": orders of runs, one after the other. Advisory, since not every login that orders runs may lock a row for it. */
const orderLock = 0x6b74_726e;

/** Whoever orders a run afterwards in the same transaction knows that no other was ordered since what it read. */
export async function lockOrders(client: Queryable): Promise<void> {
  await client.query('SELECT pg_advisory_xact_lock($1)', [orderLock]);
}

export async function insertRun(client: Queryable, order: RunOrder): Promise<number> {
  const { rows } = await client.query(
    `INSERT INTO keyturn.run (kind, state, keyring_id, target_key_id, generation, target_id, scope, deep, only_cells, reason,
       retries, priority, emergency, max_rows_per_second, max_workers, hours_from, hours_to, hours_zone)
     VALUES ($1, 'pending', $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17) RETURNING id`,
    [
      order.kind,
      order.keyringId,
      order.targetKeyId,
      order.generation,
      order.targetId ?? null,
      order.scope ?? null,
      order.deep,
      order.onlyCells === true,
      order.reason ?? null,
      order.retries ?? null,
      ...steeringValues(order),
    ],
  );
  const id = Number(rows[0]?.[0]);
  await writeAudit(client, {
    action: 'run.create',
    object: `run ${id}`,
    reason: order.reason,
    after: {
      kind: order.kind,
      targetKeyId: order.targetKeyId,
      scope: order.onlyCells === true ? 'listed cells' : order.scope === undefined ? 'all' : 'one tenant',
      ...describeSteering(order),
      ...(order.retries === undefined ? {} : { retries: order.retries }),
    },
  });
  return id;
}

/** How fast a run may go, and before which others. */
export interface Steering {
  readonly limits: RunLimits;
  readonly priority: number;
}

/** For the columns from priority to hours_zone. */
function steeringValues({ limits, priority }: Steering): readonly unknown[] {
  const { rowsPerSecond, workers, hours } = limits;
  return [
    priority,
    priority === emergencyPriority,
    rowsPerSecond ?? null,
    workers ?? null,
    hours?.from ?? null,
    hours?.to ?? null,
    hours?.zone ?? null,
  ];
}

function describeSteering({ limits, priority }: Steering): Readonly<Record<string, unknown>> {
  return { priority, ...limits };
}

/** The run, which stays as it is until the transaction ends. Throws RUN_NOT_FOUND. */
export async function lockRun(client: Queryable, id: number): Promise<Run> {
  await client.query('SELECT 1 FROM keyturn.run WHERE id = $1 FOR NO KEY UPDATE', [id]);
  return getRun(client, id);
}

/** `run`: locked by the caller. */
export async function setSteering(
  client: Queryable,
  run: Run,
  steering: Steering & { readonly reason: string | undefined },
): Promise<void> {
  await client.query(
    `UPDATE keyturn.run SET priority = $2, emergency = $3, max_rows_per_second = $4, max_workers = $5,
       hours_from = $6, hours_to = $7, hours_zone = $8 WHERE id = $1`,
    [run.id, ...steeringValues(steering)],
  );
  await writeAudit(client, {
    action: 'run.limit',
    object: `run ${run.id}`,
    reason: steering.reason,
    before: describeSteering(run),
    after: describeSteering(steering),
  });
}

/** An unfinished run of the same kind over the same rows, unless it is being cancelled. */
export async function findUnfinishedTwin(database: Queryable, run: Run): Promise<Run | undefined> {
  const { rows } = await database.query(
    `${runSelect} WHERE r.state NOT IN ${finishedStates} AND r.state <> 'cancelling' AND r.keyring_id = $1 AND r.kind = $2 AND r.deep = $3
       AND r.target_id IS NOT DISTINCT FROM $4 AND r.scope IS NOT DISTINCT FROM $5 ORDER BY r.id LIMIT 1`,
    [run.keyringId, run.kind, run.deep, run.targetId ?? null, run.scope ?? null],
  );
  return rows[0] === undefined ? undefined : runOf(rows[0]);
}

/** Throws RUN_NOT_FOUND. */
export async function getRun(database: Queryable, id: number): Promise<Run> {
  const { rows } = await database.query(`${runSelect} WHERE r.id = $1`, [id]);
  if (rows[0] === undefined)
    throw new KeyturnError('RUN_NOT_FOUND', `there is no run ${id}; see: keyturn run list`, { run: id });
  return runOf(rows[0]);
}

export async function listRuns(database: Queryable, limit: number): Promise<readonly Run[]> {
  const { rows } = await database.query(`${runSelect} ORDER BY r.id DESC LIMIT $1`, [limit]);
  return rows.map(runOf);
}

export async function listUnfinishedRuns(database: Queryable): Promise<readonly Run[]> {
  const { rows } = await database.query(`${runSelect} WHERE r.state NOT IN ${finishedStates} ORDER BY r.id`);
  return rows.map(runOf);
}

/** The newest unscoped run of a keyring toward one key, whatever its state. */
export async function findRunToward(
  database: Queryable,
  keyringId: string,
  targetKeyId: number,
  kind: RunKind = 'reencrypt',
): Promise<Run | undefined> {
  const { rows } = await database.query(
    `${runSelect} WHERE r.keyring_id = $1 AND r.target_key_id = $2 AND r.kind = $3 AND r.target_id IS NULL AND r.scope IS NULL AND NOT r.only_cells ORDER BY r.id DESC LIMIT 1`,
    [keyringId, targetKeyId, kind],
  );
  return rows[0] === undefined ? undefined : runOf(rows[0]);
}

/** Nobody rotates less often than quarterly by choice; what a dry run read longer ago has been written since. */
const dryRunValidDays = 90;

/**
 * The newest dry run that came to its end over the same rows, toward whichever key: what it could not decrypt moves to no
 * other key either. It stands until a run has moved these rows, and for a quarter at most.
 */
export async function findDryRun(
  database: Queryable,
  order: Pick<RunOrder, 'keyringId' | 'targetId' | 'scope'>,
): Promise<Run | undefined> {
  const { rows } = await database.query(
    `${runSelect} WHERE r.kind = 'dry_run' AND r.state IN ('succeeded', 'completed_with_failures') AND r.keyring_id = $1
       AND r.target_id IS NOT DISTINCT FROM $2 AND r.scope IS NOT DISTINCT FROM $3
       AND r.finished_at > clock_timestamp() - make_interval(days => ${dryRunValidDays})
       AND NOT EXISTS (SELECT 1 FROM keyturn.run later WHERE later.kind = 'reencrypt' AND NOT later.only_cells AND later.keyring_id = r.keyring_id
         AND later.state IN ('succeeded', 'completed_with_failures') AND later.finished_at > r.finished_at
         AND (later.target_id IS NULL OR later.target_id = r.target_id) AND (later.scope IS NULL OR later.scope = r.scope))
     ORDER BY r.finished_at DESC, r.id DESC LIMIT 1`,
    [order.keyringId, order.targetId ?? null, order.scope ?? null],
  );
  return rows[0] === undefined ? undefined : runOf(rows[0]);
}

export interface RunMove {
  readonly to: RunState;
  readonly cause?: string | undefined;
  readonly pass?: number | undefined;
  readonly round?: number | undefined;
}

/** False when the run has left `run.state` meanwhile; throws RUN_STATE_REFUSED for a move the table does not allow. */
export async function moveRunIfState(client: Queryable, run: Run, move: RunMove): Promise<boolean> {
  if (!mayMoveRun(run.state, move.to)) {
    throw new KeyturnError(
      'RUN_STATE_REFUSED',
      `run ${run.id} is ${run.state} and cannot become ${move.to}; see: keyturn run show ${run.id}`,
      { run: run.id, state: run.state, wanted: move.to },
    );
  }
  const { rowCount } = await client.query(
    `UPDATE keyturn.run SET state = $3, held_back_by = $4, pass = coalesce($5, pass), round = coalesce($6, round),
       resume_state = CASE WHEN $3 = 'pausing' THEN $2 WHEN $3 IN ('paused', 'cancelling') THEN resume_state END,
       started_at = CASE WHEN $3 IN ('running', 'verifying') THEN coalesce(started_at, clock_timestamp()) ELSE started_at END,
       resumed_at = CASE WHEN $2 = 'paused' OR ($2 = 'pausing' AND $3 IN ('pending', 'running', 'verifying')) THEN clock_timestamp() ELSE resumed_at END,
       verified_at = CASE WHEN $3 = 'succeeded' AND kind <> 'dry_run' AND NOT only_cells THEN clock_timestamp() END,
       finished_at = CASE WHEN $3 IN ${finishedStates} THEN clock_timestamp() END
     WHERE id = $1 AND state = $2`,
    [run.id, run.state, move.to, move.cause ?? null, move.pass ?? null, move.round ?? null],
  );
  if (rowCount !== 1) return false;
  await writeAudit(client, {
    action: `run.${move.to}`,
    object: `run ${run.id}`,
    reason: move.cause,
    before: { state: run.state },
    after: { state: move.to, round: move.round ?? run.round },
  });
  return true;
}

/** The active key changed while the run was on: from now on it moves rows to the new one. */
export async function retargetRun(
  client: Queryable,
  run: Run,
  target: { keyId: number; generation: number },
): Promise<void> {
  await client.query('UPDATE keyturn.run SET target_key_id = $2, generation = $3 WHERE id = $1', [
    run.id,
    target.keyId,
    target.generation,
  ]);
  await writeAudit(client, {
    action: 'run.retarget',
    object: `run ${run.id}`,
    before: { targetKeyId: run.targetKeyId },
    after: { targetKeyId: target.keyId },
  });
}

export async function setHeldBack(client: Queryable, run: Run, words: string | undefined): Promise<void> {
  if (run.heldBackBy === words) return;
  await client.query('UPDATE keyturn.run SET held_back_by = $2 WHERE id = $1 AND state = $3', [
    run.id,
    words ?? null,
    run.state,
  ]);
}

export interface TargetPass {
  readonly targetId: string;
  readonly bound: RowKey | undefined;
  readonly plannedTo: RowKey | undefined;
  readonly isPlanned: boolean;
}

export async function insertTargetPass(
  client: Queryable,
  run: { id: number },
  pass: number,
  target: { id: string; bound: RowKey | undefined; estimatedRows: number },
): Promise<void> {
  await client.query(
    'INSERT INTO keyturn.run_target (run_id, pass, target_id, bound, is_planned, estimated_rows) VALUES ($1, $2, $3, $4, $5, $6)',
    [run.id, pass, target.id, target.bound ?? null, target.bound === undefined, target.estimatedRows],
  );
}

export async function listUnplanned(database: Queryable, run: Run): Promise<readonly TargetPass[]> {
  const { rows } = await database.query(
    'SELECT target_id, bound, planned_to, is_planned FROM keyturn.run_target WHERE run_id = $1 AND pass = $2 AND NOT is_planned ORDER BY target_id',
    [run.id, run.pass],
  );
  return rows.map(([targetId, bound, plannedTo, isPlanned]) => ({
    targetId: String(targetId),
    bound: (bound as string[] | null) ?? undefined,
    plannedTo: (plannedTo as string[] | null) ?? undefined,
    isPlanned: isPlanned === true,
  }));
}

/** Moves the planning cursor; false when another supervisor moved it first. */
export async function advancePlanIfAt(
  client: Queryable,
  run: Run,
  target: TargetPass,
  to: { plannedTo: RowKey | undefined; isPlanned: boolean },
): Promise<boolean> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.run_target SET planned_to = coalesce($5, planned_to), is_planned = $6
     WHERE run_id = $1 AND pass = $2 AND target_id = $3 AND planned_to IS NOT DISTINCT FROM $4 AND NOT is_planned`,
    [run.id, run.pass, target.targetId, target.plannedTo ?? null, to.plannedTo ?? null, to.isPlanned],
  );
  return rowCount === 1;
}

export interface RunTotals {
  readonly outcome: Outcome;
  /** Cells the last verification found that do not name the target key, quarantined ones left out. */
  readonly staleCells: number;
  /** Rows examined in the current pass, and an estimate of all its rows. */
  readonly passRows: number;
  readonly passEstimatedRows: number;
  readonly slices: number;
}

export async function sumRun(database: Queryable, run: Run): Promise<RunTotals> {
  const { rows } = await database.query(
    `SELECT coalesce(sum(rows_examined) FILTER (WHERE kind = $2), 0), coalesce(sum(rows_updated) FILTER (WHERE kind = $2), 0),
       coalesce(sum(rows_skipped) FILTER (WHERE kind = $2), 0), coalesce(sum(rows_conflicted) FILTER (WHERE kind = $2), 0),
       coalesce(sum(rows_failed) FILTER (WHERE kind = $2), 0),
       coalesce(sum(cells_examined) FILTER (WHERE kind = $2), 0), coalesce(sum(cells_reencrypted) FILTER (WHERE kind = $2), 0),
       coalesce(sum(cells_current) FILTER (WHERE kind = $2), 0), coalesce(sum(cells_conflicted) FILTER (WHERE kind = $2), 0),
       coalesce(sum(cells_failed) FILTER (WHERE kind = $2), 0),
       coalesce(sum(cells_stale) FILTER (WHERE pass = $3), 0), coalesce(sum(rows_examined) FILTER (WHERE pass = $3 AND cells IS NULL), 0),
       (SELECT coalesce(sum(estimated_rows), 0) FROM keyturn.run_target WHERE run_id = $1 AND pass = $3), coalesce(sum(slices) FILTER (WHERE kind = $2), 0)
     FROM keyturn.batch WHERE run_id = $1`,
    [run.id, run.kind, run.pass],
  );
  const numbers = (rows[0] ?? []).map(Number);
  const at = (position: number): number => numbers[position] ?? 0;
  return {
    outcome: {
      rowsExamined: at(0),
      rowsUpdated: at(1),
      rowsSkipped: at(2),
      rowsConflicted: at(3),
      rowsFailed: at(4),
      cellsExamined: at(5),
      cellsReencrypted: at(6),
      cellsCurrent: at(7),
      cellsConflicted: at(8),
      cellsFailed: at(9),
    },
    staleCells: at(10),
    passRows: at(11),
    passEstimatedRows: at(12),
    slices: at(13),
  };
}
