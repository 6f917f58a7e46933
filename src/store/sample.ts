// A bounded look at the values of columns: so many rows from about so many pages, whatever the table's size.
import type { Stored } from '../formats/format.js';
import type { ApplicationColumn } from './catalog.js';
import { quoteIdentifier, type Queryable } from './database.js';

const maxRows = 400;
const maxPages = 1_000;
const maxBytes = 8_192;

/** Per column its values, NULLs and long ones left out; documents of jsonb columns as text. */
export async function sampleColumns(
  client: Queryable,
  columns: readonly ApplicationColumn[],
): Promise<readonly (readonly Stored[])[]> {
  const [first] = columns;
  if (first === undefined) return [];
  const { rows: sizes } = await client.query(
    `SELECT greatest(pg_relation_size($1::oid), (SELECT coalesce(sum(pg_relation_size(relid)), 0) FROM pg_partition_tree($1::oid::regclass)))
       / current_setting('block_size')::int`,
    [first.tableOid],
  );
  const pages = Number(sizes[0]?.[0]);
  const sampling = pages > maxPages ? ` TABLESAMPLE SYSTEM (${(100 * maxPages) / pages})` : '';
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
