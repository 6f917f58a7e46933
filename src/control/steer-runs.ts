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
import { getTarget } from '../store/registry.js';
import type { ControlContext } from './context.js';
import { changeSteering, orderRun, showRun, type RunReport, type SteeringChange } from './runs.js';

export async function pauseRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  return request(context, id, 'pausing', reason ?? 'paused by an operator');
}

/** Asks every run that can pause to do so, all or none; answers them. Runs ordered later start as ever. */
export async function pauseAllRuns(context: ControlContext, reason: string | undefined): Promise<readonly RunReport[]> {
  const ids = await context.database.transaction(async (client) => {
    const asked: number[] = [];
    for (const { id } of await listUnfinishedRuns(client)) {
      const run = await lockRun(client, id);
      if (!mayMoveRun(run.state, 'pausing')) continue;
      await moveRunIfState(client, run, { to: 'pausing', cause: reason ?? 'all runs paused by an operator' });
      asked.push(id);
    }
    return asked;
  });
  return Promise.all(ids.map((id) => showRun(context, id)));
}

export async function cancelRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  return request(context, id, 'cancelling', reason ?? 'cancelled by an operator');
}

/** The supervisor moves runs too: the one that is asked is the run as it is, not as it was when it was looked up. */
async function request(
  context: ControlContext,
  id: number,
  to: Extract<RunState, 'pausing' | 'cancelling'>,
  reason: string,
): Promise<RunReport> {
  await context.database.transaction(async (client) =>
    moveRunIfState(client, await lockRun(client, id), { to, cause: reason }),
  );
  return showRun(context, id);
}

export async function resumeRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  await context.database.transaction(async (client) => {
    const run = await lockRun(client, id);
    const to = run.resumeState ?? 'pending';
    if (run.state !== 'paused' || !mayMoveRun(run.state, to)) {
      throw new KeyturnError('RUN_STATE_REFUSED', `run ${id} is ${run.state}; only a paused run resumes`, {
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

/** Takes effect within a slice of its workers and a tick of the supervisor. Throws LIMIT_INVALID, RUN_STATE_REFUSED. */
export async function limitRun(
  context: ControlContext,
  id: number,
  change: SteeringChange & { readonly reason: string | undefined },
): Promise<RunReport> {
  await context.database.transaction(async (client) => {
    const run = await lockRun(client, id);
    if (isFinished(run.state)) {
      throw new KeyturnError(
        'RUN_STATE_REFUSED',
        `run ${id} is ${run.state}, so there is nothing to limit; see: keyturn run show ${id}`,
        { run: id, state: run.state },
      );
    }
    await setSteering(client, run, { ...changeSteering(run, change), reason: change.reason });
  });
  return showRun(context, id);
}

/**
 * Orders a run that takes up what a finished one left: cells that failed, stayed stale or were never reached. It covers
 * the same rows under the same limits, toward the key that is active by now; what names that key already is passed over.
 */
export async function retryRun(context: ControlContext, id: number, reason: string | undefined): Promise<RunReport> {
  const run = await getRun(context.database, id);
  await refuseUnlessLeftBehind(context, run);
  const { hours } = run.limits;
  const target = run.targetId === undefined ? undefined : await getTarget(context.database, run.targetId);
  const ordered = await orderRun(context, {
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
    reason: reason ?? `retries run ${id}`,
  });
  return showRun(context, ordered.id);
}

async function refuseUnlessLeftBehind(context: ControlContext, run: Run): Promise<void> {
  const refuse = (why: string): never => {
    throw new KeyturnError('RUN_STATE_REFUSED', `run ${run.id} ${why}`, { run: run.id, state: run.state });
  };
  if (run.state === 'succeeded') refuse('succeeded and left nothing; see: keyturn status');
  if (!isFinished(run.state)) {
    refuse(
      `is ${run.state}, not finished; ${isWorking(run.state) ? 'watch it' : 'look at it'} with: keyturn run show ${run.id}`,
    );
  }
  const twin = await findUnfinishedTwin(context.database, run);
  if (twin !== undefined) refuse(`needs no retry: run ${twin.id} covers the same; see: keyturn run show ${twin.id}`);
}
