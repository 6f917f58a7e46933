// The second scan: counts, per slice, the cells that do not name the run's target key. Counting is one SQL statement by
// envelope header; only a slice with strangers in it, or a deep verification, is read cell by cell. Application tables
// are read in read-only transactions and never written: one snapshot per slice, since its end, its count and its cells are
// separate statements, and a row that comes or goes between them must neither end the batch nor push another one out.
import { check, formatAt, type Cell, type CellFailure } from '../codec.js';
import type { KeyId } from '../crypto/value-key.js';
import { uuidToBytes } from '../crypto/uuid.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { Stored } from '../formats/format.js';
import type { Keyring } from '../keys/keyring.js';
import type { StoredKey } from '../keys/key-store.js';
import { countRows, emptyOutcome, type CellOutcome, type Outcome } from '../rotation/outcome.js';
import { mayGoOn, mostSliceRows, type Standing } from '../rotation/standing.js';
import type { RowKey, Target } from '../rotation/target.js';
import { advanceIfLeased, finishIfLeased, insertBatch, type ClaimedBatch } from '../store/batches.js';
import { storedOf } from '../store/cell-row.js';
import { createCellStore, type CellStore, type KeyRange } from '../store/cells.js';
import type { Queryable } from '../store/database.js';
import { quarantineCells, quarantinedAmong, type QuarantinedCell } from '../store/quarantine.js';
import { getTarget } from '../store/registry.js';
import { LeaseLost, releaseAfter, releaseToStop } from './batch-end.js';
import { createCellBuilder, formatOf, storageOf } from './cells-of-target.js';
import { beginRead, endsWhenIdle } from './reencrypt-batch.js';
import { rest } from './rest.js';
import type { BatchEnd, BatchServices } from './services.js';

/** A worker stopped before it commits must not keep its batch locked: the supervisor would wait for it to expire its lease. */
const beginSettle = `BEGIN; ${endsWhenIdle}`;

const countSliceRows = 5_000;
/** Slices that are read cell by cell stay small: whole envelopes travel. */
const readSliceRows = 1_000;

interface SliceCount {
  readonly cursor: RowKey;
  readonly isLast: boolean;
  readonly outcome: Outcome;
  readonly staleCells: number;
  readonly failures: readonly QuarantinedCell[];
  /** Of the values that had to be read; counting by header reads none. */
  readonly bytes: number;
  readonly readMs: number;
}

interface Scan {
  readonly services: BatchServices;
  readonly batch: ClaimedBatch;
  readonly target: Target;
  readonly store: CellStore;
  readonly keyring: Keyring;
  readonly targetKey: StoredKey;
}

/** Runs a claimed verify batch until it is done, lost, handed back or stopped. */
export async function verifyBatch(
  services: BatchServices,
  batch: ClaimedBatch,
  signal: AbortSignal,
): Promise<BatchEnd> {
  try {
    const scan = await startScan(services, batch);
    return await walk(scan, signal);
  } catch (error) {
    // The table is gone and with it the batch's work.
    if (isKeyturnError(error, 'TARGET_NOT_FOUND'))
      return (await finishIfLeased(services.database, batch)) ? { end: 'done' } : { end: 'lost' };
    return releaseAfter(services, batch, error);
  }
}

async function startScan(services: BatchServices, batch: ClaimedBatch): Promise<Scan> {
  const target = await getTarget(services.database, batch.targetId);
  const { keyringName, generation, targetKeyId } = batch.run;
  const held = services.keyrings.current(keyringName);
  const keyring = held.generation < generation ? await services.keyrings.refresh(keyringName) : held;
  return {
    services,
    batch,
    target,
    store: createCellStore(target),
    keyring,
    targetKey: targetKeyOf(keyring, targetKeyId),
  };
}

async function walk(scan: Scan, signal: AbortSignal): Promise<BatchEnd> {
  const { services, batch } = scan;
  let after = batch.cursor ?? batch.after;
  let standing = batch.standing;
  let restedAtMs = performance.now();
  for (;;) {
    if (signal.aborted) return releaseToStop(services, batch);
    const slice = await countSlice(scan, after, mostSliceRows(standing));
    if (slice === undefined)
      return (await finishIfLeased(services.database, batch)) ? { end: 'done' } : { end: 'lost' };
    standing = await services.database.transaction(
      (client) => settle(client, scan, { after, upto: slice.cursor }, slice),
      beginSettle,
    );
    services.report?.({ ...slice, kind: batch.kind, cryptoMs: 0, writeMs: 0 });
    if (!slice.isLast && !mayGoOn(standing)) return releaseToStop(services, batch);
    await rest(standing, { rows: slice.outcome.rowsExamined, workMs: performance.now() - restedAtMs }, signal);
    restedAtMs = performance.now();
    if (slice.isLast) return { end: 'done' };
    after = slice.cursor;
  }
}

/** Counts and cursor in one transaction; in a reencrypt run a range with stale cells is moved again in the next round. */
async function settle(client: Queryable, scan: Scan, range: KeyRange, slice: SliceCount): Promise<Standing> {
  const { batch, services } = scan;
  await quarantineCells(client, { runId: batch.runId, id: batch.id, targetId: batch.targetId }, slice.failures);
  if (slice.staleCells > 0 && batch.run.kind === 'reencrypt') {
    await insertBatch(client, {
      runId: batch.runId,
      pass: batch.pass + 1,
      targetId: batch.targetId,
      kind: 'reencrypt',
      ...range,
      follows: batch.id,
    });
  }
  const advanced = await advanceIfLeased(client, {
    batch,
    memberId: services.memberId,
    cursor: slice.cursor,
    isLast: slice.isLast,
    outcome: slice.outcome,
    staleCells: slice.staleCells,
    readMs: slice.readMs,
    cryptoMs: 0,
    writeMs: 0,
  });
  if (advanced === undefined) throw new LeaseLost();
  return advanced;
}

/** Undefined behind the last row. */
async function countSlice(scan: Scan, after: RowKey | undefined, mostRows: number): Promise<SliceCount | undefined> {
  const { services, batch, store } = scan;
  const rowsPerSlice = Math.min(batch.run.deep ? readSliceRows : countSliceRows, mostRows);
  const readFrom = performance.now();
  return services.database.transaction(async (client) => {
    const upto = await store.lastKeyOfNext(client, { after, upto: batch.upto }, rowsPerSlice, batch.run.scope);
    if (upto === undefined) return undefined;
    const counted =
      (batch.run.deep ? undefined : await countByHeader(client, scan, { after, upto })) ??
      (await countCellByCell(client, scan, { after, upto }, rowsPerSlice));
    return {
      ...counted,
      cursor: upto,
      isLast: counted.outcome.rowsExamined < rowsPerSlice,
      readMs: performance.now() - readFrom,
    };
  }, beginRead);
}

type Counted = Pick<SliceCount, 'outcome' | 'staleCells' | 'failures' | 'bytes'>;

/** Undefined when some cell does not name the target key, so that the slice has to be looked at. */
async function countByHeader(client: Queryable, scan: Scan, range: KeyRange): Promise<Counted | undefined> {
  const counted = await scan.store.countNot(client, range, scan.batch.run.scope, (expression, column) => {
    const format = formatAt(scan.keyring, formatOf(scan.target, column), { column: uuidToBytes(column.id) });
    const key = { ...scan.targetKey, id: format.writeKeyId ?? scan.targetKey.id };
    return format.sqlNamesKey(expression, storageOf(column), key);
  });
  if (counted.others > 0) return undefined;
  const outcome = {
    ...emptyOutcome,
    rowsExamined: counted.rows,
    rowsSkipped: counted.rows,
    cellsExamined: counted.cells,
    cellsCurrent: counted.cells,
  };
  return { outcome, staleCells: 0, failures: [], bytes: 0 };
}

async function countCellByCell(client: Queryable, scan: Scan, range: KeyRange, limit: number): Promise<Counted> {
  const { batch, target, store } = scan;
  const builder = createCellBuilder(target, scan.keyring.cluster);
  const failures: QuarantinedCell[] = [];
  const stale: { columnId: string; key: RowKey }[] = [];
  const outcomes: CellOutcome[][] = [];
  let bytes = 0;
  for (const row of await store.readRange(client, range, limit, batch.run.scope)) {
    const cellOf = builder.cellsOf(row.key, row.scope);
    const cells: CellOutcome[] = [];
    for (const [position, column] of target.columns.entries()) {
      const stored = row.values[position];
      if (stored === null || stored === undefined) continue;
      bytes += stored.length;
      const verdict = verdictOn(scan, cellOf(position), storedOf(column, stored));
      cells.push(verdict.outcome);
      if (verdict.outcome === 'failed')
        failures.push({ columnId: column.id, key: row.key, keyId: verdict.keyId, cause: verdict.cause });
      if (verdict.outcome === 'conflicted') stale.push({ columnId: column.id, key: row.key });
    }
    outcomes.push(cells);
  }
  const quarantined = stale.length === 0 ? 0 : await quarantinedAmong(client, batch.runId, stale);
  return { outcome: countRows(outcomes), staleCells: stale.length - quarantined, failures, bytes };
}

type Verdict =
  | { readonly outcome: 'current' | 'conflicted' }
  | { readonly outcome: 'failed'; readonly cause: CellFailure; readonly keyId: number | undefined };

/** A stale cell counts as conflicted: it is not settled and has to be visited again. */
function verdictOn(scan: Scan, cell: Cell, stored: Stored): Verdict {
  const format = formatAt(scan.keyring, cell.format, cell.address);
  const targetKeyId = format.writeKeyId ?? scan.targetKey.id;
  const keyId = format.nameKey(stored);
  const failed = (cause: CellFailure): Verdict => ({
    outcome: 'failed',
    cause,
    keyId: typeof keyId === 'number' ? keyId : undefined,
  });
  if (keyId === undefined) return failed('NOT_AN_ENVELOPE');
  const { status } = scan.keyring.lookup(keyId);
  if (status === 'unknown') return failed('UNKNOWN_KEY');
  if (status === 'destroyed') return failed('KEY_DESTROYED');
  if (scan.batch.run.deep && status === 'held') {
    const examined = check(scan.keyring, cell, stored);
    if (examined.outcome === 'failed') return failed(examined.cause);
  }
  if (scan.batch.run.deep && keyId === targetKeyId && status !== 'held') {
    throw new KeyturnError('KEY_NOT_HELD', `this worker does not hold the target key ${keyId}`, {
      keyId: String(keyId),
    });
  }
  return { outcome: keyId === targetKeyId ? 'current' : 'conflicted' };
}

function targetKeyOf(keyring: Keyring, id: KeyId): StoredKey {
  const key = keyring.keys.find((candidate) => candidate.id === id);
  if (key !== undefined) return key;
  throw new KeyturnError('KEYRING_STALE', `this worker's keyring ${keyring.name} does not know key ${id} yet`, {
    keyring: keyring.name,
  });
}
