// The operator's verbs on cells in quarantine: list them, try them again, declare them dealt with. They need the database
// alone. Primary keys are answered, so that the rows can be found, and go nowhere else: no log, record or queue holds them.
import { KeyturnError } from '../errors.js';
import { writeAudit } from '../store/audit.js';
import {
  declareResolved,
  groupQuarantined,
  insertRetryBatches,
  listQuarantined,
  type FailureGroup,
  type QuarantineSelection,
} from '../store/quarantine.js';
import { getRun, insertRun } from '../store/runs.js';
import type { ControlContext } from './context.js';
import type { BegunRun, RunnerSupply } from './rotate-and-reencrypt.js';
import { findTarget, prepareOrder, showRun } from './runs.js';

/** Which unresolved cells; what is undefined fits all. */
export interface QuarantineFilter {
  readonly run: number | undefined;
  /** `schema.table`. */
  readonly target: string | undefined;
  readonly cause: string | undefined;
}

export interface QuarantineListing {
  readonly cells: number;
  readonly failures: readonly { target: string; field: string; cause: string; key_id: number | null; cells: number }[];
  /** The latest of them, each with its primary key by column name. */
  readonly rows: readonly {
    readonly run_id: number;
    readonly target: string;
    readonly field: string;
    readonly primary_key: Readonly<Record<string, string>>;
    readonly cause: string;
    readonly key_id: number | null;
    readonly seen_at: string;
  }[];
}

export async function listQuarantine(
  context: ControlContext,
  filter: QuarantineFilter,
  limit: number,
): Promise<QuarantineListing> {
  const { database } = context;
  const selection = await select(context, filter);
  const groups = await groupQuarantined(database, selection);
  const entries = await listQuarantined(database, selection, limit);
  return {
    cells: cellsOf(groups),
    failures: groups.map(({ target, column, cause, keyId, cells }) => ({
      target,
      field: column,
      cause,
      key_id: keyId ?? null,
      cells,
    })),
    rows: entries.map((entry) => ({
      run_id: entry.runId,
      target: entry.target,
      field: entry.column,
      primary_key: Object.fromEntries(entry.keyNames.map((name, part) => [name, entry.key[part] ?? ''])),
      cause: entry.cause,
      key_id: entry.keyId ?? null,
      seen_at: entry.seenAt.toISOString(),
    })),
  };
}

/**
 * Orders a run over exactly the selected cells. Those that succeed are resolved by the write that settles them. Throws
 * QUARANTINE_EMPTY where nothing fits.
 */
export async function beginRetry(
  context: ControlContext,
  filter: QuarantineFilter & { readonly reason: string | undefined },
  supply: RunnerSupply,
): Promise<BegunRun> {
  const { database } = context;
  const selection = await select(context, filter);
  const groups = await groupQuarantined(database, selection);
  requireSome(groups);
  const targets = [...new Map(groups.map((group) => [group.targetId, group.target]))];
  const keyrings = [...new Set(groups.map((group) => group.keyringName))];
  const [keyring] = keyrings;
  if (keyrings.length > 1)
    throw new KeyturnError(
      'USAGE',
      `the cells belong to keyrings ${keyrings.join(' and ')}, and a run moves those of one; choose with --target, one of: ${targets.map(([, title]) => title).join(', ')}`,
    );
  await supply.require();
  const order = await prepareOrder(context, {
    kind: 'reencrypt',
    keyring,
    target: targets.length === 1 ? targets[0]?.[1] : undefined,
    scope: undefined,
    deep: false,
    reason: filter.reason,
  });
  await supply.start();
  const run = await database.transaction(async (client) => {
    const id = await insertRun(client, { ...order, onlyCells: true });
    // A run that begins begins its first pass.
    await insertRetryBatches(client, { id, pass: 1 }, selection);
    return id;
  });
  return { begin: 'ordered', report: await showRun(context, run) };
}

/**
 * Declares the selected cells dealt with. It changes nothing about them: a key that one of them still names does not retire,
 * since that is proved by a scan, and the next run that visits a cell which still fails lists it again.
 */
export async function resolveQuarantined(
  context: ControlContext,
  filter: QuarantineFilter & { readonly reason: string },
): Promise<{ readonly cells: number }> {
  if (filter.run === undefined && filter.target === undefined && filter.cause === undefined)
    throw new KeyturnError(
      'USAGE',
      'say which cells are dealt with: --run, --target or --cause; see: keyturn quarantine list',
    );
  const selection = await select(context, filter);
  const cells = await context.database.transaction(async (client) => {
    const resolved = await declareResolved(client, selection);
    if (resolved === 0) return 0;
    await writeAudit(client, {
      action: 'quarantine.resolve',
      object: filter.run === undefined ? 'quarantine' : `run ${filter.run}`,
      reason: filter.reason,
      after: { cells: resolved, target: filter.target ?? 'any', cause: filter.cause ?? 'any' },
    });
    return resolved;
  });
  if (cells === 0) throw nothingFits();
  return { cells };
}

async function select(context: ControlContext, filter: QuarantineFilter): Promise<QuarantineSelection> {
  const run = filter.run === undefined ? undefined : await getRun(context.database, filter.run);
  const target = filter.target === undefined ? undefined : await findTarget(context, filter.target);
  return { runId: run?.id, targetId: target?.id, cause: filter.cause };
}

function cellsOf(groups: readonly FailureGroup[]): number {
  return groups.reduce((sum, group) => sum + group.cells, 0);
}

function requireSome(groups: readonly FailureGroup[]): void {
  if (groups.length === 0) throw nothingFits();
}

function nothingFits(): KeyturnError {
  return new KeyturnError('QUARANTINE_EMPTY', 'no unresolved cell fits; see: keyturn quarantine list');
}
