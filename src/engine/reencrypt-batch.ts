// The one write path: brings the cells of a batch to the active key, slice by slice.
//
// A slice is read (read-only transaction), decrypted and reencrypted (no transaction open), and then written in one
// transaction: lock the rows that are free, in key order; rewrite those whose envelope is still the one that was read
// (I3); quarantine what does not decrypt; list what lost a race as a follow-up batch; advance cursor, counts and lease
// (I4); commit. While one slice is written, the next ones are read and reencrypted.
//
// Who is right after a crash: PostgreSQL. Before the commit nothing happened and the next worker reads the same slice;
// after it the cursor stands behind the slice. A worker that lost its lease finds zero batch rows to advance and rolls
// back. A dry run takes the same way without lock and rewrite, and decrypts what names the active key already as well: the
// next rotation will have to. What a slice that fails asks for is decided in
// rotation/slice-failure.ts; split-batch.ts takes a batch apart around rows that cannot be moved.
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { Keyring } from '../keys/keyring.js';
import { countRows, type CellOutcome } from '../rotation/outcome.js';
import { judgeSlice, quarantineCause, type SliceRemedy } from '../rotation/slice-failure.js';
import {
  followUpDelayMs,
  initialSlicePace,
  maxFollowUps,
  paceAfterTimeout,
  paceAfterWrite,
  type SlicePace,
} from '../rotation/pace.js';
import { exceedsShare, mayGoOn, mostSliceRows, niceOf, type Standing } from '../rotation/standing.js';
import type { RowKey, Target } from '../rotation/target.js';
import { advanceIfLeased, finishIfLeased, insertBatch, type CellList, type ClaimedBatch } from '../store/batches.js';
import type { CellRow } from '../store/cell-row.js';
import { createCellStore, sliceSettings, type CellStore } from '../store/cells.js';
import { sqlstateOf, type Queryable } from '../store/database.js';
import { hasUnresolved, quarantineCells, type QuarantinedCell } from '../store/quarantine.js';
import { getTarget } from '../store/registry.js';
import { Blocked, LeaseLost, releaseAfter, releaseToStop } from './batch-end.js';
import { rest } from './rest.js';
import { resolveSettled } from './resolve-settled.js';
import { allWritten, rewriteRows, type Unwritten } from './rewrite-rows.js';
import type { BatchEnd, BatchServices, SliceReport } from './services.js';
import { splitBatch } from './split-batch.js';
import { cellCodes, treatRows, type TreatedRows } from './treat-rows.js';

/** A worker stopped between two statements must keep neither application rows locked nor a snapshot open: the server ends it. */
export const endsWhenIdle = `SET LOCAL idle_in_transaction_session_timeout = '10s'`;
/**
 * One snapshot, so that statements about a slice speak of the same rows, whatever the application deletes and inserts
 * between them. Whatever a statement waits for, it ends while the batch is still leased, so that its cause can be told.
 */
export const beginRead = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; ${sliceSettings}; ${endsWhenIdle}; SET LOCAL lock_timeout = '2s'; SET LOCAL statement_timeout = '10s'`;
const beginWrite = (timeoutMs: number): string =>
  `BEGIN; ${sliceSettings}; ${endsWhenIdle}; SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = ${timeoutMs}; SET LOCAL synchronous_commit = off; SET LOCAL keyturn.active = '1'`;
const writeTimeoutMs = 5_000;

const maxSliceBytes = 2_000_000;
/** Until the width of rows is known. */
const firstSliceRows = 50;

interface ReadSlice {
  readonly rows: readonly CellRow[];
  /** Columns to visit per row; undefined for all. */
  readonly visited: readonly (readonly boolean[])[] | undefined;
  /** Rows that were listed and are no more. */
  readonly gone: readonly RowKey[];
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
  /** Cells of the target were in quarantine when the visit began, so that some may be settled by it. */
  readonly mayResolve: boolean;
  /** Behind the last slice that is settled. */
  cursor: RowKey | undefined;
  /** How often the slice behind the cursor was tried. */
  tries: number;
  pace: SlicePace;
  /** From the bytes per row seen so far. */
  rowLimit: number;
  /** What the ledger said last. */
  standing: Standing;
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
        mayResolve: batch.kind === 'reencrypt' && (await hasUnresolved(services.database, target.id)),
        cursor: batch.cursor,
        tries: 0,
        pace: initialSlicePace,
        rowLimit: firstSliceRows,
        standing: batch.standing,
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
  let restedAtMs = performance.now();
  startBehind(visit, visit.cursor);
  for (;;) {
    let slice: PreparedSlice | undefined;
    let written: Written;
    visit.tries++;
    try {
      slice = await takeNext(visit);
      if (slice === undefined) return await finish(services, batch);
      if (signal.aborted) return await releaseToStop(services, batch);
      written = await write(visit, slice);
    } catch (error) {
      const ended = await recover(visit, slice?.rows.length ?? sliceLimit(visit), error);
      if (ended !== undefined) return ended;
      startBehind(visit, visit.cursor);
      continue;
    }
    visit.cursor = slice.cursor;
    visit.tries = 0;
    visit.standing = written.standing;
    services.report?.(written.report);
    await services.reachPoint('batch.after_commit');
    if (!slice.isLast && !mayGoOn(visit.standing)) return releaseToStop(services, batch);
    await rest(visit.standing, { rows: slice.rows.length, workMs: performance.now() - restedAtMs }, signal);
    restedAtMs = performance.now();
    if (slice.isLast) return { end: 'done' };
  }
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

/**
 * The next slice, once it is reencrypted; keeps the ones behind it coming, unless the fleet gives way: then one thing is done
 * at a time, and the other processors are the application's. Undefined when nothing is left.
 */
async function takePrepared(visit: Visit): Promise<PreparedSlice | undefined> {
  if (visit.ahead.length === 0) startBehind(visit, visit.cursor);
  while (visit.ahead.length < slicesAhead && niceOf(visit.standing) === 0) {
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

/** The next slice; one that was prepared before the run was limited to fewer rows is read anew, smaller. */
async function takeNext(visit: Visit): Promise<PreparedSlice | undefined> {
  const prepared = await takePrepared(visit);
  if (prepared === undefined || !exceedsShare(visit.standing, prepared.rows.length)) return prepared;
  startBehind(visit, visit.cursor);
  return takePrepared(visit);
}

/**
 * After a slice of about `rows` rows failed: undefined where the same rows are to be tried again, else how the visit
 * ended. Throws what is not about these rows.
 */
async function recover(visit: Visit, rows: number, error: unknown): Promise<BatchEnd | undefined> {
  switch (remedyFor(visit, rows, error)) {
    case 'repeat':
      visit.pace = paceAfterTimeout(visit.pace);
      await delay(50 + Math.random() * Math.min(2_000, 50 * 2 ** visit.tries));
      return undefined;
    case 'narrow':
      visit.careful = Math.ceil(rows / 2);
      return undefined;
    case 'split':
    case 'quarantine':
      return splitBehind(visit, rows, error);
    case 'hand back':
      throw error;
  }
}

function remedyFor(visit: Visit, rows: number, error: unknown): SliceRemedy {
  return judgeSlice({ sqlstate: sqlstateOf(error), rows, tries: visit.tries, attempts: visit.batch.attempts });
}

async function splitBehind(visit: Visit, rows: number, error: unknown): Promise<BatchEnd | undefined> {
  if (!isKeyturnError(error)) throw error;
  const { services, batch, target, store } = visit;
  const split = await splitBatch({ services, batch, target, store }, visit.cursor, rows, error);
  if ('end' in split) return split;
  visit.cursor = split.passed;
  visit.tries = 0;
  return undefined;
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
    checksCurrent: batch.kind === 'dry_run',
  });
  if (treated.blocked !== undefined) throw new Blocked(treated.blocked.cause, String(treated.blocked.keyId));
  if (treated.rows > 0)
    visit.rowLimit = Math.max(1, Math.floor(maxSliceBytes / Math.max(1, treated.bytes / treated.rows)));
  return { ...slice, treated };
}

function sliceLimit(visit: Visit): number {
  return Math.min(visit.careful ?? visit.pace.rows, visit.rowLimit, mostSliceRows(visit.standing));
}

async function read(visit: Visit, after: RowKey | undefined): Promise<ReadSlice | undefined> {
  const { services, batch } = visit;
  const limit = sliceLimit(visit);
  const startedAt = performance.now();
  const found = await services.database.transaction(
    (client) =>
      batch.cells === undefined
        ? readRange(visit, client, after, limit)
        : readList(visit, client, batch.cells, after, limit),
    beginRead,
  );
  return found === undefined ? undefined : { ...found, readMs: performance.now() - startedAt };
}

type FoundSlice = Omit<ReadSlice, 'readMs'>;

async function readRange(
  visit: Visit,
  client: Queryable,
  after: RowKey | undefined,
  limit: number,
): Promise<FoundSlice | undefined> {
  const { batch, store } = visit;
  const rows = await store.readRange(client, { after: after ?? batch.after, upto: batch.upto }, limit, batch.run.scope);
  const last = rows.at(-1);
  return last === undefined
    ? undefined
    : { rows, visited: undefined, gone: [], cursor: last.key, isLast: rows.length < limit };
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
  const found = new Set(rows.map((row) => keyName(row.key)));
  return {
    rows,
    visited: rows.map((row) =>
      visit.target.columns.map((column) => columnsOf.get(keyName(row.key))?.has(column.id) === true),
    ),
    gone: wanted.map((row) => row.key).filter((key) => !found.has(keyName(key))),
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

interface Written {
  readonly standing: Standing;
  readonly report: SliceReport;
}

/** Writes one slice in one transaction and answers how things stand. Throws LeaseLost after rolling back. */
async function write(visit: Visit, slice: PreparedSlice): Promise<Written> {
  const { services, batch } = visit;
  const begin = beginWrite(services.writeTimeoutMs ?? writeTimeoutMs);
  const startedAt = performance.now();
  try {
    return await services.database.transaction((client) => writeIn(client, visit, slice, startedAt), begin);
  } catch (error) {
    if (slice.rows.length !== 1 || remedyFor(visit, 1, error) !== 'quarantine') throw error;
    // One row whose new envelope the database refuses: quarantined with the cause, the rest of the batch goes on.
    visit.careful = undefined;
    const cause = quarantineCause(sqlstateOf(error));
    return await services.database.transaction(
      (client) =>
        settle(client, visit, slice, {
          unwritten: { ...allWritten, rows: new Set(slice.treated.stale) },
          refusedFor: cause,
          startedAt,
        }),
      begin,
    );
  } finally {
    const seconds = (performance.now() - startedAt) / 1000;
    if (batch.kind === 'reencrypt')
      visit.pace = paceAfterWrite(
        visit.pace,
        { rows: slice.rows.length, writeSeconds: seconds },
        { isEmergency: batch.run.isEmergency, nice: niceOf(visit.standing) },
      );
    if (visit.careful !== undefined && slice.rows.length <= visit.careful)
      visit.careful = Math.min(visit.careful * 2, visit.pace.rows);
  }
}

async function writeIn(client: Queryable, visit: Visit, slice: PreparedSlice, startedAt: number): Promise<Written> {
  const { services, batch, store } = visit;
  const unwritten =
    batch.kind === 'dry_run'
      ? allWritten
      : await rewriteRows(client, store, slice.treated, () => services.reachPoint('batch.before_update'));
  return settle(client, visit, slice, { unwritten, refusedFor: undefined, startedAt });
}

interface Settlement {
  readonly unwritten: Unwritten;
  /** Why the database refused them; undefined where they lost a race or were locked. */
  readonly refusedFor: string | undefined;
  readonly startedAt: number;
}

/** Per row the outcomes of its cells; `failed` are unwritten rows that are given up. The array is reused, so read it before the next. */
function* outcomesOf(
  slice: PreparedSlice,
  unwritten: ReadonlySet<number>,
  failed: ReadonlySet<number>,
): Generator<readonly CellOutcome[]> {
  const { codes, rows } = slice.treated;
  const width = rows === 0 ? 0 : codes.length / rows;
  const cells: CellOutcome[] = [];
  for (let row = 0; row < rows; row++) {
    cells.length = 0;
    for (let at = row * width; at < (row + 1) * width; at++) {
      const code = codes[at];
      if (code === cellCodes.reencrypted)
        cells.push(failed.has(row) ? 'failed' : unwritten.has(row) ? 'conflicted' : 'reencrypted');
      else if (code === cellCodes.current) cells.push('current');
      else if (code === cellCodes.failed) cells.push('failed');
    }
    yield cells;
  }
}

/** Cells of rows that were not written. */
function unwrittenCells(slice: PreparedSlice, unwritten: Iterable<number>): CellList['rows'] {
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
async function settle(client: Queryable, visit: Visit, slice: PreparedSlice, settlement: Settlement): Promise<Written> {
  const { services, batch, target } = visit;
  const { rows, busy } = settlement.unwritten;
  const lost = new Set([...rows].filter((row) => !busy.has(row)));
  const failedFor = settlement.refusedFor ?? (batch.depth >= maxFollowUps ? 'CONFLICTED_TOO_OFTEN' : undefined);
  const given =
    failedFor === undefined
      ? []
      : unwrittenCells(slice, lost).flatMap(({ key, columns }) =>
          columns.map((column) => quarantined(target, key, column, failedFor, undefined)),
        );
  await quarantineCells(client, { runId: batch.runId, id: batch.id, targetId: batch.targetId }, [
    ...failuresOf(target, slice),
    ...given,
  ]);
  if (visit.mayResolve) await resolveSettled(client, target, slice, rows);
  if (failedFor === undefined) await insertFollowUp(client, visit, unwrittenCells(slice, lost), { lost: 1, waited: 0 });
  await insertFollowUp(client, visit, unwrittenCells(slice, busy), { lost: 0, waited: 1 });
  await services.reachPoint('batch.before_commit');
  const entry = {
    outcome: countRows(outcomesOf(slice, rows, failedFor === undefined ? new Set() : lost)),
    readMs: slice.readMs,
    cryptoMs: slice.treated.cryptoMs,
    writeMs: performance.now() - settlement.startedAt,
  };
  const advanced = await advanceIfLeased(client, {
    ...entry,
    batch,
    memberId: services.memberId,
    cursor: slice.cursor,
    isLast: slice.isLast,
    staleCells: 0,
  });
  if (advanced === undefined) throw new LeaseLost();
  return { standing: advanced, report: { ...entry, kind: batch.kind, bytes: slice.treated.bytes } };
}

/** Cells that lost a race, or whose row was locked, are listed and examined again there. Waiting for locks has no limit. */
async function insertFollowUp(
  client: Queryable,
  visit: Visit,
  rows: CellList['rows'],
  since: { readonly lost: number; readonly waited: number },
): Promise<void> {
  if (rows.length === 0) return;
  const { batch, target } = visit;
  await insertBatch(client, {
    runId: batch.runId,
    pass: batch.pass,
    targetId: batch.targetId,
    kind: batch.kind,
    cells: { columns: target.columns.map((column) => column.id), rows },
    follows: batch.id,
    depth: batch.depth + since.lost,
    waits: batch.waits + since.waited,
    delayMs: followUpDelayMs(batch.depth + batch.waits, Math.random()),
  });
}
