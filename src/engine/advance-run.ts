// One step of a run: from what its batches and members say now to its next state. Called every tick by the supervisor
// that leads; each step is one short transaction, so a supervisor killed anywhere leaves a run that the next one goes on
// with.
import { causeToPauseFor, mostBatchesToJudge, whyPaused } from '../rotation/breaker.js';
import { findLaggards } from '../rotation/convergence.js';
import { pauseOf, type HeldBack } from '../rotation/held-back.js';
import { dispatchWindow } from '../rotation/pace.js';
import { maxRounds, type RunKind, type RunState } from '../rotation/run.js';
import { isLockState, maxAttempts } from '../rotation/slice-failure.js';
import { paceReason } from '../rotation/standing.js';
import {
  cancelPending,
  countBatches,
  countPendingRanges,
  countRowsWaitedFor,
  latestFailures,
  recallDispatched,
} from '../store/batches.js';
import type { Database, Queryable } from '../store/database.js';
import { stillLeads, type Leadership } from '../store/leadership.js';
import { getKeyring } from '../store/keys.js';
import { listMembers } from '../store/members.js';
import { readPace } from '../store/pace.js';
import { listFailures } from '../store/quarantine.js';
import {
  listUnplanned,
  moveRunIfState,
  retargetRun,
  setHeldBack,
  sumRun,
  type Run,
  type RunMove,
} from '../store/runs.js';
import { beginPass, planBatches } from './plan-run.js';

export interface Supervision {
  readonly database: Database;
  readonly leadership: Leadership;
}

/**
 * `rest`: why the run gets no batches for now; its bookkeeping goes on. Answers what holds it back, where something does.
 */
export async function advanceRun(supervision: Supervision, run: Run, rest?: HeldBack): Promise<HeldBack | undefined> {
  switch (run.state) {
    case 'pending':
      return begin(supervision, run, rest);
    case 'running':
    case 'verifying':
      return proceed(supervision, run, rest);
    case 'pausing':
      await settle(supervision, run, 'paused');
      return pauseOf(run, run.heldBackBy);
    case 'cancelling':
      await settle(supervision, run, 'cancelled');
      return undefined;
    default:
      return pauseOf(run, run.heldBackBy);
  }
}

/** Nothing moves before every live member writes with the target key: only then is a frozen bound complete. */
async function begin(supervision: Supervision, run: Run, rest: HeldBack | undefined): Promise<HeldBack | undefined> {
  const { database } = supervision;
  if (await followActiveKey(supervision, run)) return undefined;
  const waiting = rest ?? (await findWhoToWaitFor(database, run));
  if (waiting !== undefined) {
    await setHeldBack(database, run, waiting.words);
    return waiting;
  }
  await leading(supervision, async (client) => {
    const pass = run.pass + 1;
    const isMoved = await moveRunIfState(client, run, { to: run.kind === 'verify' ? 'verifying' : 'running', pass });
    // Its batches were written with the order.
    if (isMoved && !run.onlyCells) await beginPass(client, run, pass);
  });
  return undefined;
}

/** A live member that does not write with the target key yet. */
async function findWhoToWaitFor(database: Queryable, run: Run): Promise<HeldBack | undefined> {
  if (run.kind !== 'reencrypt') return undefined;
  const [laggard] = findLaggards(await listMembers(database), {
    keyringId: run.keyringId,
    writesWithKeyId: run.targetKeyId,
  });
  return laggard && { reason: 'member', words: `waiting for ${laggard.member}, which ${laggard.why}` };
}

async function proceed(supervision: Supervision, run: Run, rest: HeldBack | undefined): Promise<HeldBack | undefined> {
  const { database, leadership } = supervision;
  if (await followActiveKey(supervision, run)) return undefined;
  if (await tripped(supervision, run)) return undefined;
  const kind: RunKind = run.state === 'verifying' ? 'verify' : run.kind;
  const workers = (await listMembers(database)).filter((member) => member.isLive && member.kind === 'worker').length;
  // The active key may have changed since `begin`: the scan, too, freezes a bound that all must write behind.
  const waiting =
    run.state === 'running' && (await isPassSettled(database, run)) ? await findWhoToWaitFor(database, run) : undefined;
  const heldBack = rest ?? waiting ?? (await findWhatSlows(database, run, workers));
  await setHeldBack(database, run, heldBack?.words);
  if (waiting !== undefined) return heldBack;
  if (rest === undefined) {
    const wanted = 2 * dispatchWindow(workers) - (await countPendingRanges(database, run.id, run.pass));
    if (wanted > 0) await planBatches(database, leadership, run, kind, wanted);
  } else {
    await leading(supervision, (client) => recallDispatched(client, run.id));
  }
  await leading(supervision, async (client) => {
    if (!(await isPassSettled(client, run))) return;
    const move = await moveAfterPass(client, run);
    if (await moveRunIfState(client, run, move)) {
      if (move.to === 'verifying' && move.pass !== undefined) await beginPass(client, run, move.pass);
    }
  });
  return heldBack;
}

async function findWhatSlows(database: Queryable, run: Run, workers: number): Promise<HeldBack | undefined> {
  if (workers === 0) return { reason: 'no_worker', words: 'no live worker; start one with: keyturn worker' };
  const words = paceReason(await readPace(database));
  return words === undefined ? findLocksWaitedFor(database, run) : { reason: 'pace', words };
}

/** The rows that are left and that the application keeps locked. */
async function findLocksWaitedFor(database: Queryable, run: Run): Promise<HeldBack | undefined> {
  const rows = await countRowsWaitedFor(database, run.id, run.pass);
  if (rows === undefined) return undefined;
  return {
    reason: 'locks',
    words: `waiting for the application, which keeps the last ${rows === 1 ? 'row' : `${rows} rows`} locked`,
  };
}

/** Everything is planned, and every batch is done. */
async function isPassSettled(database: Queryable, run: Run): Promise<boolean> {
  const left = await countBatches(database, run.id, run.pass);
  return left.pending + left.dispatched + left.running === 0 && (await listUnplanned(database, run)).length === 0;
}

async function moveAfterPass(client: Queryable, run: Run): Promise<RunMove> {
  if (run.state === 'running' && run.kind === 'reencrypt' && !run.onlyCells)
    return { to: 'verifying', pass: run.pass + 1 };
  const failures = await listFailures(client, run.id);
  const { staleCells } = await sumRun(client, run);
  // The repair batches of the next round were written by the scan, as batches of the next pass.
  if (staleCells > 0 && run.kind === 'reencrypt' && run.round < maxRounds)
    return { to: 'running', pass: run.pass + 1, round: run.round + 1, cause: `${staleCells} stale cells found` };
  const isClean = failures.length === 0 && (staleCells === 0 || run.kind === 'dry_run');
  return isClean ? { to: 'succeeded' } : { to: 'completed_with_failures', cause: describeRest(staleCells, failures) };
}

function describeRest(staleCells: number, failures: readonly { cause: string; cells: number }[]): string {
  const failed = failures.map(({ cause, cells }) => `${cells} × ${cause}`).join(', ');
  return [staleCells > 0 ? `${staleCells} stale cells` : '', failed].filter((part) => part !== '').join(', ');
}

/**
 * A reencrypt run follows the keyring to its newest key: before its second scan in place, since that scan will find what
 * was moved to the older key; during it by starting over, since what has been compared with the older key is void.
 */
async function followActiveKey(supervision: Supervision, run: Run): Promise<boolean> {
  const keyring = await getKeyring(supervision.database, run.keyringName);
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active === undefined || active.id === run.targetKeyId || typeof active.id !== 'number') return false;
  const keyId = active.id;
  return leading(supervision, async (client) => {
    const cause = `the active key changed to ${keyId}`;
    if (run.kind !== 'reencrypt' || (run.state === 'verifying' && run.round >= maxRounds)) {
      await moveRunIfState(client, run, { to: 'failed', cause: `${cause}; start it again` });
      return;
    }
    await retargetRun(client, run, { keyId, generation: keyring.generation });
    if (run.state === 'verifying') await startOver(client, run, cause);
  });
}

async function startOver(client: Queryable, run: Run, cause: string): Promise<void> {
  const pass = run.pass + 1;
  if (!(await moveRunIfState(client, run, { to: 'running', pass, round: run.round + 1, cause }))) return;
  await recallDispatched(client, run.id);
  await cancelPending(client, run.id);
  await beginPass(client, run, pass);
}

/** A run that fails whole batches with one cause, or cannot get a batch done, pauses and asks. */
async function tripped(supervision: Supervision, run: Run): Promise<boolean> {
  const { database } = supervision;
  const cause =
    causeToPauseFor(await latestFailures(database, run.id, run.pass, mostBatchesToJudge)) ??
    (await stuckCause(database, run));
  if (cause === undefined) return false;
  return leading(supervision, async (client) => {
    await moveRunIfState(client, run, { to: 'pausing', cause: whyPaused(cause, run.id) });
  });
}

/**
 * The cause of a batch that was handed back time after time; a retired key is enough at once. A batch that waits for locks
 * of the application waits on, however long it takes.
 */
async function stuckCause(database: Queryable, run: Run): Promise<string | undefined> {
  const { rows } = await database.query(
    `SELECT last_error FROM keyturn.batch WHERE run_id = $1 AND pass = $2 AND state = 'pending' AND last_error IS NOT NULL
       AND (attempts >= $3 OR (attempts > 0 AND last_error LIKE 'KEY_RETIRED %')) ORDER BY id`,
    [run.id, run.pass, maxAttempts],
  );
  return rows.map((row) => String(row[0])).find((cause) => !isLockState(cause.split(' ')[1] ?? ''));
}

/** Takes back what is only queued; when no worker has a batch of the run in hand the request is settled. */
async function settle(
  supervision: Supervision,
  run: Run,
  to: Extract<RunState, 'paused' | 'cancelled'>,
): Promise<void> {
  await leading(supervision, async (client) => {
    await recallDispatched(client, run.id);
    const { running } = await countBatches(client, run.id, run.pass);
    if (running > 0) return;
    if (to === 'cancelled') await cancelPending(client, run.id);
    await moveRunIfState(client, run, { to, cause: run.heldBackBy });
  });
}

/** Runs `work` in a transaction that holds the leader's row; false when another supervisor leads by now. */
async function leading(supervision: Supervision, work: (client: Queryable) => Promise<void>): Promise<boolean> {
  return supervision.database.transaction(async (client) => {
    if (!(await stillLeads(client, supervision.leadership))) return false;
    await work(client);
    return true;
  });
}
