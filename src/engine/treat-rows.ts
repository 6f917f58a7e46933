// Decrypts and reencrypts the cells of a slice and packs what is to be written: rows in, outcomes and arrays out, no I/O.
import { reencrypt, type CellFailure } from '../codec.js';
import type { KeyId } from '../crypto/value-key.js';
import type { Keyring } from '../keys/keyring.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { storedOf, type CellRow, type PackedReplacements } from '../store/cell-row.js';
import { packArray } from '../store/packed-array.js';
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
  /** `visited`: which columns are meant; undefined for all. */
  add(row: CellRow, visited: readonly boolean[] | undefined): void;
  finish(): TreatedRows;
}

interface Rewrite {
  readonly read: string | Buffer;
  readonly replacement: string | Buffer;
}

function startTreatment(keyring: Keyring, target: Target, rowCount: number): RowTreatment {
  const builder = createCellBuilder(target, keyring.cluster);
  const width = target.columns.length;
  const codes = new Uint8Array(rowCount * width);
  const failures: TreatedRows['failures'][number][] = [];
  const stale: number[] = [];
  const rewrites: (Rewrite | null)[][] = target.columns.map(() => []);
  const keys: string[][] = target.key.map(() => []);
  let blocked: TreatedRows['blocked'];
  let rows = 0;
  let bytes = 0;
  let cryptoMs = 0;

  function addCell(
    row: CellRow,
    column: number,
    cellOf: ReturnType<typeof builder.cellsOf>,
    value: string,
  ): Rewrite | null {
    const definition = target.columns[column];
    if (definition === undefined) throw new Error(`target ${targetTitle(target)} has no column ${column}`);
    bytes += value.length;
    const read = storedOf(definition, value);
    const examined = reencrypt(keyring, cellOf(column), read);
    const at = (rows - 1) * width + column;
    switch (examined.outcome) {
      case 'current':
        codes[at] = cellCodes.current;
        return null;
      case 'reencrypted':
        codes[at] = cellCodes.reencrypted;
        return { read, replacement: examined.replacement };
      case 'failed':
        codes[at] = cellCodes.failed;
        failures.push({ row: rows - 1, column, cause: examined.cause, keyId: examined.keyId });
        return null;
      case 'blocked':
        blocked ??= { cause: examined.cause, keyId: examined.keyId };
        return null;
    }
  }

  return {
    add(row, visited) {
      const startedAt = performance.now();
      rows++;
      const cellOf = builder.cellsOf(row.key, row.scope);
      const rowRewrites = row.values.map((value, column) =>
        value === null || visited?.[column] === false ? null : addCell(row, column, cellOf, value),
      );
      if (rowRewrites.some((rewrite) => rewrite !== null)) {
        stale.push(rows - 1);
        for (const [part, column] of keys.entries()) column.push(row.key[part] ?? '');
        for (const [column, rewrite] of rowRewrites.entries()) rewrites[column]?.push(rewrite);
      }
      cryptoMs += performance.now() - startedAt;
    },
    finish() {
      const replacements = {
        rows: stale.length,
        keys: keys.map((part) => packArray('text', part)),
        columns: rewrites.map((column, at) =>
          packColumn(target.columns[at]?.sqlType === 'bytea' ? 'bytea' : 'text', column),
        ),
      };
      return { rows, codes, failures, blocked, stale, replacements, bytes, cryptoMs };
    },
  };
}

/** Undefined where no row of the slice changes this column. */
function packColumn(
  element: 'bytea' | 'text',
  rewrites: readonly (Rewrite | null)[],
): PackedReplacements['columns'][number] {
  if (rewrites.every((rewrite) => rewrite === null)) return undefined;
  return {
    read: packArray(
      element,
      rewrites.map((rewrite) => rewrite?.read ?? null),
    ),
    replacement: packArray(
      element,
      rewrites.map((rewrite) => rewrite?.replacement ?? null),
    ),
  };
}

/** The event loop turns between so many rows, so that statements under way are not kept waiting. */
const rowsPerTurn = 32;

export interface SliceWork {
  readonly keyring: Keyring;
  readonly target: Target;
  readonly rows: readonly CellRow[];
  /** Per row, which columns are meant; undefined for all. */
  readonly visited: readonly (readonly boolean[])[] | undefined;
}

export async function treatRows({ keyring, target, rows, visited }: SliceWork): Promise<TreatedRows> {
  const treatment = startTreatment(keyring, target, rows.length);
  for (const [at, row] of rows.entries()) {
    treatment.add(row, visited?.[at]);
    if (at % rowsPerTurn === rowsPerTurn - 1) await new Promise(setImmediate);
  }
  return treatment.finish();
}
