// Decrypts and reencrypts the cells of a slice and packs what is to be written: rows in, outcomes and arrays out, no I/O.
import { check, rebind, reencryptAll, type Cell, type CellFailure, type Examined } from '../codec.js';
import type { KeyId } from '../crypto/value-key.js';
import type { Stored } from '../formats/format.js';
import type { Keyring } from '../keys/keyring.js';
import { targetTitle, type RowKey, type Target } from '../rotation/target.js';
import { storedOf, type CellRow, type PackedReplacements } from '../store/cell-row.js';
import { createArrayPacker } from '../store/packed-array.js';
import { createCellBuilder } from './cells-of-target.js';

/** What became of each cell, one byte per row and column. */
export const cellCodes = { none: 0, current: 1, reencrypted: 2, failed: 3 } as const;

export interface TreatedRows {
  readonly rows: number;
  /** `row * columns + column` of the target. */
  readonly codes: Uint8Array;
  readonly failures: readonly {
    readonly row: number;
    readonly column: number;
    readonly cause: CellFailure;
    readonly keyId: KeyId | undefined;
  }[];
  /** A cell names a key that is not held: nothing of the slice is to be written. */
  readonly blocked: { readonly cause: 'KEY_NOT_HELD' | 'KEY_RETIRED'; readonly keyId: KeyId } | undefined;
  /** Rows with something to write, as positions among `rows`; `replacements` is in this order. */
  readonly stale: readonly number[];
  readonly replacements: PackedReplacements;
  /** Bytes of the stored values, in the form they travel. */
  readonly bytes: number;
  readonly cryptoMs: number;
}

interface RowTreatment {
  /** `visited`: per row, which columns are meant; undefined for all. */
  add(rows: readonly CellRow[], visited: readonly (readonly boolean[])[] | undefined): void;
  finish(): TreatedRows;
}

interface Rewrite {
  readonly read: Stored;
  readonly replacement: Stored;
}

function startTreatment(
  { keyring, target, former, checksCurrent }: Pick<SliceWork, 'keyring' | 'target' | 'former' | 'checksCurrent'>,
  rowCount: number,
): RowTreatment {
  const builder = createCellBuilder(target, keyring.cluster);
  const width = target.columns.length;
  const codes = new Uint8Array(rowCount * width);
  const failures: TreatedRows['failures'][number][] = [];
  const stale: number[] = [];
  // Packed as soon as they are there: thousands of values that live as long as their slice would all be copied by the collector.
  const rewrites = target.columns.map(({ sqlType }) => {
    const element = sqlType === 'bytea' ? 'bytea' : 'text';
    return { read: createArrayPacker(element, rowCount), replacement: createArrayPacker(element, rowCount) };
  });
  const keys = target.key.map(() => createArrayPacker('text', rowCount));
  let blocked: TreatedRows['blocked'];
  let rows = 0;
  let bytes = 0;
  let cryptoMs = 0;

  /** What is to be written into one column of some rows, in their order. */
  function treatColumn(
    column: number,
    some: readonly CellRow[],
    visited: readonly (readonly boolean[])[] | undefined,
    cellsOf: readonly ReturnType<typeof builder.cellsOf>[],
  ): readonly (Rewrite | null)[] {
    const definition = target.columns[column];
    if (definition === undefined) throw new Error(`target ${targetTitle(target)} has no column ${column}`);
    const found: { row: number; cell: Cell; stored: Stored }[] = [];
    for (const [row, { values }] of some.entries()) {
      const value = values[column] ?? null;
      const cell = cellsOf[row]?.(column);
      if (value === null || cell === undefined || visited?.[row]?.[column] === false) continue;
      bytes += value.length;
      found.push({ row, cell, stored: storedOf(definition, value) });
    }
    const result: (Rewrite | null)[] = some.map(() => null);
    const [first] = found;
    if (first === undefined) return result;
    const examined =
      former === undefined
        ? reencryptAll(
            keyring,
            first.cell,
            found.map(({ cell, stored }) => ({ cell: cell.address, stored })),
          )
        : found.map(({ row, cell, stored }) => rebind(keyring, cell, formerAddress(some[row], column, cell), stored));
    for (const [index, { row, cell, stored }] of found.entries()) {
      const one = examined[index];
      if (one === undefined) continue;
      const isToCheck = checksCurrent === true && one.outcome === 'current';
      result[row] = settle(rows + row, column, stored, isToCheck ? check(keyring, cell, stored) : one);
    }
    return result;
  }

  function formerAddress(row: CellRow | undefined, column: number, { address }: Cell): Cell['address'] {
    const was = row === undefined ? undefined : former?.(row);
    return was === undefined ? address : builder.cellsOf(was.key, was.scope)(column).address;
  }

  function settle(row: number, column: number, read: Stored, examined: Examined): Rewrite | null {
    const at = row * width + column;
    switch (examined.outcome) {
      case 'current':
        codes[at] = cellCodes.current;
        return null;
      case 'reencrypted':
        codes[at] = cellCodes.reencrypted;
        return { read, replacement: examined.replacement };
      case 'failed':
        codes[at] = cellCodes.failed;
        failures.push({ row, column, cause: examined.cause, keyId: examined.keyId });
        return null;
      case 'blocked':
        blocked ??= { cause: examined.cause, keyId: examined.keyId };
        return null;
    }
  }

  return {
    add(some, visited) {
      const startedAt = performance.now();
      const cellsOf = some.map((row) => builder.cellsOf(row.key, row.scope));
      const byColumn = target.columns.map((_, column) => treatColumn(column, some, visited, cellsOf));
      for (const [row, { key }] of some.entries()) {
        if (byColumn.every((column) => column[row] === null)) continue;
        stale.push(rows + row);
        for (const [part, packer] of keys.entries()) packer.add(key[part] ?? '');
        for (const [column, treated] of byColumn.entries()) {
          rewrites[column]?.read.add(treated[row]?.read ?? null);
          rewrites[column]?.replacement.add(treated[row]?.replacement ?? null);
        }
      }
      rows += some.length;
      cryptoMs += performance.now() - startedAt;
    },
    finish() {
      const replacements = {
        rows: stale.length,
        keys: keys.map((packer) => packer.finish()),
        // Undefined where no row of the slice changes this column.
        columns: rewrites.map(({ read, replacement }) =>
          read.isAllNull() ? undefined : { read: read.finish(), replacement: replacement.finish() },
        ),
      };
      return { rows, codes, failures, blocked, stale, replacements, bytes, cryptoMs };
    },
  };
}

/** The event loop turns between so much work, so that statements under way are not kept waiting: some 5 ms at most. */
const maxRowsPerTurn = 256;
/** Turns that take longer do not get longer still. */
const calmMsPerTurn = 0.5;
const maxBytesPerTurn = 128_000;
const maxMsPerTurn = 5;
/** Of a format that takes long for each value, the first turn is short too. */
const firstRowsPerTurn = 4;

export interface SliceWork {
  readonly keyring: Keyring;
  readonly target: Target;
  readonly rows: readonly CellRow[];
  /** Per row, which columns are meant; undefined for all. */
  readonly visited: readonly (readonly boolean[])[] | undefined;
  /** What values may still be bound to: the cells are brought to their present address, not to the active key. */
  readonly former?: (row: CellRow) => FormerAddress;
  /** What needs no reencryption is decrypted all the same. */
  readonly checksCurrent?: boolean;
}

/** Key and tenant that a row had. */
export interface FormerAddress {
  readonly key: RowKey;
  readonly scope: string | null;
}

export async function treatRows(work: SliceWork): Promise<TreatedRows> {
  const { rows, visited } = work;
  const treatment = startTreatment(work, rows.length);
  let limit = firstRowsPerTurn;
  for (let at = 0; at < rows.length; ) {
    if (at > 0) await new Promise(setImmediate);
    const end = endOfTurn(rows, at, limit);
    const startedAt = performance.now();
    treatment.add(rows.slice(at, end), visited?.slice(at, end));
    const milliseconds = performance.now() - startedAt;
    limit =
      milliseconds > maxMsPerTurn
        ? Math.max(1, Math.floor(((end - at) * maxMsPerTurn) / milliseconds))
        : milliseconds > calmMsPerTurn
          ? limit
          : Math.min(maxRowsPerTurn, limit * 2);
    at = end;
  }
  return treatment.finish();
}

/** One row at least. */
function endOfTurn(rows: readonly CellRow[], from: number, limit: number): number {
  let bytes = 0;
  for (let at = from; at < rows.length && at < from + limit; at++) {
    for (const value of rows[at]?.values ?? []) bytes += value?.length ?? 0;
    if (bytes > maxBytesPerTurn && at > from) return at;
  }
  return Math.min(rows.length, from + limit);
}
