// Counts by envelope header, without any key: how many cells of each column name which key, and where envelopes lie in
// columns that nobody registered. Reads whole tables, one statement per table.
import type { Format, Storage, Stored, ValueKeyName } from '../formats/format.js';
import type { KeyId } from '../crypto/value-key.js';
import type { Target, TargetColumn } from '../rotation/target.js';
import { targetTitle } from '../rotation/target.js';
import type { ApplicationColumn } from './catalog.js';
import { cellExpression, pathLiteral } from './cells.js';
import { quoteIdentifier, type Queryable } from './database.js';

export type FormatOf = (target: Target, column: TargetColumn) => Format;

export interface KeyCount {
  readonly target: string;
  readonly column: string;
  /** Undefined for values that are no envelope of the column's format. */
  readonly keyId: KeyId | undefined;
  readonly cells: number;
}

export interface HeaderCount {
  /** As `Format.sqlHeader` gives it. */
  readonly header: Stored;
  readonly keyId: KeyId | undefined;
  readonly cells: number;
}

/** Of one column, the number of cells per header. One key has one; what is damaged or of another cluster has others. */
export async function countByHeader(
  database: Queryable,
  target: Target,
  column: TargetColumn,
  format: Format,
): Promise<readonly HeaderCount[]> {
  const cell = cellExpression(column);
  const { rows } = await database.query(
    `SELECT ${format.sqlHeader(cell, storage(column))}, count(*) FROM ${tableName(target)} t WHERE ${cell} IS NOT NULL GROUP BY 1 ORDER BY 2 DESC`,
  );
  return rows.map(([header, cells]) => ({
    header: header as Stored,
    keyId: format.keyOfHeader(header as Stored),
    cells: Number(cells),
  }));
}

/** Per column and key, the number of cells. */
export async function countByKey(
  database: Queryable,
  target: Target,
  formatOf: FormatOf,
): Promise<readonly KeyCount[]> {
  const counts: KeyCount[] = [];
  for (const column of target.columns) {
    const byKey = new Map<KeyId | undefined, number>();
    for (const { keyId, cells } of await countByHeader(database, target, column, formatOf(target, column)))
      byKey.set(keyId, (byKey.get(keyId) ?? 0) + cells);
    for (const [keyId, cells] of byKey) counts.push({ target: targetTitle(target), column: column.name, keyId, cells });
  }
  return counts;
}

export interface NamingCount {
  readonly target: string;
  readonly column: string;
  readonly cells: number;
  readonly naming: number;
}

export interface NamingScan {
  readonly counts: readonly NamingCount[];
  readonly sql: string;
}

/** Per column, how many cells there are and how many name the key; the statement is part of the evidence. */
export async function countNaming(
  client: Queryable,
  target: Target,
  key: ValueKeyName,
  formatOf: FormatOf,
): Promise<NamingScan> {
  const cells = target.columns.map((column) => cellExpression(column));
  const counts = target.columns.map(
    (column, at) =>
      `count(${cells[at]}), count(*) FILTER (WHERE ${formatOf(target, column).sqlNamesKey(cells[at] ?? '', storage(column), key)})`,
  );
  const sql = `SELECT ${counts.join(', ')} FROM ${tableName(target)} t`;
  const { rows } = await client.query(sql);
  const numbers = (rows[0] ?? []).map(Number);
  return {
    sql,
    counts: target.columns.map((column, at) => ({
      target: targetTitle(target),
      column: column.name,
      cells: numbers[2 * at] ?? 0,
      naming: numbers[2 * at + 1] ?? 0,
    })),
  };
}

/** Tables up to so many pages are counted, larger ones sampled at about so many. */
const pagesToRead = 1_000;

/** Cells of a target that name another key than this one. Reads a bounded number of pages, whatever the table's size. */
export async function estimateStale(
  client: Queryable,
  target: Target,
  key: ValueKeyName,
  formatOf: FormatOf,
): Promise<{ readonly cells: number; readonly isExact: boolean }> {
  const percent = await percentToRead(client, target);
  const stale = target.columns.map((column) => {
    const cell = cellExpression(column);
    const names = formatOf(target, column).sqlNamesKey(cell, storage(column), key);
    return `count(*) FILTER (WHERE ${cell} IS NOT NULL AND ${names} IS NOT TRUE)`;
  });
  const { rows } = await client.query(`SELECT ${stale.join(' + ')} FROM ${tableName(target)} t${samplingOf(percent)}`);
  return { cells: Math.round((Number(rows[0]?.[0]) * 100) / percent), isExact: percent === 100 };
}

/** Per column, the values that were seen, and those without the magic of its format. Reads no more pages than that. */
export async function sampleNonEnvelopes(
  client: Queryable,
  target: Target,
  formatOf: FormatOf,
): Promise<{
  readonly counts: readonly { readonly column: string; readonly cells: number; readonly notEnvelopes: number }[];
  readonly isExact: boolean;
}> {
  const percent = await percentToRead(client, target);
  const counts = target.columns.map((column) => {
    const cell = cellExpression(column);
    const isMarked = formatOf(target, column).sqlHasMagic(cell, storage(column));
    return `count(${cell}), count(${cell}) FILTER (WHERE ${isMarked} IS NOT TRUE)`;
  });
  const { rows } = await client.query(`SELECT ${counts.join(', ')} FROM ${tableName(target)} t${samplingOf(percent)}`);
  const numbers = (rows[0] ?? []).map(Number);
  return {
    counts: target.columns.map(({ name }, at) => ({
      column: name,
      cells: numbers[2 * at] ?? 0,
      notEnvelopes: numbers[2 * at + 1] ?? 0,
    })),
    isExact: percent === 100,
  };
}

/** Of the pages of a table; 100 where it is small. */
async function percentToRead(client: Queryable, { tableOid }: Target): Promise<number> {
  const { rows } = await client.query(
    `SELECT greatest(pg_relation_size($1::oid), (SELECT coalesce(sum(pg_relation_size(relid)), 0) FROM pg_partition_tree($1::oid::regclass)))
       / current_setting('block_size')::int`,
    [tableOid],
  );
  const pages = Number(rows[0]?.[0]);
  return pages <= pagesToRead ? 100 : (100 * pagesToRead) / pages;
}

function samplingOf(percent: number): string {
  return percent === 100 ? '' : ` TABLESAMPLE SYSTEM (${percent})`;
}

export interface StrayCount {
  readonly table: string;
  readonly column: string;
  readonly cells: number;
}

/**
 * Values with a format's magic in columns, or jsonb paths, that no target covers. `registered`: per table oid and
 * attribute, the jsonb paths that are covered; an empty list covers the whole column.
 */
export async function countStrays(
  client: Queryable,
  columns: readonly ApplicationColumn[],
  registered: (column: ApplicationColumn) => readonly (readonly string[])[] | undefined,
  formats: readonly Format[],
): Promise<{ strays: readonly StrayCount[]; tables: number; columns: number }> {
  const byTable = new Map<number, ApplicationColumn[]>();
  for (const column of columns) {
    if (registered(column)?.length === 0) continue;
    byTable.set(column.tableOid, [...(byTable.get(column.tableOid) ?? []), column]);
  }
  const strays: StrayCount[] = [];
  let scanned = 0;
  for (const tableColumns of byTable.values()) {
    const [first] = tableColumns;
    if (first === undefined) continue;
    scanned += tableColumns.length;
    const counts = tableColumns.map(
      (column) => `count(*) FILTER (WHERE ${strayPredicate(column, registered(column) ?? [], formats)})`,
    );
    const { rows } = await client.query(`SELECT ${counts.join(', ')} FROM ${tableName(first)} t`);
    for (const [at, column] of tableColumns.entries()) {
      const cells = Number(rows[0]?.[at]);
      if (cells > 0) strays.push({ table: targetTitle(column), column: column.column, cells });
    }
  }
  return { strays, tables: byTable.size, columns: scanned };
}

function strayPredicate(
  column: ApplicationColumn,
  paths: readonly (readonly string[])[],
  formats: readonly Format[],
): string {
  const name = `t.${quoteIdentifier(column.column)}`;
  if (column.type === 'jsonb')
    return formats
      .map((format) => `${format.sqlCountMagic(`${name}::text`)} > ${registeredMagic(name, paths, format)}`)
      .join(' OR ');
  const expression = column.type === 'bytes' ? name : `${name}::text`;
  return formats
    .map((format) => format.sqlHasMagic(expression, column.type === 'bytes' ? 'bytes' : 'text'))
    .join(' OR ');
}

/** How many of the registered paths of a document hold a value with the magic; what its text holds beyond that is stray. */
function registeredMagic(name: string, paths: readonly (readonly string[])[], format: Format): string {
  const cells = paths.map(
    (path) =>
      `CASE WHEN jsonb_typeof(${name} #> ${pathLiteral(path)}) = 'string' AND ${format.sqlHasMagic(`${name} #>> ${pathLiteral(path)}`, 'text')} THEN 1 ELSE 0 END`,
  );
  return cells.length === 0 ? '0' : `(${cells.join(' + ')})`;
}

function storage(column: TargetColumn): Storage {
  return column.sqlType === 'bytea' ? 'bytes' : 'text';
}

function tableName(table: { readonly schema: string; readonly table: string }): string {
  return `${quoteIdentifier(table.schema)}.${quoteIdentifier(table.table)}`;
}
