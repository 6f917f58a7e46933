// The one write path: brings the cells of a batch to the active key, slice by slice.
//
// A slice is read (read-only transaction), decrypted and reencrypted (no transaction open), and then written in one
// transaction: lock the rows that are free, in key order; rewrite those whose envelope is still the one that was read
// (I3); quarantine what does not decrypt; list what lost a race as a follow-up batch; advance cursor, counts and lease
// (I4); commit. While one slice is written, the next ones are read and reencrypted.
//
// Who is right after a crash: PostgreSQL. Before the commit nothing happened and the next worker reads the same slice;
// after it the cursor stands behind the slice. A worker that lost its lease finds zero batch rows to advance and rolls
// back. A dry run takes the same way without lock and rewrite.
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { Keyring } from '../keys/keyring.js';
import { countRows, type CellOutcome } from '../rotation/outcome.js';
import {
  followUpDelayMs,
  initialSlicePace,
  maxFollowUps,
  paceAfterTimeout,
  paceAfterWrite,
  type SlicePace,
} from '../rotation/pace.js';
import { isWorking, type RunState } from '../rotation/run.js';
import type { RowKey, Target } from '../rotation/target.js';
import { advanceIfLeased, finishIfLeased, insertBatch, type CellList, type ClaimedBatch } from '../store/batches.js';
import type { CellRow } from '../store/cell-row.js';
import { createCellStore, sliceSettings, type CellStore } from '../store/cells.js';
import { sqlstateOf, type Queryable } from '../store/database.js';
import { quarantineCells, type QuarantinedCell } from '../store/quarantine.js';
import { getTarget } from '../store/registry.js';
import { Blocked, LeaseLost, releaseAfter, releaseToStop } from './batch-end.js';
import { rewriteRows } from './rewrite-rows.js';
import type { BatchEnd, BatchServices } from './services.js';
import { cellCodes, treatRows, type TreatedRows } from './treat-rows.js';

/** A worker stopped between two statements must keep neither application rows locked nor a snapshot open: the server ends it. */
export const endsWhenIdle = `SET LOCAL idle_in_transaction_session_timeout = '10s'`;
export const beginRead = `BEGIN READ ONLY; ${sliceSettings}; ${endsWhenIdle}; SET LOCAL statement_timeout = '30s'`;
const beginWrite = `BEGIN; ${sliceSettings}; ${endsWhenIdle}; SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '5s'; SET LOCAL synchronous_commit = off; SET LOCAL keyturn.active = '1'`;

const maxSliceBytes = 2_000_000;
/** Until the width of rows is known. */
const firstSliceRows = 50;
const maxTransientRetries = 5;

interface ReadSlice {
  readonly rows: readonly CellRow[];
  /** Columns to visit per row; undefined for all. */
  readonly visited: readonly (readonly boolean[])[] | undefined;
  readonly before: RowKey | undefined;
  readonly cursor: RowKey;
  readonly isLast: boolean;
  readonly readMs: number;
}

interface PreparedSlice extends ReadSlice {
  readonly treated: TreatedRows;
}

interface Visit {
  readonly services: BatchServices;
  readonly batch: ClaimedBatch;
  readonly target: Target;
  readonly store: CellStore;
  pace: SlicePace;
  /** From the bytes per row seen so far. */
  rowLimit: number;
  /** Rows per slice while a statement that data made fail is narrowed down to its row. */
  careful: number | undefined;
  /** Slices that are read and reencrypted ahead of the one being written, in key order. */
  ahead: Ahead[];
}

/** Each resolves to undefined behind the last slice. */
interface Ahead {
  readonly read: Promise<ReadSlice | undefined>;
  readonly prepared: Promise<PreparedSlice | undefined>;
}

/** The one to be written next, and the one that is read and reencrypted meanwhile; more would only hold memory. */
const slicesAhead = 2;

/** Runs a claimed batch until it is done, its lease is lost, or `signal` asks to stop (within one slice). */
export async function reencryptBatch(
  services: BatchServices,
  batch: ClaimedBatch,
  signal: AbortSignal,
): Promise<BatchEnd> {
  try {
    const target = await getTarget(services.database, batch.targetId);
    return await walk(
      {
        services,
        batch,
        target,
        store: createCellStore(target),
        pace: initialSlicePace,
        rowLimit: firstSliceRows,
        careful: undefined,
        ahead: [],
      },
      signal,
    );
  } catch (error) {
    // The table is gone and with it the batch's work.
    if (isKeyturnError(error, 'TARGET_NOT_FOUND')) return finish(services, batch);
    return releaseAfter(services, batch, error);
  }
}

async function finish(services: BatchServices, batch: ClaimedBatch): Promise<BatchEnd> {
  return (await finishIfLeased(services.database, batch)) ? { end: 'done' } : { end: 'lost' };
}

async function walk(visit: Visit, signal: AbortSignal): Promise<BatchEnd> {
  const { services, batch } = visit;
  let transientRetries = 0;
  startBehind(visit, batch.cursor);
  let slice = await takePrepared(visit);
  while (slice !== undefined) {
    if (signal.aborted) return releaseToStop(services, batch);
    let runState: RunState;
    try {
      runState = await write(visit, slice);
    } catch (error) {
      await makeReadyToRepeat(visit, slice, error, ++transientRetries);
      slice = await takePrepared(visit);
      continue;
    }
    transientRetries = 0;
    await services.reachPoint('batch.after_commit');
    if (slice.isLast) return { end: 'done' };
    if (!isWorking(runState)) return releaseToStop(services, batch);
    slice = await takePrepared(visit);
  }
  return finish(services, batch);
}

/** Drops what was prepared and begins anew behind `after`. */
function startBehind(visit: Visit, after: RowKey | undefined): void {
  visit.ahead = [sendAhead(visit, read(visit, after))];
}

function sendAhead(visit: Visit, reading: Promise<ReadSlice | undefined>): Ahead {
  const prepared = reading.then((slice) => (slice === undefined ? undefined : treat(visit, slice)));
  // Nobody may come for it; its failure then matters to nobody.
  prepared.catch(() => undefined);
  return { read: reading, prepared };
}

/** The next slice, once it is reencrypted; keeps the ones behind it coming. Undefined when nothing is left. */
async function takePrepared(visit: Visit): Promise<PreparedSlice | undefined> {
  while (visit.ahead.length < slicesAhead) {
    const last = visit.ahead.at(-1);
    if (last === undefined) break;
    visit.ahead.push(
      sendAhead(
        visit,
        last.read.then((slice) => (slice === undefined || slice.isLast ? undefined : read(visit, slice.cursor))),
      ),
    );
  }
  return visit.ahead.shift()?.prepared;
}

/** Lock and statement timeouts, deadlocks, serialisation failures: the slice is tried again, smaller. */
const transientStates = new Set(['57014', '55P03', '40P01', '40001']);
/** Statement classes that the data of one row can cause: too long, out of range, a constraint, a raising trigger. */
export const dataClasses = new Set(['22', '23', 'P0']);

/** After a failed write: the same slice again, smaller. Throws what trying again cannot mend. */
async function makeReadyToRepeat(visit: Visit, slice: PreparedSlice, error: unknown, retries: number): Promise<void> {
  const sqlstate = sqlstateOf(error) ?? '';
  if (transientStates.has(sqlstate) && retries <= maxTransientRetries) {
    visit.pace = paceAfterTimeout(visit.pace);
    await delay(50 + Math.random() * Math.min(2_000, 50 * 2 ** retries));
  } else if (dataClasses.has(sqlstate.slice(0, 2)) && slice.rows.length > 1) {
    visit.careful = Math.ceil(slice.rows.length / 2);
  } else {
    throw error;
  }
  startBehind(visit, slice.before);
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function treat(visit: Visit, slice: ReadSlice): Promise<PreparedSlice> {
  const { services, batch } = visit;
  await services.reachPoint('batch.after_read');
  const keyring = await keyringFor(services, batch);
  const treated = await treatRows({
    keyring,
    target: visit.target,
    rows: slice.rows,
    visited: slice.visited,
  });
  if (treated.blocked !== undefined) throw new Blocked(treated.blocked.cause, String(treated.blocked.keyId));
  if (treated.rows > 0)
    visit.rowLimit = Math.max(1, Math.floor(maxSliceBytes / Math.max(1, treated.bytes / treated.rows)));
  return { ...slice, treated };
}

async function read(visit: Visit, after: RowKey | undefined): Promise<ReadSlice | undefined> {
  const { services, batch } = visit;
  const limit = Math.min(visit.careful ?? visit.pace.rows, visit.rowLimit);
  const startedAt = performance.now();
  const found = await services.database.transaction(
    (client) =>
      batch.cells === undefined
        ? readRange(visit, client, after, limit)
        : readList(visit, client, batch.cells, after, limit),
    beginRead,
  );
  return found === undefined ? undefined : { ...found, before: after, readMs: performance.now() - startedAt };
}

type FoundSlice = Omit<ReadSlice, 'before' | 'readMs'>;

async function readRange(
  visit: Visit,
  client: Queryable,
  after: RowKey | undefined,
  limit: number,
): Promise<FoundSlice | undefined> {
  const { batch, store } = visit;
  const rows = await store.readRange(client, { after: after ?? batch.after, upto: batch.upto }, limit, batch.run.scope);
  const last = rows.at(-1);
  return last === undefined ? undefined : { rows, visited: undefined, cursor: last.key, isLast: rows.length < limit };
}

/** A list's cursor is the number of its rows settled; rows gone by now are not examined. */
async function readList(
  visit: Visit,
  client: Queryable,
  list: CellList,
  after: RowKey | undefined,
  limit: number,
): Promise<FoundSlice | undefined> {
  const settled = Number(after?.[0] ?? 0);
  const wanted = list.rows.slice(settled, settled + limit);
  if (wanted.length === 0) return undefined;
  const rows = await visit.store.readRows(
    client,
    wanted.map((row) => row.key),
  );
  const columnsOf = new Map(
    wanted.map((row) => [keyName(row.key), new Set(row.columns.map((position) => list.columns[position]))]),
  );
  return {
    rows,
    visited: rows.map((row) =>
      visit.target.columns.map((column) => columnsOf.get(keyName(row.key))?.has(column.id) === true),
    ),
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
  throw new KeyturnError(
    'KEYRING_STALE',
    `this worker holds generation ${keyring.generation} of keyring ${name}, the run needs ${batch.run.generation}`,
    { keyring: name },
  );
}

/** Writes one slice in one transaction and answers the run's state. Throws LeaseLost after rolling back. */
async function write(visit: Visit, slice: PreparedSlice): Promise<RunState> {
  const { services, batch } = visit;
  const startedAt = performance.now();
  try {
    return await services.database.transaction((client) => writeIn(client, visit, slice, startedAt), beginWrite);
  } catch (error) {
    if (slice.rows.length !== 1 || !dataClasses.has((sqlstateOf(error) ?? '').slice(0, 2))) throw error;
    // One row whose new envelope the database refuses: quarantined with the SQLSTATE, the rest of the batch goes on.
    visit.careful = undefined;
    const cause = `REFUSED_${sqlstateOf(error)}`;
    return await services.database.transaction(
      (client) =>
        settle(client, visit, slice, { unwritten: new Set(slice.treated.stale), refusedFor: cause, startedAt }),
      beginWrite,
    );
  } finally {
    const seconds = (performance.now() - startedAt) / 1000;
    if (batch.kind === 'reencrypt') visit.pace = paceAfterWrite(visit.pace, slice.rows.length, seconds);
    if (visit.careful !== undefined && slice.rows.length <= visit.careful)
      visit.careful = Math.min(visit.careful * 2, visit.pace.rows);
  }
}

async function writeIn(client: Queryable, visit: Visit, slice: PreparedSlice, startedAt: number): Promise<RunState> {
  const { services, batch, store } = visit;
  const unwritten =
    batch.kind === 'dry_run'
      ? new Set<number>()
      : await rewriteRows(client, store, slice.treated, () => services.reachPoint('batch.before_update'));
  return settle(client, visit, slice, { unwritten, refusedFor: undefined, startedAt });
}

interface Settlement {
  /** Rows whose new envelopes were not written. */
  readonly unwritten: ReadonlySet<number>;
  /** Why the database refused them; undefined where they lost a race. */
  readonly refusedFor: string | undefined;
  readonly startedAt: number;
}

/** Per row the outcomes of its cells; the array is reused, so read it before the next. */
function* outcomesOf(
  slice: PreparedSlice,
  unwritten: ReadonlySet<number>,
  unwrittenAs: 'conflicted' | 'failed',
): Generator<readonly CellOutcome[]> {
  const { codes, rows } = slice.treated;
  const width = rows === 0 ? 0 : codes.length / rows;
  const cells: CellOutcome[] = [];
  for (let row = 0; row < rows; row++) {
    cells.length = 0;
    for (let at = row * width; at < (row + 1) * width; at++) {
      const code = codes[at];
      if (code === cellCodes.reencrypted) cells.push(unwritten.has(row) ? unwrittenAs : 'reencrypted');
      else if (code === cellCodes.current) cells.push('current');
      else if (code === cellCodes.failed) cells.push('failed');
    }
    yield cells;
  }
}

/** Cells of rows that were not written, as row position and columns. */
function unwrittenCells(
  slice: PreparedSlice,
  unwritten: ReadonlySet<number>,
): readonly { readonly key: RowKey; readonly columns: readonly number[] }[] {
  const { codes, rows } = slice.treated;
  const width = rows === 0 ? 0 : codes.length / rows;
  return [...unwritten].map((row) => ({
    key: slice.rows[row]?.key ?? [],
    columns: Array.from({ length: width }, (_, column) => column).filter(
      (column) => codes[row * width + column] === cellCodes.reencrypted,
    ),
  }));
}

function failuresOf(target: Target, slice: PreparedSlice): QuarantinedCell[] {
  return slice.treated.failures.map(({ row, column, cause, keyId }) =>
    quarantined(target, slice.rows[row]?.key ?? [], column, cause, typeof keyId === 'number' ? keyId : undefined),
  );
}

function quarantined(
  target: Target,
  key: RowKey,
  column: number,
  cause: string,
  keyId: number | undefined,
): QuarantinedCell {
  return { columnId: target.columns[column]?.id ?? '', key, keyId, cause };
}

/** Quarantine, follow-up, ledger: the part of the transaction that tells what happened. */
async function settle(
  client: Queryable,
  visit: Visit,
  slice: PreparedSlice,
  settlement: Settlement,
): Promise<RunState> {
  const { services, batch, target } = visit;
  const failedFor = settlement.refusedFor ?? (batch.depth >= maxFollowUps ? 'CONFLICTED_TOO_OFTEN' : undefined);
  const unwritten = unwrittenCells(slice, settlement.unwritten);
  const given =
    failedFor === undefined
      ? []
      : unwritten.flatMap(({ key, columns }) =>
          columns.map((column) => quarantined(target, key, column, failedFor, undefined)),
        );
  await quarantineCells(client, { runId: batch.runId, id: batch.id, targetId: batch.targetId }, [
    ...failuresOf(target, slice),
    ...given,
  ]);
  if (failedFor === undefined && unwritten.length > 0) await insertFollowUp(client, visit, unwritten);
  await services.reachPoint('batch.before_commit');
  const advanced = await advanceIfLeased(client, {
    batch,
    memberId: services.memberId,
    cursor: slice.cursor,
    isLast: slice.isLast,
    outcome: countRows(outcomesOf(slice, settlement.unwritten, failedFor === undefined ? 'conflicted' : 'failed')),
    staleCells: 0,
    readMs: slice.readMs,
    cryptoMs: slice.treated.cryptoMs,
    writeMs: performance.now() - settlement.startedAt,
  });
  if (advanced === undefined) throw new LeaseLost();
  return advanced.runState;
}

/** Cells that lost a race are listed, and examined again there. */
async function insertFollowUp(client: Queryable, visit: Visit, rows: CellList['rows']): Promise<void> {
  const { batch, target } = visit;
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
