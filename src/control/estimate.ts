// What the next run would take, as numbers with what they rest on: before anything was tried, from a sample of each table;
// after a dry run, from all it has read. Reads only; needs no root key.
import { measureSample } from '../engine/measure-sample.js';
import type { Finding } from '../engine/preflight.js';
import { isKeyturnError } from '../errors.js';
import { restBeside } from '../rotation/beside-application.js';
import { estimateRun, overHours, type Estimate, type EstimateInput, type Range } from '../rotation/estimate.js';
import { noLimits, type RunLimits } from '../rotation/limits.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { createCellStore } from '../store/cells.js';
import { checkpointSeconds, findWriteCosts, listTried, readShape, type MeasuredCosts } from '../store/estimates.js';
import { getKeyring, getKeyringById } from '../store/keys.js';
import { listMembers } from '../store/members.js';
import { readPaceSettings } from '../store/pace-settings.js';
import { listTargets } from '../store/registry.js';
import { getRun, type Run } from '../store/runs.js';
import type { ControlContext } from './context.js';

export interface TargetEstimate {
  readonly target: string;
  readonly rows: number;
  readonly workers: number;
  readonly seconds_low: number;
  readonly seconds_high: number;
  readonly wal_bytes_low: number;
  readonly wal_bytes_high: number;
  /** The table's growth until vacuum has passed, at most. */
  readonly growth_bytes_high: number;
  /** In words, what the numbers rest on. */
  readonly basis: string;
}

const unmeasuredWrite =
  'no run has written this table yet, so writing is taken as 1 to 4 times reading and reencrypting it';

/**
 * Moving every row of every registered table, by the live workers, or by one. A table that cannot be read has none, and
 * there are none while doctor's findings say that the schema is not this version's.
 */
export async function estimateTargets(
  context: ControlContext,
  findings: readonly Finding[],
): Promise<readonly TargetEstimate[]> {
  const { database } = context;
  if (findings.some(({ check, level }) => check === 'schema' && level !== 'ok')) return [];
  const workers = await countWorkers(context);
  const estimates: TargetEstimate[] = [];
  for (const target of await listTargets(database)) {
    try {
      const costs = await costsOf(context, target);
      if (costs === undefined) continue;
      const rows = await createCellStore(target).estimateRows(database, undefined);
      const all = { rowsToVisit: rows, rowsToMove: rows, tableRows: rows, workers, limits: noLimits };
      estimates.push(reportOf(await estimateOf(context, target, { ...all, ...costs }), noLimits));
    } catch (error) {
      // What keeps it from being read is a finding of doctor's own.
      if (!isKeyturnError(error, 'DATABASE_ERROR')) throw error;
    }
  }
  return estimates;
}

/** What the run would take that a dry run stands for, under the same limits. */
export async function estimateAfterDryRun(context: ControlContext, runId: number): Promise<readonly TargetEstimate[]> {
  const run = await getRun(context.database, runId);
  return (await estimateTried(context, run, run.limits)).map((estimate) => reportOf(estimate, run.limits));
}

/** From the order to the end, all tables together. */
export async function estimateWhole(context: ControlContext, dryRun: Run, limits: RunLimits): Promise<Range> {
  const all = await estimateTried(context, dryRun, limits);
  const sum = (of: (range: Range) => number): number => all.reduce((total, one) => total + of(one.seconds), 0);
  const { low, high } = overHours({ low: sum(({ low }) => low), high: sum(({ high }) => high) }, limits.hours);
  return { low: rounded(low), high: rounded(high) };
}

/**
 * A dry run that found nothing to move stands for the next rotation, and so does every one from before the active key: each
 * row it has read moves then.
 */
async function estimateTried(
  context: ControlContext,
  dryRun: Run,
  limits: RunLimits,
): Promise<readonly EstimatedTarget[]> {
  const { database } = context;
  const workers = await countWorkers(context);
  const targets = await listTargets(database);
  const { keys } = await getKeyring(database, dryRun.keyringName);
  const tried = await listTried(database, dryRun.id);
  const movesAll =
    keys.find((key) => key.state === 'active')?.id !== dryRun.targetKeyId ||
    tried.every(({ rowsToMove }) => rowsToMove === 0);
  const estimates: EstimatedTarget[] = [];
  for (const { targetId, rowsToMove, costs: measured } of tried) {
    const target = targets.find((candidate) => candidate.id === targetId);
    if (target === undefined) continue;
    const written = await findWriteCosts(database, target.id);
    const basis = [
      `all ${measured.rows} rows that dry run ${dryRun.id} read`,
      ...(movesAll ? ['as if each moved to the next key'] : []),
      written === undefined ? unmeasuredWrite : writtenWords(written),
    ].join('; ');
    estimates.push(
      await estimateOf(context, target, {
        rowsToVisit: measured.rows,
        rowsToMove: movesAll ? measured.rows : rowsToMove,
        tableRows: Math.max(measured.rows, await createCellStore(target).estimateRows(database, undefined)),
        workers,
        limits,
        costs: { ...measured, cryptoMs: cryptoMsPerMove(measured, rowsToMove), writeMs: written?.writeMs },
        basis,
      }),
    );
  }
  return estimates;
}

/** Decrypting, encrypting, decrypting again to compare; a row that needs none of it is decrypted once by a dry run. */
const stepsOfMove = 3;

function cryptoMsPerMove({ rows, cryptoMs }: MeasuredCosts, rowsMoved: number): number {
  return (cryptoMs * rows) / (rowsMoved + (rows - rowsMoved) / stepsOfMove);
}

async function countWorkers(context: ControlContext): Promise<number> {
  const members = await listMembers(context.database);
  return Math.max(1, members.filter((member) => member.isLive && member.kind === 'worker').length);
}

interface Basis {
  readonly costs: MeasuredCosts;
  readonly basis: string;
}

async function costsOf(context: ControlContext, target: Target): Promise<Basis | undefined> {
  const written = await findWriteCosts(context.database, target.id);
  if (written !== undefined) return { costs: written, basis: writtenWords(written) };
  const { algorithm } = await getKeyringById(context.database, target.keyringId);
  const sample = await measureSample(context.database, target, algorithm);
  if (sample === undefined) return undefined;
  return {
    costs: sample,
    basis: `its first ${sample.rows} rows, read here, and values of their length reencrypted on this machine; ${unmeasuredWrite}`,
  };
}

function writtenWords(written: MeasuredCosts): string {
  return `what writing took when runs last moved ${written.rows} of its rows`;
}

interface EstimatedTarget extends Estimate {
  readonly target: string;
  readonly workers: number;
  readonly basis: string;
}

async function estimateOf(
  { database }: ControlContext,
  target: Target,
  given: Basis &
    Pick<EstimateInput, 'rowsToVisit' | 'rowsToMove' | 'workers' | 'limits'> & { readonly tableRows: number },
): Promise<EstimatedTarget> {
  const { tableRows, basis, ...input } = given;
  const { cpus } = await readPaceSettings(database);
  const estimate = estimateRun({
    ...input,
    rest: restBeside(undefined, { workers: input.workers, cpus, isEmergency: false })?.nice ?? 0,
    shape: await readShape(database, target.tableOid, tableRows),
    checkpointSeconds: await checkpointSeconds(database),
  });
  const workers = Math.min(given.workers, given.limits.workers ?? Infinity);
  return { ...estimate, target: targetTitle(target), workers, basis };
}

function reportOf(estimate: EstimatedTarget, { hours }: Pick<RunLimits, 'hours'>): TargetEstimate {
  const seconds = overHours(estimate.seconds, hours);
  return {
    target: estimate.target,
    rows: estimate.rows,
    workers: estimate.workers,
    seconds_low: rounded(seconds.low),
    seconds_high: rounded(seconds.high),
    wal_bytes_low: Math.round(estimate.walBytes.low),
    wal_bytes_high: Math.round(estimate.walBytes.high),
    growth_bytes_high: Math.round(estimate.growthBytes.high),
    basis: estimate.basis,
  };
}

function rounded(seconds: number): number {
  return Math.round(seconds * 10) / 10;
}
