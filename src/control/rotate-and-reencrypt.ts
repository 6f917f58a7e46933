// How a reencryption begins, and `key rotate --reencrypt` as one verb. Both may be repeated after any failure: what an
// earlier attempt left (a staged key, an unfinished run) is gone on with, never begun a second time.
import { KeyturnError } from '../errors.js';
import { isFinished } from '../rotation/run.js';
import type { Queryable } from '../store/database.js';
import { findRunToward, type Run } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { judgeByDryRun, type DryRunSummary } from './dry-run.js';
import { chooseKeyring, isRotationDue, rotateKey, type Rotated, type RotateOptions } from './keys.js';
import {
  orderRunIf,
  showRun,
  type LimitsReport,
  type RunReport,
  type RunRequest,
  type SteeringChange,
} from './runs.js';
import { joinRun } from './steer-runs.js';

/** Who is to do the work: looked for before anything is changed, started once it is known that there is work. */
export interface RunnerSupply {
  require(): Promise<void>;
  start(): Promise<void>;
}

export interface BegunRun {
  /** `ordered`: a new run. `joined`: an unfinished one goes on. `done`: an earlier one has done it all already. */
  readonly begin: 'ordered' | 'joined' | 'done';
  readonly report: RunReport;
  /** What the last dry run over the same rows found; undefined where the order is none to compare with one. */
  readonly dryRun?: DryRunSummary | null;
  /** Limits of the joined run that an emergency took away. */
  readonly lifted?: LimitsReport | null;
}

/**
 * Orders a run, or joins the unfinished one that does the same, which then goes as this one was to: a second run over the
 * same rows would only get in its way. Throws RUN_STATE_REFUSED when that one is paused, DRY_RUN_FAILED when a dry run has
 * shown that cells would fail.
 */
export async function beginReencrypt(
  context: ControlContext,
  request: RunRequest,
  supply: RunnerSupply,
): Promise<BegunRun> {
  await supply.require();
  const isWhole = request.kind === 'reencrypt' && request.target === undefined && request.scope === undefined;
  return begin(context, {
    request,
    supply,
    findEarlier: async (database) => {
      const earlier = isWhole ? await findEarlierRun(database, request.keyring) : undefined;
      return earlier?.state === 'succeeded' ? undefined : earlier;
    },
  });
}

export interface RotateAndReencryptOptions extends RotateOptions {
  readonly supply: RunnerSupply;
  readonly acceptFailures: boolean;
}

export interface RotatedAndBegun extends BegunRun, Rotated {}

/**
 * Stage, activate, order the run. With `ifOlderThanMs`, repeating it, also at the same time, never makes a second rotation.
 * A dry run that forbids the run forbids the rotation as well.
 */
export async function rotateAndReencrypt(
  context: ControlContext,
  options: RotateAndReencryptOptions,
): Promise<RotatedAndBegun> {
  const keyring = await chooseKeyring(context.database, options.keyring);
  const isDue = await isRotationDue(context, keyring, options.ifOlderThanMs);
  const before = isDue ? undefined : await findEarlierRun(context.database, keyring.name);
  if (before?.state !== 'succeeded') await options.supply.require();
  const order = { ...options, keyring: keyring.name };
  if (before === undefined) await judgeByDryRun(context, wholeKeyring(order));
  const rotated = await rotateKey(context, options);
  const begun = await reencryptToActive(context, order);
  return { ...rotated, ...begun };
}

interface WholeOrder {
  readonly keyring: string;
  readonly reason: string | undefined;
  readonly steering?: SteeringChange;
  readonly acceptFailures?: boolean;
}

function wholeKeyring({ keyring, reason, steering, acceptFailures }: WholeOrder): RunRequest {
  return {
    kind: 'reencrypt',
    keyring,
    target: undefined,
    scope: undefined,
    deep: false,
    steering,
    acceptFailures: acceptFailures === true,
    reason,
  };
}

/** The second half of it: repeating it never orders a second run, not even after the first has ended well. */
export async function reencryptToActive(
  context: ControlContext,
  order: WholeOrder & { readonly supply: RunnerSupply },
): Promise<BegunRun> {
  return begin(context, {
    request: wholeKeyring(order),
    supply: order.supply,
    findEarlier: (database) => findEarlierRun(database, order.keyring),
  });
}

/**
 * The run toward the active key that is unfinished, or that verified everything after the key became active. A key that
 * was active, replaced and activated again has an older run, which knows nothing of the cells written between. One that is
 * being cancelled is as good as gone: who joined it would have ordered nothing. Throws RUN_STATE_REFUSED for one that is
 * paused, or about to be.
 */
async function findEarlierRun(database: Queryable, keyringName: string | undefined): Promise<Run | undefined> {
  const keyring = await chooseKeyring(database, keyringName);
  const active = keyring.keys.find((key) => key.state === 'active');
  const run = active && (await findRunToward(database, keyring.id, Number(active.id)));
  if (run === undefined || run.state === 'cancelling') return undefined;
  if (!isFinished(run.state)) return refusePaused(run);
  const isStillTrue =
    run.state === 'succeeded' &&
    run.verifiedAt !== undefined &&
    active?.activatedAt !== undefined &&
    run.verifiedAt > active.activatedAt;
  return isStillTrue ? run : undefined;
}

/** A person decides when it goes on. */
export function refusePaused(run: Run): Run {
  if (run.state !== 'paused' && run.state !== 'pausing') return run;
  throw new KeyturnError(
    'RUN_STATE_REFUSED',
    `run ${run.id} is ${run.state}${run.heldBackBy === undefined ? '' : ` (${run.heldBackBy})`}; look with: keyturn run show ${run.id}; go on with: keyturn run resume ${run.id}`,
    { run: run.id, state: run.state },
  );
}

interface Beginning {
  readonly request: RunRequest;
  readonly supply: RunnerSupply;
  /** The run that does the same, unfinished or `succeeded`. */
  readonly findEarlier: (database: Queryable) => Promise<Run | undefined>;
}

/** Between the look and the order or the joining another command may be quicker: then it looks again. */
async function begin(context: ControlContext, beginning: Beginning): Promise<BegunRun> {
  const supplied = { ...beginning, supply: onlyOnce(beginning.supply) };
  for (;;) {
    const earlier = await beginning.findEarlier(context.database);
    if (earlier?.state === 'succeeded') return { begin: 'done', report: await showRun(context, earlier.id) };
    const begun = earlier === undefined ? await order(context, supplied) : await join(context, supplied, earlier);
    if (begun !== undefined) return begun;
  }
}

function onlyOnce(supply: RunnerSupply): RunnerSupply {
  let started: Promise<void> | undefined;
  return {
    require: () => supply.require(),
    start: () => (started ??= supply.start()),
  };
}

/** Undefined when somebody has ordered the same meanwhile. */
async function order(
  context: ControlContext,
  { request, supply, findEarlier }: Beginning,
): Promise<BegunRun | undefined> {
  const dryRun = request.kind === 'reencrypt' ? await judgeByDryRun(context, request) : undefined;
  await supply.start();
  const id = await orderRunIf(context, request, async (client) => (await findEarlier(client)) === undefined);
  if (id === undefined) return undefined;
  const report = await showRun(context, id);
  return { begin: 'ordered', report, ...(dryRun === undefined ? {} : { dryRun }) };
}

/** Undefined when the run has ended, or is to end, meanwhile. */
async function join(
  context: ControlContext,
  { request, supply }: Beginning,
  earlier: Run,
): Promise<BegunRun | undefined> {
  await supply.start();
  const { steering, reason } = request;
  const lifted = await joinRun(context, earlier.id, { ...steering, reason });
  if (lifted === undefined) return undefined;
  return { begin: 'joined', report: await showRun(context, earlier.id), lifted };
}

/**
 * Throws what keeps an ended run from being a success: RUN_INCOMPLETE for cells that failed or are still stale,
 * RUN_STATE_REFUSED for one that stopped before its end.
 */
export function refuseUnlessComplete(
  report: RunReport,
  options: { readonly acceptFailures: boolean } = { acceptFailures: false },
): void {
  const { run_id: run, state } = report;
  const why = report.held_back_by === null ? '' : ` (${report.held_back_by})`;
  switch (state) {
    case 'succeeded':
      return;
    case 'completed_with_failures': {
      const failed = report.failures.reduce((sum, failure) => sum + failure.cells, 0);
      const isAccepted = options.acceptFailures && report.fields_stale === 0;
      if (isAccepted) return;
      const counts = [
        failed > 0 ? `${failed} failed` : '',
        report.fields_stale > 0 ? `${report.fields_stale} stale` : '',
      ].filter((part) => part !== '');
      const noun = failed + report.fields_stale === 1 ? 'cell' : 'cells';
      throw new KeyturnError(
        'RUN_INCOMPLETE',
        `run ${run} ended with ${counts.join(' and ')} ${noun}; see: keyturn run show ${run}`,
        { run, failed, stale: report.fields_stale },
      );
    }
    case 'failed':
      throw new KeyturnError('RUN_INCOMPLETE', `run ${run} failed${why}; see: keyturn run show ${run}`, { run, state });
    case 'paused':
      throw new KeyturnError('RUN_STATE_REFUSED', `run ${run} is paused${why}; go on with: keyturn run resume ${run}`, {
        run,
        state,
      });
    case 'cancelled':
      throw new KeyturnError(
        'RUN_STATE_REFUSED',
        `run ${run} was cancelled${why}; order another with: keyturn reencrypt`,
        { run, state },
      );
    default:
      // Whoever asks has seen the run end.
      throw new Error(`run ${run} is ${state}, which is not an end`);
  }
}
