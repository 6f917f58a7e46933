// The operator's verb that repairs values whose row got another key or tenant: they are bound to the former one (I2) and do
// not decrypt any more. It decrypts, so it needs the root key; keys and tenants of rows go nowhere but into the statement.
import { keyTextOf, scopeTextOf } from '../engine/column.js';
import { createBudgetOf } from '../engine/counted-keyring.js';
import { rebindRows } from '../engine/rebind.js';
import type { RebindCounts } from '../engine/rebind-counts.js';
import { KeyturnError } from '../errors.js';
import { activeKeyOf, keyTitle, type Keyring } from '../keys/keyring.js';
import { openKeyring } from '../keys/open-keyring.js';
import { targetTitle, type RowKey, type Target } from '../rotation/target.js';
import { getKeyring } from '../store/keys.js';
import type { ControlContext } from './context.js';
import { openRootsOf } from './keys.js';
import { findTarget } from './runs.js';

export interface RebindRequest {
  /** `schema.table` or `table`. */
  readonly target: string;
  /** One value per key column, in key order; undefined for all rows. */
  readonly pk: readonly string[] | undefined;
  /** The key that the row had; undefined where it is the same. */
  readonly wasPk: readonly string[] | undefined;
  /** The tenant that the rows have; undefined for any. */
  readonly scope: string | undefined;
  /** The tenant that they had, null for none; undefined where it is the same. */
  readonly wasScope: string | null | undefined;
  /** Undefined for all encrypted columns. */
  readonly column: string | undefined;
  readonly isDryRun: boolean;
  readonly reason: string | undefined;
}

export interface RebindReport {
  readonly target: string;
  readonly is_dry_run: boolean;
  readonly target_key: string;
  readonly target_key_id: number;
  readonly rows_examined: number;
  readonly rows_updated: number;
  readonly rows_conflicted: number;
  readonly rows_failed: number;
  /** Were bound to the former address, and are now to the present one; in a dry run: would be. */
  readonly fields_reencrypted: number;
  /** Decrypt where they are, and were left alone. */
  readonly fields_current: number;
  readonly fields_conflicted: number;
  /** Decrypt at neither address. */
  readonly fields_failed: number;
  readonly failures: readonly { target: string; field: string; cause: string; key_id: number | null; cells: number }[];
}

/** Repeating it goes on where an earlier attempt stopped: what is repaired is current. */
export async function rebindValues(context: ControlContext, request: RebindRequest): Promise<RebindReport> {
  const { database, onProgress } = context;
  refuseUnlessMoved(request);
  const target = await findTarget(context, request.target);
  const columns = columnsOf(target, request.column);
  const key = request.pk === undefined ? undefined : keyTextOf(target, request.pk);
  const wasKey = request.wasPk === undefined ? undefined : keyTextOf(target, request.wasPk);
  const scope = request.scope === undefined ? undefined : scopeOf(target, request.scope);
  const wasScope = request.wasScope === undefined ? undefined : scopeOf(target, request.wasScope);
  refuseSameAddress({ key, wasKey, scope, wasScope });
  const { keyring, counts } = await rebindRows(
    { database, onProgress, openKeyring: () => openOwnKeyring(context, target, columns) },
    {
      target,
      columns,
      key,
      scope: scope ?? undefined,
      former: (row) => ({ key: wasKey ?? row.key, scope: wasScope === undefined ? row.scope : wasScope }),
      isDryRun: request.isDryRun,
      reason: request.reason,
    },
  );
  return reportOf(target, keyring, counts, request.isDryRun);
}

/** Throws RUN_INCOMPLETE for values that were not repaired. */
export function refuseUnlessRebound(report: RebindReport): void {
  const left = [
    report.fields_failed > 0 ? `${report.fields_failed} failed` : '',
    report.fields_conflicted > 0 ? `${report.fields_conflicted} conflicted` : '',
  ].filter((part) => part !== '');
  if (left.length === 0) return;
  throw new KeyturnError(
    'RUN_INCOMPLETE',
    `values of ${report.target} are as they were: ${left.join(' and ')}; ${
      report.fields_failed > 0
        ? 'those that failed decrypt at neither address, so look at the former key and tenant that were given'
        : 'the application was at work on them, so repeat the command'
    }`,
    { target: report.target, failed: report.fields_failed, conflicted: report.fields_conflicted },
  );
}

function refuseUnlessMoved({ pk, wasPk, wasScope }: RebindRequest): void {
  if (wasPk !== undefined && pk === undefined)
    throw new KeyturnError('USAGE', 'say which row had the key of --was-pk: give the key it has now with --pk');
  if (wasPk === undefined && wasScope === undefined)
    throw new KeyturnError(
      'USAGE',
      'say what the values are still bound to: --was-pk for the former key of one row, --was-scope for the former tenant',
    );
}

function refuseSameAddress(address: {
  key: RowKey | undefined;
  wasKey: RowKey | undefined;
  scope: string | null | undefined;
  wasScope: string | null | undefined;
}): void {
  const { key, wasKey, scope, wasScope } = address;
  const isSameKey = wasKey === undefined || wasKey.every((part, at) => part === key?.[at]);
  const isSameScope = wasScope === undefined || wasScope === scope;
  if (isSameKey && isSameScope)
    throw new KeyturnError('USAGE', 'the former key and tenant are the present ones, so there is nothing to repair');
}

function scopeOf(target: Target, scope: string | null): string | null {
  return scopeTextOf(target, { scope });
}

function columnsOf(target: Target, name: string | undefined): ReadonlySet<number> {
  const positions = target.columns.flatMap((column, at) => (name === undefined || column.name === name ? [at] : []));
  if (positions.length > 0) return new Set(positions);
  throw new KeyturnError(
    'TARGET_NOT_FOUND',
    `target ${targetTitle(target)} has no column "${name ?? ''}"; it has: ${target.columns.map((column) => column.name).join(', ')}`,
    { target: targetTitle(target) },
  );
}

/** Throws COLUMN_MOVE_REFUSED for a column between two formats: what it holds is in part bound to nothing. */
async function openOwnKeyring(context: ControlContext, target: Target, columns: ReadonlySet<number>): Promise<Keyring> {
  const stored = await getKeyring(context.database, target.keyringName);
  const between = target.columns.find(
    (column, at) => columns.has(at) && stored.foreign?.some(({ columnId }) => columnId === column.id),
  );
  if (between !== undefined)
    throw new KeyturnError(
      'COLUMN_MOVE_REFUSED',
      `column ${targetTitle(target)}.${between.name} is between two formats; end that with keyturn adopt --finalize, or choose another column with --column`,
      { column: between.name },
    );
  const keyring = await openKeyring(stored, await openRootsOf(context, stored), new Map());
  const budget = createBudgetOf(context.database, keyring, (error) => context.onProgress(String(error)));
  await budget?.refill();
  return Object.freeze({ ...keyring, budget });
}

function reportOf(target: Target, keyring: Keyring, counts: RebindCounts, isDryRun: boolean): RebindReport {
  const active = activeKeyOf(keyring);
  const key = keyring.keys.find(({ id }) => id === active.id);
  return {
    target: targetTitle(target),
    is_dry_run: isDryRun,
    target_key: key === undefined ? String(active.id) : keyTitle(keyring.name, key),
    target_key_id: Number(active.id),
    rows_examined: counts.rowsExamined,
    rows_updated: counts.rowsUpdated,
    rows_conflicted: counts.rowsConflicted,
    rows_failed: counts.rowsFailed,
    fields_reencrypted: counts.cellsReencrypted,
    fields_current: counts.cellsCurrent,
    fields_conflicted: counts.cellsConflicted,
    fields_failed: counts.cellsFailed,
    failures: counts.failures.map(({ column, cause, keyId, cells }) => ({
      target: targetTitle(target),
      field: column,
      cause,
      key_id: keyId === undefined ? null : Number(keyId),
      cells,
    })),
  };
}
