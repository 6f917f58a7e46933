// From a row as read to its cells: address, format and storage of each. Binds tenant, target, column and row (I2).
import { formatOfColumn, type Cell } from '../codec.js';
import { encodeRowKey } from '../crypto/row-key.js';
import { tenantBytes, uuidToBytes } from '../crypto/uuid.js';
import { KeyturnError } from '../errors.js';
import type { Format, Storage } from '../formats/format.js';
import { formatByName, formatNames } from '../formats/registry.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { targetTitle, type RowKey, type Target, type TargetColumn } from '../rotation/target.js';

export interface CellBuilder {
  /** The cell of `column` (position in `target.columns`) in the row with this key and tenant. */
  cellsOf(key: RowKey, scope: string | null): (column: number) => Cell;
}

/** Tenants seen lately; a batch walks few tenants or many, so it is bounded. */
const maxTenants = 1_000;

/** Throws TARGET_INVALID for a column whose format this version does not know. */
export function createCellBuilder(target: Target, cluster: string): CellBuilder {
  const targetBytes = uuidToBytes(target.id);
  const columns = target.columns.map((column) => ({
    bytes: uuidToBytes(column.id),
    format: formatOf(target, column),
    storage: storageOf(column),
    isRowBound: column.bind === 'row',
  }));
  const tenants = new Map<string | null, Buffer>();

  function tenantOf(scope: string | null): Buffer {
    const known = tenants.get(scope);
    if (known !== undefined) return known;
    if (tenants.size >= maxTenants) tenants.clear();
    const bytes = tenantBytes(cluster, scope);
    tenants.set(scope, bytes);
    return bytes;
  }

  return {
    cellsOf(key, scope) {
      const tenant = tenantOf(scope);
      // Needed by row-bound columns alone.
      let encoded: Buffer | undefined;
      const rowOf = (): Buffer =>
        (encoded ??= encodeRowKey(target.key.map((column, part) => ({ tag: column.tag, text: key[part] ?? '' }))));
      return (position) => {
        const column = columns[position];
        if (column === undefined) throw new Error(`target ${targetTitle(target)} has no column ${position}`);
        return {
          address: { tenant, target: targetBytes, column: column.bytes, row: column.isRowBound ? rowOf() : undefined },
          format: column.format,
          storage: column.storage,
        };
      };
    },
  };
}

export function storageOf(column: Pick<TargetColumn, 'sqlType'>): Storage {
  return column.sqlType === 'bytea' ? 'bytes' : 'text';
}

/** The format as a keyring knows it: for a column between two formats the one that reads both. */
export function formatIn(
  keyring: Pick<StoredKeyring, 'keys' | 'foreign'>,
  target: Pick<Target, 'schema' | 'table'>,
  column: Pick<TargetColumn, 'id' | 'name' | 'format'>,
): Format {
  const move = keyring.foreign?.find(({ columnId }) => columnId === column.id);
  return formatOfColumn(keyring, formatOf(target, column), move);
}

export function formatOf(
  target: Pick<Target, 'schema' | 'table'>,
  column: Pick<TargetColumn, 'name' | 'format'>,
): Format {
  const format = formatByName(column.format);
  if (format !== undefined) return format;
  throw new KeyturnError(
    'TARGET_INVALID',
    `column ${targetTitle(target)}.${column.name} has format "${column.format}", which this version does not know; known: ${formatNames.join(', ')}`,
    {
      target: targetTitle(target),
      column: column.name,
    },
  );
}
