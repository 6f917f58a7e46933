// The operator's verbs on runs: order, show, list, watch. How they are steered stands in steer-runs.ts. They need the database alone: no root key,
// no queue. Rows are moved by workers only.
import { examineAwaiting } from '../engine/awaiting-adoption.js';
import { examineRegisteredTarget, type Finding } from '../engine/preflight.js';
import { targetsOfRun } from '../engine/plan-run.js';
import type { AlgorithmName } from '../crypto/algorithms.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { changeLimits, noLimits, requireCount, type LimitChange, type RunLimits } from '../rotation/limits.js';
import { emergencyPriority } from '../rotation/precedence.js';
import { isFinished, isWorking, type RunKind, type RunState } from '../rotation/run.js';
import { settledCells } from '../rotation/outcome.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { findTable } from '../store/catalog.js';
import { sqlstateOf, type Queryable } from '../store/database.js';
import { hasLeader } from '../store/leadership.js';
import { countBatches, listTargetsOfBatches } from '../store/batches.js';
import { getKeyring } from '../store/keys.js';
import { listMembers } from '../store/members.js';
import { listFailures } from '../store/quarantine.js';
import { listRegistered, listTargets, type RegisteredTarget } from '../store/registry.js';
import {
  getRun,
  insertRun,
  listRuns as listRunRows,
  lockOrders,
  sumRun,
  type Run,
  type RunOrder,
  type Steering,
} from '../store/runs.js';
import type { ControlContext } from './context.js';
import { chooseKeyring } from './keys.js';
import { readPaceReport, type PaceReport } from './pace.js';

export interface RunRequest {
  readonly kind: RunKind;
  readonly keyring: string | undefined;
  /** `schema.table`. */
  readonly target: string | undefined;
  /** One tenant, as the tenant column prints it. */
  readonly scope: string | undefined;
  readonly deep: boolean;
  readonly steering?: SteeringChange | undefined;
  /** The finished run whose rest this one takes up. */
  readonly retries?: number | undefined;
  /** The order stands although the last dry run found cells that would fail. */
  readonly acceptFailures?: boolean;
  readonly reason: string | undefined;
}

/** What an operator changes about how fast a run may go, and before which others. */
export interface SteeringChange extends LimitChange {
  /** 0, the default, to 9. */
  readonly priority?: number | undefined;
  /**
   * Goes before every other run, until it is through or given a priority again. Limits that are not given with it are taken
   * away: hours meant for a quiet rotation would have it wait for the night.
   */
  readonly isEmergency?: boolean | undefined;
}

export interface LimitsReport {
  readonly rows_per_second: number | null;
  readonly workers: number | null;
  readonly hours: string | null;
  readonly zone: string | null;
}

/** Every number of a run, under the names every door prints. Counters are cells ("fields") and rows of the run's own kind. */
export interface RunReport {
  readonly run_id: number;
  readonly kind: RunKind;
  readonly state: RunState;
  readonly keyring: string;
  readonly target_key_id: number;
  readonly target_key: string;
  readonly scope: string | null;
  readonly targets: readonly string[];
  readonly rows_examined: number;
  readonly rows_updated: number;
  readonly rows_skipped_all_on_target: number;
  readonly rows_conflicted: number;
  readonly rows_failed: number;
  readonly fields_examined: number;
  readonly fields_reencrypted: number;
  readonly fields_skipped_on_target: number;
  readonly fields_conflicted: number;
  readonly fields_failed: number;
  readonly fields_settled: number;
  /** What the last scan of the run found not naming the target key. */
  readonly fields_stale: number;
  readonly failures: readonly { target: string; field: string; cause: string; key_id: number | null; cells: number }[];
  readonly batches: {
    readonly pending: number;
    readonly dispatched: number;
    readonly running: number;
    readonly done: number;
  };
  readonly slices: number;
  readonly round: number;
  readonly limits: LimitsReport;
  readonly priority: number;
  readonly emergency: boolean;
  /** The run whose rest this one takes up. */
  readonly retries: number | null;
  readonly held_back_by: string | null;
  /** Of all workers together, while the run is at work. */
  readonly pace: PaceReport | null;
  readonly reason: string | null;
  readonly requested_by: string;
  /** Rows of the current pass looked at, and the planner's estimate of all. */
  readonly pass_rows: number;
  readonly pass_estimated_rows: number;
  readonly rows_per_second: number | null;
  readonly created_at: string;
  readonly started_at: string | null;
  readonly verified_at: string | null;
  readonly finished_at: string | null;
}

/** Creates a run toward the active key and returns its id at once. Throws PREFLIGHT_REFUSED for tables it cannot handle. */
export async function orderRun(context: ControlContext, request: RunRequest): Promise<Run> {
  return getRun(context.database, Number(await orderRunIf(context, request, async () => true)));
}

/**
 * `mayOrder` reads in the transaction that creates the run, which waits for every other order, so that what it sees is still
 * so then. Answers the run's id; undefined when it answers false.
 */
export async function orderRunIf(
  context: ControlContext,
  request: RunRequest,
  mayOrder: (client: Queryable) => Promise<boolean>,
): Promise<number | undefined> {
  const order = await prepareOrder(context, request);
  return context.database.transaction(async (client) => {
    await lockOrders(client);
    return (await mayOrder(client)) ? insertRun(client, order) : undefined;
  });
}

/** Everything that may refuse a run, before it is created. */
export async function prepareOrder(context: ControlContext, request: RunRequest): Promise<RunOrder> {
  const { database } = context;
  const keyring = await chooseKeyring(database, request.keyring);
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active === undefined)
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `keyring ${keyring.name} has no active key; run: keyturn key activate`,
      { keyring: keyring.name },
    );
  const target = request.target === undefined ? undefined : await findTarget(context, request.target);
  if (target !== undefined && target.keyringId !== keyring.id) {
    throw new KeyturnError(
      'TARGET_INVALID',
      `target ${request.target} belongs to keyring ${target.keyringName}, not ${keyring.name}`,
      { target: request.target },
    );
  }
  const order = {
    kind: request.kind,
    keyringId: keyring.id,
    targetKeyId: Number(active.id),
    generation: keyring.generation,
    targetId: target?.id,
    scope: request.scope,
    deep: request.deep,
    ...changeSteering({ limits: noLimits, priority: 0 }, request.steering ?? {}),
    retries: request.retries,
    reason: request.reason,
  };
  await refuseUnhandled(context, keyring, order);
  const targets = await targetsOfRun(database, order);
  await refuseImpossibleScope(database, targets, request.scope);
  if (targets.length === 0) {
    const why = request.scope === undefined ? 'no target is registered for it' : 'no target of it has a scope column';
    throw new KeyturnError(
      'TARGET_NOT_FOUND',
      `there is nothing to do for keyring ${keyring.name}: ${why}; see: keyturn target list`,
      { keyring: keyring.name },
    );
  }
  return order;
}

const highestPriority = emergencyPriority - 1;

/** Throws LIMIT_INVALID. */
export function changeSteering(before: Steering, change: SteeringChange): Steering {
  if (change.isEmergency === true && change.priority !== undefined)
    throw new KeyturnError('LIMIT_INVALID', 'an emergency run goes before every other; a priority says nothing then');
  if (change.priority !== undefined && change.priority !== 0)
    requireCount('a priority', change.priority, highestPriority);
  if (change.isEmergency === true) return { limits: changeLimits(noLimits, change), priority: emergencyPriority };
  return { limits: changeLimits(before.limits, change), priority: change.priority ?? before.priority };
}

/** The limits that an emergency takes away without a word about them; undefined where there are none. */
export function liftedBy(before: RunLimits, change: SteeringChange): RunLimits | undefined {
  if (change.isEmergency !== true) return undefined;
  const lifted: RunLimits = {
    rowsPerSecond: change.rowsPerSecond === undefined ? before.rowsPerSecond : undefined,
    workers: change.workers === undefined ? before.workers : undefined,
    hours: change.hours === undefined ? before.hours : undefined,
  };
  return Object.values(lifted).some((limit) => limit !== undefined) ? lifted : undefined;
}

export function limitsReport({ rowsPerSecond, workers, hours }: RunLimits): LimitsReport {
  return {
    rows_per_second: rowsPerSecond ?? null,
    workers: workers ?? null,
    hours: hours === undefined ? null : `${hours.from}-${hours.to}`,
    zone: hours?.zone ?? null,
  };
}

/** A tenant that a column's type cannot hold would fail the run's every step. The tenant itself may be personal: not named. */
async function refuseImpossibleScope(
  database: Queryable,
  targets: readonly Target[],
  scope: string | undefined,
): Promise<void> {
  for (const target of targets) {
    if (scope === undefined || target.scope === undefined) continue;
    try {
      await database.query(`SELECT $1::text::${target.scope.type}`, [scope]);
    } catch (error) {
      if (sqlstateOf(error)?.startsWith('22') !== true) throw error;
      throw new KeyturnError(
        'TARGET_INVALID',
        `tenant column ${targetTitle(target)}.${target.scope.name} is ${target.scope.type} and cannot hold the given tenant; say which tables are meant with --target`,
        { target: targetTitle(target) },
      );
    }
  }
}

/** A target by `schema.table` or `table`. */
export async function findTarget(context: ControlContext, name: string): Promise<Target> {
  const targets = await listTargets(context.database);
  const wanted = name.includes('.') ? name : `public.${name}`;
  const found = targets.find((target) => targetTitle(target) === wanted);
  if (found !== undefined) return found;
  throw new KeyturnError(
    'TARGET_NOT_FOUND',
    `there is no target "${name}"; known: ${targets.map(targetTitle).join(', ') || 'none'}; see: keyturn target list`,
    { target: name },
  );
}

/** The catalogue may have changed since `init`. */
async function refuseUnhandled(
  context: ControlContext,
  keyring: StoredKeyring,
  request: { kind: RunKind; targetId: string | undefined; scope: string | undefined },
): Promise<void> {
  const refusals: Finding[] = [];
  for (const target of await listRegistered(context.database)) {
    if (
      target.keyringId !== keyring.id ||
      (request.targetId !== undefined && target.id !== request.targetId) ||
      (request.scope !== undefined && target.scopeAttribute === undefined)
    )
      continue;
    refusals.push(
      ...(await examineRegistered(context.database, target, keyring.algorithm)).filter(
        (finding) => finding.level === 'refuse' && (finding.check !== 'adoption' || request.kind === 'reencrypt'),
      ),
    );
  }
  if (refusals.length === 0) return;
  throw new KeyturnError(
    'PREFLIGHT_REFUSED',
    `not started: ${refusals.map(({ subject, reason, remedy }) => `${subject}: ${reason}; ${remedy}`).join(' | ')}`,
    { subjects: refusals.map(({ subject }) => subject) },
  );
}

export async function examineRegistered(
  database: Queryable,
  target: RegisteredTarget,
  algorithm: AlgorithmName,
): Promise<readonly Finding[]> {
  const table = await findTable(database, { oid: target.tableOid });
  if (table === undefined && (await findTable(database, target)) !== undefined) {
    return [
      {
        level: 'refuse',
        check: 'table',
        subject: targetTitle(target),
        reason: 'its table was created anew since it was registered, so a run would pass its rows over',
        remedy: 'keyturn init',
      },
    ];
  }
  return [...examineRegisteredTarget(target, table, algorithm), ...(await examineAwaiting(database, target, table))];
}

export interface Runners {
  readonly hasSupervisor: boolean;
  readonly workers: number;
}

export async function findRunners(context: ControlContext): Promise<Runners> {
  const members = await listMembers(context.database);
  return {
    hasSupervisor: await hasLeader(context.database),
    workers: members.filter((member) => member.isLive && member.kind === 'worker').length,
  };
}

/** Throws NO_WORKERS, saying what to start, when nobody is there who could do the work that is to be waited for. */
export async function requireRunners(context: ControlContext): Promise<void> {
  const { hasSupervisor, workers } = await findRunners(context);
  if (hasSupervisor && workers > 0) return;
  const missing = [
    hasSupervisor ? undefined : 'supervisor (start: keyturn supervisor)',
    workers > 0 ? undefined : 'worker (start: keyturn worker)',
  ].filter((part) => part !== undefined);
  throw new KeyturnError(
    'NO_WORKERS',
    `waiting needs a live ${missing.join(' and a live ')}; or let this command start them for its duration: --local 2`,
  );
}

export async function showRun(context: ControlContext, id: number): Promise<RunReport> {
  return report(context, await getRun(context.database, id));
}

export async function listRuns(context: ControlContext, limit: number): Promise<readonly RunReport[]> {
  const reports: RunReport[] = [];
  for (const run of await listRunRows(context.database, limit)) reports.push(await report(context, run));
  return reports;
}

async function report(context: ControlContext, run: Run): Promise<RunReport> {
  const { database } = context;
  // Before the sums: whoever sees no batch in hand sees all that was in hand counted.
  const batches = await countBatches(database, run.id, run.pass);
  const totals = await sumRun(database, run);
  const failures = await listFailures(database, run.id);
  const visited = run.onlyCells ? new Set(await listTargetsOfBatches(database, run.id)) : undefined;
  const targets = (await targetsOfRun(database, run)).filter((target) => visited?.has(target.id) !== false);
  const keyring = await getKeyring(database, run.keyringName);
  const key = keyring.keys.find((candidate) => candidate.id === run.targetKeyId);
  const { outcome } = totals;
  return {
    run_id: run.id,
    kind: run.kind,
    state: run.state,
    keyring: run.keyringName,
    target_key_id: run.targetKeyId,
    target_key: key === undefined ? String(run.targetKeyId) : keyTitle(keyring.name, key),
    scope: run.scope ?? null,
    targets: targets.map(targetTitle),
    rows_examined: outcome.rowsExamined,
    rows_updated: outcome.rowsUpdated,
    rows_skipped_all_on_target: outcome.rowsSkipped,
    rows_conflicted: outcome.rowsConflicted,
    rows_failed: outcome.rowsFailed,
    fields_examined: outcome.cellsExamined,
    fields_reencrypted: outcome.cellsReencrypted,
    fields_skipped_on_target: outcome.cellsCurrent,
    fields_conflicted: outcome.cellsConflicted,
    fields_failed: outcome.cellsFailed,
    fields_settled: settledCells(outcome),
    fields_stale: totals.staleCells,
    failures: failures.map(({ target, column, cause, keyId, cells }) => ({
      target,
      field: column,
      cause,
      key_id: keyId ?? null,
      cells,
    })),
    batches,
    slices: totals.slices,
    round: run.round,
    limits: limitsReport(run.limits),
    priority: run.priority,
    emergency: run.priority === emergencyPriority,
    retries: run.retries ?? null,
    held_back_by: run.heldBackBy ?? null,
    pace: isWorking(run.state) ? await readPaceReport(database) : null,
    reason: run.reason ?? null,
    requested_by: run.requestedBy,
    pass_rows: totals.passRows,
    pass_estimated_rows: totals.passEstimatedRows,
    rows_per_second: await recentRate(context, run),
    created_at: run.createdAt.toISOString(),
    started_at: run.startedAt?.toISOString() ?? null,
    verified_at: run.verifiedAt?.toISOString() ?? null,
    finished_at: run.finishedAt?.toISOString() ?? null,
  };
}

const rateWindowSeconds = 10;

/** Rows per second that all workers together reached over the last ten seconds; null while nothing moves. */
async function recentRate(context: ControlContext, run: Run): Promise<number | null> {
  if (!isWorking(run.state)) return null;
  const { rows } = await context.database.query(
    `SELECT sum(l.rows_examined) / $3::float8 FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id
     WHERE b.run_id = $1 AND b.pass = $2 AND l.committed_at > clock_timestamp() - make_interval(secs => $3)`,
    [run.id, run.pass, rateWindowSeconds],
  );
  const rate = rows[0]?.[0];
  return typeof rate === 'number' ? Math.round(rate) : null;
}

const watchMs = 500;

/** Reports every half second until the run is finished or paused; the last one is its end. */
export async function* watchRun(context: ControlContext, id: number): AsyncGenerator<RunReport> {
  for (;;) {
    const current = await showRun(context, id);
    yield current;
    if (isFinished(current.state) || current.state === 'paused') return;
    await new Promise((resolve) => setTimeout(resolve, watchMs));
  }
}
