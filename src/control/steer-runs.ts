// The operator's verbs that steer runs: pause, resume, cancel, retry, limit. A request is a row's new state, written with the
// database alone: no root key, no queue, no supervisor. Workers read it with their next slice and stop by themselves; the
// leading supervisor, or the next one, settles it (pausing → paused, cancelling → cancelled).
import { KeyturnError } from '../errors.js';
import { emergencyPriority } from '../rotation/precedence.js';
import { isFinished, isWorking, mayMoveRun, type RunState } from '../rotation/run.js';
import {
  findUnfinishedTwin,
  getRun,
  listUnfinishedRuns,
  lockRun,
  moveRunIfState,
  setSteering,
  type Run,
} from '../store/runs.js';
import { targetTitle } from '../rotation/target.js';
import type { Queryable } from '../store/database.js';
import { getTarget } from '../store/registry.js';
import type { ControlContext } from './context.js';
import { judgeByDryRun } from './dry-run.js';
import {
  changeSteering,
  liftedBy,
  limitsReport,
  orderRunIf,
  showRun,
  type LimitsReport,
  type RunReport,
  type RunRequest,
  type SteeringChange,
} from './runs.js';

export async function pauseRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  return request(context, id, 'pausing', reason ?? 'paused by an operator');
}

export interface PausedRuns {
  /** Were asked to pause by this. */
  readonly runs: readonly RunReport[];
  /** Are paused, or about to be paused or cancelled, already. */
  readonly left_alone: readonly RunReport[];
}

/** Asks every unfinished run that can pause to do so, all or none. Runs ordered later start as ever. */
export async function pauseAllRuns(context: ControlContext, reason: string | undefined): Promise<PausedRuns> {
  const { asked, others } = await context.database.transaction(async (client) => {
    const [asked, others]: [number[], number[]] = [[], []];
    for (const { id } of await listUnfinishedRuns(client)) {
      const run = await lockRun(client, id);
      if (isFinished(run.state)) continue;
      if (mayMoveRun(run.state, 'pausing')) {
        await moveRunIfState(client, run, { to: 'pausing', cause: reason ?? 'all runs paused by an operator' });
        asked.push(id);
      } else others.push(id);
    }
    return { asked, others };
  });
  const show = (ids: readonly number[]): Promise<RunReport[]> => Promise.all(ids.map((id) => showRun(context, id)));
  return { runs: await show(asked), left_alone: await show(others) };
}

export async function cancelRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  return request(context, id, 'cancelling', reason ?? 'cancelled by an operator');
}

const settled = { pausing: 'paused', cancelling: 'cancelled' } as const;

/**
 * The supervisor moves runs too: the one that is asked is the run as it is, not as it was when it was looked up. One that was
 * asked already stays as it is.
 */
async function request(
  context: ControlContext,
  id: number,
  to: Extract<RunState, 'pausing' | 'cancelling'>,
  reason: string,
): Promise<RunReport> {
  await context.database.transaction(async (client) => {
    const run = await lockRun(client, id);
    if (run.state !== to && run.state !== settled[to]) await moveRunIfState(client, run, { to, cause: reason });
  });
  return showRun(context, id);
}

/** One that pauses goes on as well, before anybody has settled the pause; one that goes on already stays as it is. */
export async function resumeRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  await context.database.transaction(async (client) => {
    const run = await lockRun(client, id);
    if (run.state === 'pending' || isWorking(run.state)) return;
    const to = run.resumeState ?? 'pending';
    if (run.state !== 'paused' && run.state !== 'pausing') {
      throw new KeyturnError('RUN_STATE_REFUSED', `run ${id} is ${run.state} and does not go on; ${wayOnFrom(run)}`, {
        run: id,
        state: run.state,
      });
    }
    // Batches that were handed back too often start counting anew: somebody has looked at them.
    await client.query(
      `UPDATE keyturn.batch SET attempts = 0, not_before = '-infinity' WHERE run_id = $1 AND state = 'pending'`,
      [id],
    );
    await moveRunIfState(client, run, { to, cause: reason });
    // What was mended may be a key: from here on workers need a keyring as of now.
    await client.query(
      'UPDATE keyturn.run r SET held_back_by = NULL, generation = k.generation FROM keyturn.keyring k WHERE r.id = $1 AND k.id = r.keyring_id',
      [id],
    );
  });
  return showRun(context, id);
}

function wayOnFrom({ id, state }: Run): string {
  if (state === 'succeeded') return 'it left nothing; see: keyturn status';
  const retry = `keyturn run retry ${id}`;
  return `${state === 'cancelling' ? 'once it is cancelled, ' : ''}take up what it left with: ${retry}`;
}

export interface LimitedRun extends RunReport {
  /** The limits that an emergency took away. */
  readonly lifted_limits: LimitsReport | null;
}

/** Takes effect within a slice of its workers and a tick of the supervisor. Throws LIMIT_INVALID, RUN_STATE_REFUSED. */
export async function limitRun(
  context: ControlContext,
  id: number,
  change: SteeringChange & { readonly reason: string | undefined },
): Promise<LimitedRun> {
  const lifted = await context.database.transaction(async (client) => {
    const run = await lockRun(client, id);
    if (isFinished(run.state) || run.state === 'cancelling') {
      throw new KeyturnError(
        'RUN_STATE_REFUSED',
        `run ${id} is ${run.state}, so there is nothing to limit; see: keyturn run show ${id}`,
        { run: id, state: run.state },
      );
    }
    return steer(client, run, change);
  });
  return { ...(await showRun(context, id)), lifted_limits: lifted };
}

/**
 * Has the unfinished run go as another order was to; answers the limits that took away. Undefined when it does not go on any
 * more, so that who joined it would wait for nothing.
 */
export async function joinRun(
  context: ControlContext,
  id: number,
  change: SteeringChange & { readonly reason: string | undefined },
): Promise<LimitsReport | null | undefined> {
  return context.database.transaction(async (client) => {
    const run = await lockRun(client, id);
    if (run.state !== 'pending' && !isWorking(run.state)) return undefined;
    const { reason, ...steering } = change;
    const isSteered = Object.values(steering).some((value) => value !== undefined);
    return isSteered ? steer(client, run, { ...steering, reason }) : null;
  });
}

async function steer(
  client: Queryable,
  run: Run,
  change: SteeringChange & { readonly reason: string | undefined },
): Promise<LimitsReport | null> {
  await setSteering(client, run, { ...changeSteering(run, change), reason: change.reason });
  const lifted = liftedBy(run.limits, change);
  return lifted === undefined ? null : limitsReport(lifted);
}

/**
 * Orders a run that takes up what a finished one left: cells that failed, stayed stale or were never reached. It covers
 * the same rows under the same limits, toward the key that is active by now; what names that key already is passed over.
 * Throws RUN_STATE_REFUSED, and DRY_RUN_FAILED where a dry run came after it and found cells that would fail.
 */
export async function retryRun(
  context: ControlContext,
  id: number,
  options: { readonly reason: string | undefined; readonly acceptFailures?: boolean },
): Promise<RunReport> {
  const run = await getRun(context.database, id);
  refuseUnlessLeftBehind(run);
  const { hours } = run.limits;
  const target = run.targetId === undefined ? undefined : await getTarget(context.database, run.targetId);
  const request: RunRequest = {
    kind: run.kind,
    keyring: run.keyringName,
    target: target && targetTitle(target),
    scope: run.scope,
    deep: run.deep,
    steering: {
      rowsPerSecond: run.limits.rowsPerSecond,
      workers: run.limits.workers,
      hours: hours && `${hours.from}-${hours.to}`,
      zone: hours?.zone,
      ...(run.priority === emergencyPriority ? { isEmergency: true } : { priority: run.priority }),
    },
    retries: id,
    acceptFailures: options.acceptFailures === true,
    reason: options.reason ?? `retries run ${id}`,
  };
  await refuseTwin(context.database, run);
  if (run.kind === 'reencrypt') await judgeByDryRun(context, request);
  const ordered = await orderRunIf(context, request, async (client) => {
    await refuseTwin(client, run);
    return true;
  });
  return showRun(context, Number(ordered));
}

function refuseUnlessLeftBehind(run: Run): void {
  if (run.state === 'succeeded') throw noRetry(run, 'succeeded and left nothing; see: keyturn status');
  if (isFinished(run.state)) return;
  const look = isWorking(run.state) ? 'watch it' : 'look at it';
  throw noRetry(run, `is ${run.state}, not finished; ${look} with: keyturn run show ${run.id}`);
}

async function refuseTwin(database: Queryable, run: Run): Promise<void> {
  const twin = await findUnfinishedTwin(database, run);
  if (twin !== undefined)
    throw noRetry(run, `needs no retry: run ${twin.id} covers the same; see: keyturn run show ${twin.id}`);
}

function noRetry(run: Run, why: string): KeyturnError {
  return new KeyturnError('RUN_STATE_REFUSED', `run ${run.id} ${why}`, { run: run.id, state: run.state });
}
