// Takes a batch apart around rows that cannot be moved: its first rows become one batch, the rest another, in the
// transaction that ends the batch where it stands (I4). Repeated, this leaves the failing row alone in a batch while all
// others go on; a row that cannot even be read is quarantined without being read.
import type { KeyturnError } from '../errors.js';
import { emptyOutcome } from '../rotation/outcome.js';
import { quarantineCause } from '../rotation/slice-failure.js';
import type { RowKey, Target } from '../rotation/target.js';
import {
  advanceIfLeased,
  insertBatch,
  splitIfLeased,
  type CellList,
  type ClaimedBatch,
  type PlannedBatch,
} from '../store/batches.js';
import { sliceSettings, type CellStore } from '../store/cells.js';
import { sqlstateOf, type Queryable } from '../store/database.js';
import { quarantineCells } from '../store/quarantine.js';
import { describeCause, LeaseLost } from './batch-end.js';
import type { BatchEnd, BatchServices } from './services.js';

export interface Splitting {
  readonly services: BatchServices;
  readonly batch: ClaimedBatch;
  readonly target: Target;
  readonly store: CellStore;
}

/** The place up to which the batch is settled by now: its one failing row is in quarantine, or gone. */
export interface Passed {
  readonly passed: RowKey | undefined;
}

type Part = Pick<PlannedBatch, 'after' | 'upto' | 'cells'>;

/** What lies behind the cursor: the parts it falls into, or the one row that is left, or nothing. */
type Rest =
  | readonly [Part, Part]
  | { readonly key: RowKey; readonly columns: readonly string[]; readonly cursor: RowKey };

/** Splits the batch in the middle of the next `rows` rows behind `cursor`, which failed with `error`. */
export async function splitBatch(
  splitting: Splitting,
  cursor: RowKey | undefined,
  rows: number,
  error: KeyturnError,
): Promise<BatchEnd | Passed> {
  const { services } = splitting;
  const begin = `BEGIN; ${sliceSettings}; SET LOCAL statement_timeout = '10s'`;
  return services.database.transaction(async (client): Promise<BatchEnd | Passed> => {
    const rest = await restBehind(client, splitting, cursor, rows);
    if (rest === undefined) return { passed: cursor };
    return 'key' in rest ? quarantineUnread(client, splitting, rest, error) : divide(client, splitting, rest, error);
  }, begin);
}

async function restBehind(
  client: Queryable,
  { batch, target, store }: Splitting,
  cursor: RowKey | undefined,
  rows: number,
): Promise<Rest | undefined> {
  if (batch.cells !== undefined) return restOfList(batch.cells, Number(cursor?.[0] ?? 0), rows);
  const after = cursor ?? batch.after;
  const keys = await store.keysOfNext(client, { after, upto: batch.upto }, rows, batch.run.scope);
  const [first] = keys;
  if (first === undefined) return undefined;
  if (keys.length === 1) return { key: first, columns: target.columns.map((column) => column.id), cursor: first };
  const middle = keys[Math.ceil(keys.length / 2) - 1];
  return [
    { after, upto: middle },
    { after: middle, upto: batch.upto },
  ];
}

function restOfList(list: CellList, settled: number, rows: number): Rest | undefined {
  const left = list.rows.slice(settled);
  const [first] = left;
  if (first === undefined) return undefined;
  const tried = Math.min(rows, left.length);
  if (tried === 1) {
    const columns = first.columns.flatMap((position) => list.columns[position] ?? []);
    return { key: first.key, columns, cursor: [String(settled + 1)] };
  }
  const middle = Math.ceil(tried / 2);
  return [
    { cells: { columns: list.columns, rows: left.slice(0, middle) } },
    { cells: { columns: list.columns, rows: left.slice(middle) } },
  ];
}

async function divide(
  client: Queryable,
  { batch }: Splitting,
  parts: readonly [Part, Part],
  error: KeyturnError,
): Promise<BatchEnd> {
  const cause = describeCause(error);
  if (!(await splitIfLeased(client, batch, cause))) return { end: 'lost' };
  for (const part of parts) {
    await insertBatch(client, {
      runId: batch.runId,
      pass: batch.pass,
      targetId: batch.targetId,
      kind: batch.kind,
      ...part,
      follows: batch.id,
      depth: batch.depth,
      waits: batch.waits,
      // What took many attempts to be split takes one more to be split again.
      attempts: batch.attempts,
    });
  }
  return { end: 'split', cause };
}

/** All its columns, since nobody knows which of them hold a cell. */
async function quarantineUnread(
  client: Queryable,
  { services, batch }: Splitting,
  row: Exclude<Rest, readonly unknown[]>,
  error: KeyturnError,
): Promise<Passed> {
  const cause = quarantineCause(sqlstateOf(error));
  await quarantineCells(
    client,
    { runId: batch.runId, id: batch.id, targetId: batch.targetId },
    row.columns.map((columnId) => ({ columnId, key: row.key, keyId: undefined, cause })),
  );
  const advanced = await advanceIfLeased(client, {
    batch,
    memberId: services.memberId,
    cursor: row.cursor,
    isLast: false,
    outcome: {
      ...emptyOutcome,
      rowsExamined: 1,
      rowsFailed: 1,
      cellsExamined: row.columns.length,
      cellsFailed: row.columns.length,
    },
    staleCells: 0,
    readMs: 0,
    cryptoMs: 0,
    writeMs: 0,
  });
  if (advanced === undefined) throw new LeaseLost();
  return { passed: row.cursor };
}
