// Rows whose key or tenant changed under their values: what still decrypts at the former address is encrypted again for the
// present one and written as everything else is, only where it still is as it was read (I3). Outside of any run: what was
// settled in quarantine and the audit record commit with the rows.
//
// The active key is the one of now: a slice whose keyring has changed since it was read is treated again, so that no key is
// proved unused and retired while an envelope under it is on its way (I6). The generation is read once rows are locked; from
// then on retirement waits for this transaction.
import { KeyturnError } from '../errors.js';
import type { Keyring } from '../keys/keyring.js';
import { judgeSlice, quarantineCause } from '../rotation/slice-failure.js';
import type { RowKey, Target } from '../rotation/target.js';
import { writeAudit } from '../store/audit.js';
import type { CellRow } from '../store/cell-row.js';
import { createCellStore, sliceSettings } from '../store/cells.js';
import { sqlstateOf, type Database, type Queryable } from '../store/database.js';
import { readGeneration } from '../store/keys.js';
import { beginRead, endsWhenIdle } from './reencrypt-batch.js';
import { startTally, type RebindCounts } from './rebind-counts.js';
import { resolveSettled } from './resolve-settled.js';
import { rewriteRows } from './rewrite-rows.js';
import { cellCodes, treatRows, type FormerAddress, type TreatedRows } from './treat-rows.js';

/** Waits for no lock: a row that the application holds is tried again. The operator is told what is durable. */
const beginWrite = `BEGIN; ${sliceSettings}; ${endsWhenIdle}; SET LOCAL lock_timeout = '200ms'; SET LOCAL statement_timeout = '5s'; SET LOCAL keyturn.active = '1'`;
const firstSliceRows = 50;
const maxSliceRows = 500;
const maxSliceBytes = 2_000_000;
const maxTries = 5;

export interface RebindOrder {
  readonly target: Target;
  /** Positions of the columns that are meant. */
  readonly columns: ReadonlySet<number>;
  /** One row, or all of the table. */
  readonly key: RowKey | undefined;
  /** Only rows of this tenant. */
  readonly scope: string | undefined;
  readonly former: (row: CellRow) => FormerAddress;
  readonly isDryRun: boolean;
  readonly reason: string | undefined;
}

export interface RebindServices {
  readonly database: Database;
  /** The keyring as it is now. */
  readonly openKeyring: () => Promise<Keyring>;
  readonly onProgress: (words: string) => void;
}

/** Throws ROW_NOT_FOUND where the one row is not there, KEY_NOT_HELD for a value under a key that is not loaded. */
export async function rebindRows(
  services: RebindServices,
  order: RebindOrder,
): Promise<{ keyring: Keyring; counts: RebindCounts }> {
  const rebinding = await startRebinding(services, order);
  const { database, onProgress } = services;
  const store = createCellStore(order.target);
  if (order.key !== undefined) {
    const rows = await rebinding.readAgain([order.key]);
    if (rows.length === 0)
      throw new KeyturnError(
        'ROW_NOT_FOUND',
        `there is no row with this key${order.scope === undefined ? '' : ' and tenant'} in ${order.target.schema}.${order.target.table}; give the key that the row has now with --pk`,
      );
    await rebinding.settle(rows);
    return rebinding.end();
  }
  const upto = await database.transaction((client) => store.highestKey(client), beginRead);
  let after: RowKey | undefined;
  let limit = firstSliceRows;
  while (upto !== undefined) {
    const range = { after, upto };
    const rows = await database.transaction((client) => store.readRange(client, range, limit, order.scope), beginRead);
    if (rows.length === 0) break;
    const { bytes } = await rebinding.settle(rows);
    const { rowsExamined, rowsUpdated } = rebinding.end().counts;
    onProgress(`${rowsExamined} rows looked at, ${rowsUpdated} repaired`);
    if (rows.length < limit) break;
    after = rows.at(-1)?.key;
    limit = Math.max(1, Math.min(maxSliceRows, Math.floor((maxSliceBytes * rows.length) / Math.max(1, bytes))));
  }
  return rebinding.end();
}

interface Rebinding {
  readAgain(keys: readonly RowKey[]): Promise<readonly CellRow[]>;
  /** Until each of the rows is written, found in order, failed, or given up. */
  settle(rows: readonly CellRow[]): Promise<{ bytes: number }>;
  /** `keyring`: the one that was written under last. */
  end(): { keyring: Keyring; counts: RebindCounts };
}

/** Rows that are still as they were, as positions; or why the database takes one of the rows not at all. */
type Written = { readonly unwritten: ReadonlySet<number> } | { readonly refusedFor: string };

/** The keyring changed between reading and writing. */
class KeyringMoved extends Error {}

async function startRebinding(services: RebindServices, order: RebindOrder): Promise<Rebinding> {
  const { database } = services;
  const { target } = order;
  const width = target.columns.length;
  const mask = target.columns.map((_, column) => order.columns.has(column));
  const store = createCellStore(target);
  const tally = startTally(target);
  let keyring = await services.openKeyring();

  async function readAgain(keys: readonly RowKey[]): Promise<readonly CellRow[]> {
    const rows = await database.transaction((client) => store.readRows(client, keys), beginRead);
    return rows.filter((row) => order.scope === undefined || row.scope === order.scope);
  }

  async function treat(rows: readonly CellRow[]): Promise<TreatedRows> {
    const treated = await treatRows({ keyring, target, rows, visited: rows.map(() => mask), former: order.former });
    if (treated.blocked === undefined) return treated;
    const { cause, keyId } = treated.blocked;
    throw new KeyturnError(
      'KEY_NOT_HELD',
      cause === 'KEY_RETIRED'
        ? `a value names key ${keyId}, which is retired; bring it back with keyturn key restore ${keyId}, and repeat the command`
        : `a value names key ${keyId}, which is not held here; see: keyturn key list`,
      { keyId: String(keyId) },
    );
  }

  async function settle(rows: readonly CellRow[]): Promise<{ bytes: number }> {
    let left = rows;
    let bytes = 0;
    for (let tries = 1; left.length > 0; tries++) {
      const treated = await treat(left);
      if (tries === 1) ({ bytes } = treated);
      const written = await write(left, treated, tries);
      if ('refusedFor' in written) {
        await settleRefused(left, treated, written.refusedFor);
        break;
      }
      const { unwritten } = written;
      tally.add(treated, unwritten, tries === maxTries ? 'conflicted' : 'left');
      if (tries === maxTries || unwritten.size === 0) break;
      await delay(25 * 2 ** tries);
      left = await readAgain(left.filter((_, row) => unwritten.has(row)).map(({ key }) => key));
    }
    return { bytes };
  }

  /** Rows of which one is what the database does not take are taken apart; that one fails alone. */
  async function settleRefused(rows: readonly CellRow[], treated: TreatedRows, cause: string): Promise<void> {
    if (rows.length === 1) {
      tally.add(treated, new Set(treated.stale), { failedFor: cause });
      return;
    }
    const middle = Math.ceil(rows.length / 2);
    await settle(rows.slice(0, middle));
    await settle(rows.slice(middle));
  }

  async function write(rows: readonly CellRow[], treated: TreatedRows, tries: number): Promise<Written> {
    if (order.isDryRun || treated.stale.length === 0) return { unwritten: new Set() };
    try {
      return { unwritten: await database.transaction((client) => writeIn(client, rows, treated), beginWrite) };
    } catch (error) {
      if (error instanceof KeyringMoved) {
        keyring = await services.openKeyring();
        return { unwritten: new Set(treated.stale) };
      }
      const sqlstate = sqlstateOf(error);
      switch (judgeSlice({ sqlstate, rows: rows.length, tries, attempts: 0 })) {
        case 'repeat':
          return { unwritten: new Set(treated.stale) };
        case 'hand back':
          throw error;
        default:
          return { refusedFor: quarantineCause(sqlstate) };
      }
    }
  }

  async function writeIn(
    client: Queryable,
    rows: readonly CellRow[],
    treated: TreatedRows,
  ): Promise<ReadonlySet<number>> {
    const { rows: unwritten } = await rewriteRows(client, store, treated, async () => {
      if ((await readGeneration(client, target.keyringId)) !== keyring.generation) throw new KeyringMoved();
    });
    const repaired = rows.map((_, row) =>
      mask.map((_isMeant, column) => treated.codes[row * width + column] === cellCodes.reencrypted),
    );
    await resolveSettled(client, target, { rows, visited: repaired, gone: [], treated }, unwritten);
    const rowsUpdated = treated.stale.length - unwritten.size;
    if (rowsUpdated === 0) return unwritten;
    await writeAudit(client, {
      action: 'target.rebind',
      object: `target ${target.schema}.${target.table}`,
      reason: order.reason,
      after: {
        rows_updated: rowsUpdated,
        fields_reencrypted: repaired.flatMap((cells, row) => (unwritten.has(row) ? [] : cells.filter(Boolean))).length,
      },
    });
    return unwritten;
  }

  return { readAgain, settle, end: () => ({ keyring, counts: tally.counts() }) };
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
