// Splits a run's targets into batches by walking the primary key: the next batch ends at the last of the next n keys,
// found by an index scan that starts behind the previous batch. No OFFSET, no arithmetic over ids, one key in memory.
// Planning is lazy: only about two windows of pending batches exist at a time.
import { batchRows } from '../rotation/pace.js';
import type { RunKind } from '../rotation/run.js';
import type { Target } from '../rotation/target.js';
import { insertBatch, recentThroughput } from '../store/batches.js';
import { createCellStore, sliceSettings } from '../store/cells.js';
import type { Database, Queryable } from '../store/database.js';
import { stillLeads, type Leadership } from '../store/leadership.js';
import { getTarget, listTargets } from '../store/registry.js';
import { advancePlanIfAt, insertTargetPass, listUnplanned, type Run, type TargetPass } from '../store/runs.js';
import { isKeyturnError } from '../errors.js';

/** Targets a run covers: its own, or all of its keyring. */
export async function targetsOfRun(
  database: Queryable,
  run: Pick<Run, 'keyringId' | 'targetId' | 'scope'>,
): Promise<readonly Target[]> {
  const targets = await listTargets(database, run.keyringId);
  return targets.filter(
    (target) =>
      (run.targetId === undefined || target.id === run.targetId) &&
      (run.scope === undefined || target.scope !== undefined),
  );
}

/**
 * Begins a pass: freezes the upper bound of every target. New rows behind it need no visit, since by now every live
 * member writes with the target key; the second scan looks at them all the same.
 */
export async function beginPass(client: Queryable, run: Run, pass: number): Promise<void> {
  for (const target of await targetsOfRun(client, run)) {
    const store = createCellStore(target);
    const bound = await store.highestKey(client);
    await insertTargetPass(client, run, pass, {
      id: target.id,
      bound,
      estimatedRows: await store.estimateRows(client, run.scope),
    });
  }
}

/** Plans up to `limit` further batches of the current pass. Returns how many; 0 with nothing left unplanned ends planning. */
export async function planBatches(
  database: Database,
  leadership: Leadership,
  run: Run,
  kind: RunKind,
  limit: number,
): Promise<number> {
  const rows = batchRows(await recentThroughput(database, run.id, kind));
  let planned = 0;
  for (const pass of await listUnplanned(database, run)) {
    let at: TargetPass | undefined = pass;
    while (at !== undefined && planned < limit) {
      at = await planNext(database, leadership, run, kind, at, rows);
      planned++;
    }
    if (planned >= limit) break;
  }
  return planned;
}

/** One batch and the planning cursor, in one transaction; undefined when this target is planned or another leader took over. */
async function planNext(
  database: Database,
  leadership: Leadership,
  run: Run,
  kind: RunKind,
  at: TargetPass,
  rows: number,
): Promise<TargetPass | undefined> {
  const target = await findTarget(database, at.targetId);
  return database.transaction(async (client) => {
    if (!(await stillLeads(client, leadership))) return undefined;
    const upto =
      target === undefined
        ? undefined
        : await createCellStore(target).lastKeyOfNext(client, { after: at.plannedTo, upto: at.bound }, rows, run.scope);
    const isLast = upto === undefined;
    if (!(await advancePlanIfAt(client, run, at, { plannedTo: upto, isPlanned: isLast }))) return undefined;
    if (isLast) return undefined;
    await insertBatch(client, {
      runId: run.id,
      pass: run.pass,
      targetId: at.targetId,
      kind,
      after: at.plannedTo,
      upto,
    });
    return { ...at, plannedTo: upto };
  }, `BEGIN; ${sliceSettings}`);
}

/** Undefined when the table was dropped meanwhile: nothing is left to plan. */
async function findTarget(database: Queryable, id: string): Promise<Target | undefined> {
  try {
    return await getTarget(database, id);
  } catch (error) {
    if (isKeyturnError(error, 'TARGET_NOT_FOUND')) return undefined;
    throw error;
  }
}
