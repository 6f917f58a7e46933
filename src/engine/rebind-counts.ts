// What a rebinding did, counted in rows and cells as the rows are settled.
import type { KeyId } from '../crypto/value-key.js';
import type { Target } from '../rotation/target.js';
import { cellCodes, type TreatedRows } from './treat-rows.js';

export interface RebindFailure {
  readonly column: string;
  readonly cause: string;
  readonly keyId: KeyId | undefined;
  readonly cells: number;
}

export interface RebindCounts {
  readonly rowsExamined: number;
  readonly rowsUpdated: number;
  /** Given up: the application kept holding or changing them. */
  readonly rowsConflicted: number;
  readonly rowsFailed: number;
  /** Decrypted at the former address and now do at the present one. */
  readonly cellsReencrypted: number;
  /** Decrypt at the present address as they are. */
  readonly cellsCurrent: number;
  readonly cellsConflicted: number;
  readonly cellsFailed: number;
  readonly failures: readonly RebindFailure[];
}

export interface RebindTally {
  /** `unwritten` rows are counted as `unwrittenAs`: left for another try and not at all, conflicted, or failed for a cause. */
  add(
    treated: TreatedRows,
    unwritten: ReadonlySet<number>,
    unwrittenAs: 'left' | 'conflicted' | { readonly failedFor: string },
  ): void;
  counts(): RebindCounts;
}

export function startTally(target: Pick<Target, 'columns'>): RebindTally {
  const width = target.columns.length;
  const rows = { examined: 0, updated: 0, conflicted: 0, failed: 0 };
  const cells = { reencrypted: 0, current: 0, conflicted: 0, failed: 0 };
  const failures = new Map<string, RebindFailure>();

  function fail(column: number, cause: string, keyId: KeyId | undefined): void {
    const name = target.columns[column]?.name ?? '';
    const group = `${name} ${cause} ${keyId}`;
    failures.set(group, { column: name, cause, keyId, cells: (failures.get(group)?.cells ?? 0) + 1 });
    cells.failed++;
  }

  return {
    add(treated, unwritten, unwrittenAs) {
      const failed = new Set<number>();
      const isCounted = (row: number): boolean => unwrittenAs !== 'left' || !unwritten.has(row);
      for (const { row, column, cause, keyId } of treated.failures) {
        if (!isCounted(row)) continue;
        fail(column, cause, keyId);
        failed.add(row);
      }
      for (const [at, code] of treated.codes.entries()) {
        const row = Math.floor(at / width);
        if (!isCounted(row)) continue;
        if (code === cellCodes.current) cells.current++;
        if (code !== cellCodes.reencrypted) continue;
        if (!unwritten.has(row)) cells.reencrypted++;
        else if (typeof unwrittenAs === 'object') {
          fail(at % width, unwrittenAs.failedFor, undefined);
          failed.add(row);
        } else cells.conflicted++;
      }
      const stale = new Set(treated.stale);
      for (let row = 0; row < treated.rows; row++) {
        if (!isCounted(row)) continue;
        rows.examined++;
        if (failed.has(row)) rows.failed++;
        else if (unwritten.has(row)) rows.conflicted++;
        else if (stale.has(row)) rows.updated++;
      }
    },
    counts: () => ({
      rowsExamined: rows.examined,
      rowsUpdated: rows.updated,
      rowsConflicted: rows.conflicted,
      rowsFailed: rows.failed,
      cellsReencrypted: cells.reencrypted,
      cellsCurrent: cells.current,
      cellsConflicted: cells.conflicted,
      cellsFailed: cells.failed,
      failures: [...failures.values()],
    }),
  };
}
