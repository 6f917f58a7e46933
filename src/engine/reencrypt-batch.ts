// The one write path: brings the cells of a batch to the active key, slice by slice.
//
// A slice is read (read-only transaction), decrypted and reencrypted (no transaction open), and then written in one
// transaction: lock the rows that are free, in key order; rewrite those whose envelope is still the one that was read
// (I3); quarantine what does not decrypt; list what lost a race as a follow-up batch; advance cursor, counts and lease
// (I4); commit. While one slice is written the next is read and reencrypted.
//
// Who is right after a crash: PostgreSQL. Before the commit nothing happened and the next worker reads the same slice;
// after it the cursor stands behind the slice. A worker that lost its lease finds zero batch rows to advance and rolls
// back. A dry run takes the same way without lock and rewrite.
import { reencrypt, type Examined } from '../codec.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { Keyring } from '../keys/keyring.js';
import { countRows, type CellOutcome } from '../rotation/outcome.js';
import { followUpDelayMs, initialSlicePace, maxFollowUps, paceAfterTimeout, paceAfterWrite, type SlicePace } from '../rotation/pace.js';
import type { RunState } from '../rotation/run.js';
import type { RowKey, Target } from '../rotation/target.js';
import { advanceIfLeased, finishIfLeased, insertBatch, type CellList, type ClaimedBatch } from '../store/batches.js';
import { createCellStore, sliceSettings, type CellRow, type CellStore, type Replacement } from '../store/cells.js';
import { sqlstateOf, type Queryable } from '../store/database.js';
import { quarantineCells, type QuarantinedCell } from '../store/quarantine.js';
import { getTarget } from '../store/registry.js';
import { Blocked, LeaseLost, releaseAfter, releaseToStop } from './batch-end.js';
import { createCellBuilder, type CellBuilder } from './cells-of-target.js';
import type { BatchEnd, BatchServices } from './services.js';

export const beginRead = `BEGIN READ ONLY; ${sliceSettings}; SET LOCAL statement_timeout = '30s'`;
/** A worker stopped between two statements must not keep application rows locked: the server ends it. */
const beginWrite = `BEGIN; ${sliceSettings}; SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '5s'; SET LOCAL idle_in_transaction_session_timeout = '10s'; SET LOCAL synchronous_commit = off; SET LOCAL keyturn.active = '1'`;

const maxSliceBytes = 2_000_000;
/** Until the width of rows is known. */
const firstSliceRows = 50;
/** Event loop turns between so many cells, so that statements of the write under way are not kept waiting. */
const cellsPerTurn = 64;
const maxTransientRetries = 5;

/** A row after decrypting and reencrypting: per encrypted column what became of its cell, null where there is none. */
interface TreatedRow {
  readonly key: RowKey;
  readonly cells: readonly ({ readonly read: string | Buffer; readonly examined: Examined } | null)[];
}

interface PreparedSlice {
  readonly rows: readonly TreatedRow[];
  readonly before: RowKey | undefined;
  readonly cursor: RowKey;
  readonly isLast: boolean;
  readonly bytes: number;
  readonly readMs: number;
  readonly cryptoMs: number;
}

/** Runs a claimed batch until it is done, its lease is lost, or `signal` asks to stop (within one slice). */
export async function reencryptBatch(services: BatchServices, batch: ClaimedBatch, signal: AbortSignal): Promise<BatchEnd> {
  const visit = await startVisit(services, batch);
  if (visit === undefined) return (await finishIfLeased(services.database, batch)) ? { end: 'done' } : { end: 'lost' };
  try {
    return await walk(visit, signal);
  } catch (error) {
    return releaseAfter(services, batch, error);
  }
}

/** Undefined when the table is gone and with it the batch's work. */
async function startVisit(services: BatchServices, batch: ClaimedBatch): Promise<Visit | undefined> {
  try {
    const target = await getTarget(services.database, batch.targetId);
    const cluster = services.keyrings.current(batch.run.keyringName).cluster;
    return { services, batch, target, store: createCellStore(target), builder: createCellBuilder(target, cluster), pace: initialSlicePace, rowLimit: firstSliceRows, careful: undefined };
  } catch (error) {
    if (isKeyturnError(error, 'TARGET_NOT_FOUND')) return undefined;
    throw error;
  }
}

interface Visit {
  readonly services: BatchServices;
  readonly batch: ClaimedBatch;
  readonly target: Target;
  readonly store: CellStore;
  readonly builder: CellBuilder;
  pace: SlicePace;
  /** From the bytes per row seen so far. */
  rowLimit: number;
  /** Rows per slice while a statement that data made fail is narrowed down to its row. */
  careful: number | undefined;
}

async function walk(visit: Visit, signal: AbortSignal): Promise<BatchEnd> {
  const { services, batch } = visit;
  let transientRetries = 0;
  let prepared = await prepare(visit, batch.cursor);
  while (prepared !== undefined) {
    if (signal.aborted) {
      return releaseToStop(services, batch);
    }
    const slice: PreparedSlice = prepared;
    const next = slice.isLast ? Promise.resolve(undefined) : prepare(visit, slice.cursor);
    const [written, following] = await Promise.allSettled([write(visit, slice), next]);
    if (written.status === 'rejected') {
      prepared = await again(visit, slice, written.reason, ++transientRetries);
      continue;
    }
    transientRetries = 0;
    await services.reachPoint('batch.after_commit');
    if (slice.isLast) return { end: 'done' };
    if (written.value !== 'running' && written.value !== 'verifying') {
      return releaseToStop(services, batch);
    }
    if (following.status === 'rejected') throw following.reason;
    prepared = following.value;
  }
  return (await finishIfLeased(services.database, batch)) ? { end: 'done' } : { end: 'lost' };
}

/** Lock and statement timeouts, deadlocks, serialisation failures: the slice is tried again, smaller. */
const transientStates = new Set(['57014', '55P03', '40P01', '40001']);
/** Statement classes that the data of one row can cause: too long, out of range, a constraint, a raising trigger. */
const dataClasses = new Set(['22', '23', 'P0']);

/** After a failed write: the same slice again, smaller; throws what trying again cannot mend. */
async function again(visit: Visit, slice: PreparedSlice, error: unknown, retries: number): Promise<PreparedSlice | undefined> {
  const sqlstate = sqlstateOf(error) ?? '';
  if (transientStates.has(sqlstate) && retries <= maxTransientRetries) {
    visit.pace = paceAfterTimeout(visit.pace);
    await delay(50 + Math.random() * Math.min(2_000, 50 * 2 ** retries));
  } else if (dataClasses.has(sqlstate.slice(0, 2)) && slice.rows.length > 1) {
    visit.careful = Math.ceil(slice.rows.length / 2);
  } else {
    throw error;
  }
  return prepare(visit, slice.before);
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Reads the slice behind `after` and reencrypts it. Undefined when nothing is left. */
async function prepare(visit: Visit, after: RowKey | undefined): Promise<PreparedSlice | undefined> {
  const { services, batch } = visit;
  const limit = Math.min(visit.careful ?? visit.pace.rows, visit.rowLimit);
  const readFrom = performance.now();
  const read = await services.database.transaction((client) => (batch.cells === undefined ? readRange(visit, client, after, limit) : readList(visit, client, batch.cells, after, limit)), beginRead);
  const readMs = performance.now() - readFrom;
  if (read === undefined) return undefined;
  await services.reachPoint('batch.after_read');
  const keyring = await keyringFor(services, batch);
  const { rows, bytes, cryptoMs } = await treat(visit, keyring, read);
  if (read.rows.length > 0) visit.rowLimit = Math.max(1, Math.floor(maxSliceBytes / Math.max(1, bytes / read.rows.length)));
  return { rows, before: after, cursor: read.cursor, isLast: read.isLast, bytes, readMs, cryptoMs };
}

interface ReadSlice {
  readonly rows: readonly CellRow[];
  /** Columns to visit per row; undefined for all. */
  readonly masks: readonly (readonly boolean[])[] | undefined;
  readonly cursor: RowKey;
  readonly isLast: boolean;
}

async function readRange(visit: Visit, client: Queryable, after: RowKey | undefined, limit: number): Promise<ReadSlice | undefined> {
  const { batch, store } = visit;
  const rows = await store.readRange(client, { after: after ?? batch.after, upto: batch.upto }, limit, batch.run.scope);
  const last = rows.at(-1);
  return last === undefined ? undefined : { rows, masks: undefined, cursor: last.key, isLast: rows.length < limit };
}

/** A list's cursor is the number of its rows settled; rows gone by now are not examined. */
async function readList(visit: Visit, client: Queryable, list: CellList, after: RowKey | undefined, limit: number): Promise<ReadSlice | undefined> {
  const settled = Number(after?.[0] ?? 0);
  const wanted = list.rows.slice(settled, settled + limit);
  if (wanted.length === 0) return undefined;
  const rows = await visit.store.readRows(client, wanted.map((row) => row.key));
  const visited = new Map(wanted.map((row) => [keyName(row.key), new Set(row.columns.map((position) => list.columns[position]))]));
  return {
    rows,
    masks: rows.map((row) => visit.target.columns.map((column) => visited.get(keyName(row.key))?.has(column.id) === true)),
    cursor: [String(settled + wanted.length)],
    isLast: settled + wanted.length >= list.rows.length,
  };
}

function keyName(key: RowKey): string {
  return JSON.stringify(key);
}

/** A snapshot no older than the run's generation, and young enough to encrypt with. */
async function keyringFor(services: BatchServices, batch: ClaimedBatch): Promise<Keyring> {
  const name = batch.run.keyringName;
  if (services.keyrings.current(name).generation < batch.run.generation) await services.keyrings.refresh(name);
  const keyring = services.keyrings.forWriting(name);
  if (keyring.generation >= batch.run.generation) return keyring;
  throw new KeyturnError('KEYRING_STALE', `this worker holds generation ${keyring.generation} of keyring ${name}, the run needs ${batch.run.generation}`, { keyring: name });
}

async function treat(visit: Visit, keyring: Keyring, read: ReadSlice): Promise<{ rows: TreatedRow[]; bytes: number; cryptoMs: number }> {
  let bytes = 0;
  let cells = 0;
  let cryptoMs = 0;
  let turnFrom = performance.now();
  const rows: TreatedRow[] = [];
  for (const [at, row] of read.rows.entries()) {
    const mask = read.masks?.[at];
    const cellOf = visit.builder.cellsOf(row.key, row.scope);
    const treated: TreatedRow['cells'][number][] = [];
    for (const [column, stored] of row.values.entries()) {
      if (stored === null || mask?.[column] === false) {
        treated.push(null);
        continue;
      }
      bytes += stored.length;
      cells++;
      const examined = reencrypt(keyring, cellOf(column), stored);
      if (examined.outcome === 'blocked') throw new Blocked(examined.cause, String(examined.keyId));
      treated.push({ read: stored, examined });
    }
    rows.push({ key: row.key, cells: treated });
    if (cells >= cellsPerTurn) {
      cells = 0;
      cryptoMs += performance.now() - turnFrom;
      await new Promise(setImmediate);
      turnFrom = performance.now();
    }
  }
  return { rows, bytes, cryptoMs: cryptoMs + performance.now() - turnFrom };
}

/** Writes one slice in one transaction and answers the run's state. Throws LeaseLost after rolling back. */
async function write(visit: Visit, slice: PreparedSlice): Promise<RunState> {
  const { services, batch } = visit;
  const writeFrom = performance.now();
  try {
    return await services.database.transaction((client) => writeIn(client, visit, slice, writeFrom), beginWrite);
  } catch (error) {
    if (slice.rows.length !== 1 || !dataClasses.has((sqlstateOf(error) ?? '').slice(0, 2))) throw error;
    // One row whose new envelope the database refuses: quarantined with the SQLSTATE, the rest of the batch goes on.
    visit.careful = undefined;
    const refused = refusal(visit.target, slice, `REFUSED_${sqlstateOf(error)}`);
    return services.database.transaction((client) => settle(client, visit, slice, { ...refused, writeFrom }), beginWrite);
  } finally {
    const writeSeconds = (performance.now() - writeFrom) / 1000;
    if (batch.kind === 'reencrypt') visit.pace = paceAfterWrite(visit.pace, slice.rows.length, writeSeconds);
    if (visit.careful !== undefined && slice.rows.length <= visit.careful) visit.careful = Math.min(visit.careful * 2, visit.pace.rows);
  }
}

async function writeIn(client: Queryable, visit: Visit, slice: PreparedSlice, writeFrom: number): Promise<RunState> {
  const { services, batch, store } = visit;
  const rewritten = new Set<RowKey>();
  const stale = slice.rows.filter((row) => row.cells.some((cell) => cell?.examined.outcome === 'reencrypted'));
  if (batch.kind === 'dry_run') {
    for (const row of stale) rewritten.add(row.key);
  } else if (stale.length > 0) {
    const locked = await store.lockUnlessBusy(client, stale.map((row) => row.key));
    const free = stale.filter((_, at) => locked.has(at));
    await services.reachPoint('batch.before_update');
    const replaced = free.length === 0 ? new Set<number>() : await store.replaceIfUnchanged(client, free.map(replacementOf));
    for (const [at, row] of free.entries()) if (replaced.has(at)) rewritten.add(row.key);
  }
  const outcomes = slice.rows.map((row) => row.cells.map((cell) => (cell === null ? null : outcomeOf(cell.examined, rewritten.has(row.key)))));
  return settle(client, visit, slice, { outcomes, failures: failuresOf(visit.target, slice), writeFrom });
}

function replacementOf(row: TreatedRow): Replacement {
  return { key: row.key, cells: row.cells.map((cell) => (cell?.examined.outcome === 'reencrypted' ? { read: cell.read, replacement: cell.examined.replacement } : null)) };
}

function outcomeOf(examined: Examined, isRewritten: boolean): CellOutcome {
  if (examined.outcome === 'reencrypted') return isRewritten ? 'reencrypted' : 'conflicted';
  return examined.outcome === 'current' ? 'current' : 'failed';
}

interface Settlement {
  readonly outcomes: readonly (readonly (CellOutcome | null)[])[];
  readonly failures: readonly QuarantinedCell[];
  readonly writeFrom: number;
}

function failuresOf(target: Target, slice: PreparedSlice): QuarantinedCell[] {
  return slice.rows.flatMap((row) =>
    row.cells.flatMap((cell, column) => (cell?.examined.outcome === 'failed' ? [quarantined(target, row.key, column, cell.examined.cause, numberOf(cell.examined.keyId))] : [])),
  );
}

/** Every cell of the slice that is not current failed with `cause`. */
function refusal(target: Target, slice: PreparedSlice, cause: string): Omit<Settlement, 'writeFrom'> {
  return {
    outcomes: slice.rows.map((row) => row.cells.map((cell) => (cell === null ? null : cell.examined.outcome === 'current' ? 'current' : 'failed'))),
    failures: slice.rows.flatMap((row) =>
      row.cells.flatMap((cell, column) => (cell === null || cell.examined.outcome === 'current' ? [] : [quarantined(target, row.key, column, cause, undefined)])),
    ),
  };
}

function quarantined(target: Target, key: RowKey, column: number, cause: string, keyId: number | undefined): QuarantinedCell {
  return { columnId: target.columns[column]?.id ?? '', key, keyId, cause };
}

function numberOf(keyId: unknown): number | undefined {
  return typeof keyId === 'number' ? keyId : undefined;
}

/** Quarantine, follow-up, ledger: the part of the transaction that tells what happened. */
async function settle(client: Queryable, visit: Visit, slice: PreparedSlice, settlement: Settlement): Promise<RunState> {
  const { services, batch, target } = visit;
  const exhausted = batch.depth >= maxFollowUps;
  const outcomes = exhausted ? settlement.outcomes.map((row) => row.map((cell) => (cell === 'conflicted' ? 'failed' : cell))) : settlement.outcomes;
  const failures = [...settlement.failures];
  if (exhausted) failures.push(...conflictedCells(target, slice, settlement.outcomes).map(({ key, column }) => quarantined(target, key, column, 'CONFLICTED_TOO_OFTEN', undefined)));
  await quarantineCells(client, { runId: batch.runId, id: batch.id, targetId: batch.targetId }, failures);
  if (!exhausted) await insertFollowUp(client, visit, slice, outcomes);
  await services.reachPoint('batch.before_commit');
  const advanced = await advanceIfLeased(client, {
    batch,
    memberId: services.memberId,
    cursor: slice.cursor,
    isLast: slice.isLast,
    outcome: countRows(outcomes.map((row) => row.filter((cell) => cell !== null))),
    staleCells: 0,
    readMs: slice.readMs,
    cryptoMs: slice.cryptoMs,
    writeMs: performance.now() - settlement.writeFrom,
  });
  if (advanced === undefined) throw new LeaseLost();
  return advanced.runState;
}

function conflictedCells(target: Target, slice: PreparedSlice, outcomes: Settlement['outcomes']): { key: RowKey; column: number }[] {
  return slice.rows.flatMap((row, at) => target.columns.flatMap((_, column) => (outcomes[at]?.[column] === 'conflicted' ? [{ key: row.key, column }] : [])));
}

/** Cells that lost a race are listed, and examined again there. */
async function insertFollowUp(client: Queryable, visit: Visit, slice: PreparedSlice, outcomes: Settlement['outcomes']): Promise<void> {
  const { batch, target } = visit;
  const rows = slice.rows.flatMap((row, at) => {
    const columns = (outcomes[at] ?? []).flatMap((cell, column) => (cell === 'conflicted' ? [column] : []));
    return columns.length === 0 ? [] : [{ columns, key: row.key }];
  });
  if (rows.length === 0) return;
  await insertBatch(client, {
    runId: batch.runId,
    pass: batch.pass,
    targetId: batch.targetId,
    kind: batch.kind,
    cells: { columns: target.columns.map((column) => column.id), rows },
    follows: batch.id,
    depth: batch.depth + 1,
    delayMs: followUpDelayMs(batch.depth, Math.random()),
  });
}
