// How a reencryption begins, and `key rotate --reencrypt` as one verb. Both may be repeated after any failure: what an
// earlier attempt left (a staged key, an unfinished run) is gone on with, never begun a second time.
import { KeyturnError } from '../errors.js';
import { isFinished } from '../rotation/run.js';
import type { Run } from '../store/runs.js';
import type { ControlContext } from './context.js';
import { readDryRun, refuseAfterFailedDryRun, type DryRunSummary } from './dry-run.js';
import { chooseKeyring, isRotationDue, rotateKey, type Rotated, type RotateOptions } from './keys.js';
import { findRunToResume, orderOrJoin, showRun, type RunReport, type RunRequest, type SteeringChange } from './runs.js';
import { limitRun } from './steer-runs.js';

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
  const earlier = isWhole ? await findEarlierRun(context, request.keyring) : undefined;
  const unfinished = earlier?.state === 'succeeded' ? undefined : earlier;
  if (request.kind !== 'reencrypt' || unfinished !== undefined)
    return begin(context, { request, earlier: unfinished, supply });
  const dryRun = await readDryRun(context, request);
  if (dryRun !== undefined && request.acceptFailures !== true && request.steering?.isEmergency !== true)
    refuseAfterFailedDryRun(dryRun);
  return { ...(await begin(context, { request, earlier: undefined, supply })), dryRun: dryRun ?? null };
}

export interface RotateAndReencryptOptions extends RotateOptions {
  readonly supply: RunnerSupply;
}

export interface RotatedAndBegun extends BegunRun, Rotated {}

/** Stage, activate, order the run. With `ifOlderThanMs`, repeating it, also at the same time, never makes a second rotation. */
export async function rotateAndReencrypt(
  context: ControlContext,
  options: RotateAndReencryptOptions,
): Promise<RotatedAndBegun> {
  const keyring = await chooseKeyring(context.database, options.keyring);
  const isDue = await isRotationDue(context, keyring, options.ifOlderThanMs);
  const before = isDue ? undefined : await findEarlierRun(context, keyring.name);
  if (before?.state !== 'succeeded') await options.supply.require();
  const rotated = await rotateKey(context, options);
  const begun = await reencryptToActive(context, { ...options, keyring: keyring.name });
  return { ...rotated, ...begun };
}

/** The second half of it: repeating it never orders a second run, not even after the first has ended well. */
export async function reencryptToActive(
  context: ControlContext,
  order: {
    readonly keyring: string;
    readonly reason: string | undefined;
    readonly supply: RunnerSupply;
    readonly steering?: SteeringChange;
  },
): Promise<BegunRun> {
  const request: RunRequest = {
    kind: 'reencrypt',
    keyring: order.keyring,
    target: undefined,
    scope: undefined,
    deep: false,
    steering: order.steering,
    reason: order.reason,
  };
  return begin(context, { request, earlier: await findEarlierRun(context, order.keyring), supply: order.supply });
}

/**
 * The run toward the active key that is unfinished, or that verified everything after the key became active. A key that
 * was active, replaced and activated again has an older run, which knows nothing of the cells written between.
 */
async function findEarlierRun(context: ControlContext, keyringName: string | undefined): Promise<Run | undefined> {
  const run = await findRunToResume(context, keyringName);
  if (run === undefined) return undefined;
  if (run.state === 'paused') {
    throw new KeyturnError(
      'RUN_STATE_REFUSED',
      `run ${run.id} is paused${run.heldBackBy === undefined ? '' : ` (${run.heldBackBy})`}; look with: keyturn run show ${run.id}; go on with: keyturn run resume ${run.id}`,
      { run: run.id, state: run.state },
    );
  }
  if (!isFinished(run.state)) return run;
  const keyring = await chooseKeyring(context.database, keyringName);
  const activatedAt = keyring.keys.find((key) => key.state === 'active')?.activatedAt;
  const isStillTrue = run.verifiedAt !== undefined && activatedAt !== undefined && run.verifiedAt > activatedAt;
  return isStillTrue ? run : undefined;
}

async function begin(
  context: ControlContext,
  work: { request: RunRequest; earlier: Run | undefined; supply: RunnerSupply },
): Promise<BegunRun> {
  const { earlier } = work;
  if (earlier?.state === 'succeeded') return { begin: 'done', report: await showRun(context, earlier.id) };
  await work.supply.start();
  const { id, isNew } = earlier === undefined ? await orderOrJoin(context, work.request) : { ...earlier, isNew: false };
  if (isNew) return { begin: 'ordered', report: await showRun(context, id) };
  const { steering, reason } = work.request;
  const isSteered = steering !== undefined && Object.values(steering).some((value) => value !== undefined);
  return {
    begin: 'joined',
    report: isSteered ? await limitRun(context, id, { ...steering, reason }) : await showRun(context, id),
  };
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
