// A bounded look at the values of columns: so many rows from about so many pages, whatever the table's size.
import type { Stored } from '../formats/format.js';
import type { ApplicationColumn } from './catalog.js';
import { quoteIdentifier, type Queryable } from './database.js';

const maxRows = 400;
const maxPages = 1_000;
const maxBytes = 8_192;

/** Of some cells of a column, how many carry a mark: `cell` and `isMarked` are SQL over a row `t`. */
export async function sampleMarks(
  client: Queryable,
  table: { readonly oid: number; readonly schema: string; readonly table: string },
  cell: string,
  isMarked: string,
): Promise<{ readonly cells: number; readonly marked: number }> {
  const sampling = await samplingOf(client, table.oid);
  const { rows } = await client.query(
    `SELECT count(*), count(*) FILTER (WHERE s.is_marked) FROM (
       SELECT ${isMarked} AS is_marked FROM ${quoteIdentifier(table.schema)}.${quoteIdentifier(table.table)} t${sampling}
       WHERE ${cell} IS NOT NULL LIMIT ${maxRows}) s`,
  );
  return { cells: Number(rows[0]?.[0]), marked: Number(rows[0]?.[1]) };
}

/** Per column its values, NULLs and long ones left out; documents of jsonb columns as text. */
export async function sampleColumns(
  client: Queryable,
  columns: readonly ApplicationColumn[],
): Promise<readonly (readonly Stored[])[]> {
  const [first] = columns;
  if (first === undefined) return [];
  const sampling = await samplingOf(client, first.tableOid);
  const values = columns.map((column) => {
    const name = `t.${quoteIdentifier(column.column)}`;
    const value = column.type === 'bytes' ? name : `${name}::text`;
    return `CASE WHEN octet_length(${value}) <= ${maxBytes} THEN ${value} END`;
  });
  const { rows } = await client.query(
    `SELECT ${values.join(', ')} FROM ${quoteIdentifier(first.schema)}.${quoteIdentifier(first.table)} t${sampling} LIMIT ${maxRows}`,
  );
  return columns.map((_, at) => rows.map((row) => row[at] as Stored | null).filter((value) => value !== null));
}

/** None for a table that is small anyway. */
async function samplingOf(client: Queryable, tableOid: number): Promise<string> {
  const { rows } = await client.query(
    `SELECT greatest(pg_relation_size($1::oid), (SELECT coalesce(sum(pg_relation_size(relid)), 0) FROM pg_partition_tree($1::oid::regclass)))
       / current_setting('block_size')::int`,
    [tableOid],
  );
  const pages = Number(rows[0]?.[0]);
  return pages > maxPages ? ` TABLESAMPLE SYSTEM (${(100 * maxPages) / pages})` : '';
}
