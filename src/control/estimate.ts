// What the next run would take, as numbers with what they rest on: before anything was tried, from a sample of each table;
// after a dry run, from all it has read. Reads only; needs no root key.
import { measureSample } from '../engine/measure-sample.js';
import type { Finding } from '../engine/preflight.js';
import { isKeyturnError } from '../errors.js';
import { estimateRun, type Estimate } from '../rotation/estimate.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { createCellStore } from '../store/cells.js';
import { checkpointSeconds, findWriteCosts, listTried, readShape, type MeasuredCosts } from '../store/estimates.js';
import { getKeyringById } from '../store/keys.js';
import { listMembers } from '../store/members.js';
import { listTargets } from '../store/registry.js';
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
      estimates.push(await estimateOf(context, target, { rowsToMove: rows, rows, workers, ...costs }));
    } catch (error) {
      // What keeps it from being read is a finding of doctor's own.
      if (!isKeyturnError(error, 'DATABASE_ERROR')) throw error;
    }
  }
  return estimates;
}

/** What the run would take that a dry run stands for. */
export async function estimateAfterDryRun(context: ControlContext, runId: number): Promise<readonly TargetEstimate[]> {
  const { database } = context;
  const workers = await countWorkers(context);
  const targets = await listTargets(database);
  const estimates: TargetEstimate[] = [];
  for (const tried of await listTried(database, runId)) {
    const target = targets.find((candidate) => candidate.id === tried.targetId);
    if (target === undefined) continue;
    const written = await findWriteCosts(database, target.id);
    const basis = `all ${tried.costs.rows} rows that dry run ${runId} read; ${written === undefined ? unmeasuredWrite : writtenWords(written)}`;
    const costs = { ...tried.costs, writeMs: written?.writeMs };
    estimates.push(
      await estimateOf(context, target, {
        rowsToMove: tried.rowsToMove,
        rows: Math.max(tried.costs.rows, await createCellStore(target).estimateRows(database, undefined)),
        workers,
        costs,
        basis,
      }),
    );
  }
  return estimates;
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

async function estimateOf(
  { database }: ControlContext,
  target: Target,
  given: Basis & { readonly rowsToMove: number; readonly rows: number; readonly workers: number },
): Promise<TargetEstimate> {
  const estimate: Estimate = estimateRun({
    shape: await readShape(database, target.tableOid, given.rows),
    rowsToMove: given.rowsToMove,
    costs: given.costs,
    workers: given.workers,
    checkpointSeconds: await checkpointSeconds(database),
  });
  return {
    target: targetTitle(target),
    rows: estimate.rows,
    workers: given.workers,
    seconds_low: rounded(estimate.seconds.low),
    seconds_high: rounded(estimate.seconds.high),
    wal_bytes_low: Math.round(estimate.walBytes.low),
    wal_bytes_high: Math.round(estimate.walBytes.high),
    growth_bytes_high: Math.round(estimate.growthBytes.high),
    basis: given.basis,
  };
}

function rounded(seconds: number): number {
  return Math.round(seconds * 10) / 10;
}
