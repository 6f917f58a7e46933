// Reads and rewrites the cells of one target, set-based: a slice is one SELECT by primary-key range, one ordered lock and
// one UPDATE joined with arrays. Every write is conditional on the envelope that was read (I3). Keys travel as text and
// are cast in SQL; nothing here decides what is written.
import type { RowKey, Target, TargetColumn } from '../rotation/target.js';
import { quoteIdentifier, quoteLiteral, type Queryable, type Row } from './database.js';
import type { CellRow, PackedReplacements } from './cell-row.js';
import { packArray } from './packed-array.js';

/** Which of the rows handed in; `all` is told by their number alone, so that no list of them travels. */
export type Positions = 'all' | ReadonlySet<number>;

export interface KeyRange {
  /** Exclusive; undefined from the first key on. */
  readonly after: RowKey | undefined;
  /** Inclusive; undefined to the last. */
  readonly upto: RowKey | undefined;
}

export interface CellStore {
  readRange(client: Queryable, range: KeyRange, limit: number, scope: string | undefined): Promise<readonly CellRow[]>;
  /** Any rows for which `condition` holds, SQL over a row `t` that takes `parameters`. */
  readSome(
    client: Queryable,
    condition: string,
    parameters: readonly unknown[],
    limit: number,
  ): Promise<readonly CellRow[]>;
  readRows(client: Queryable, keys: readonly RowKey[]): Promise<readonly CellRow[]>;
  /** The same, of the first rows that together hold `maxBytes`, one at least; `left`: the keys that were not looked at. */
  readRowsUpTo(
    client: Queryable,
    keys: readonly RowKey[],
    maxBytes: number,
  ): Promise<{ readonly rows: readonly CellRow[]; readonly left: readonly RowKey[] }>;
  /** Locks rows in key order without waiting; answers which positions were locked. */
  lockUnlessBusy(client: Queryable, replacements: PackedReplacements): Promise<Positions>;
  /**
   * Rewrites the locked rows and answers which positions were rewritten; a row whose cell changed since it was read is
   * left as it is.
   */
  replaceIfUnchanged(client: Queryable, replacements: PackedReplacements, locked: Positions): Promise<Positions>;
  /** The last key of the next `rows` rows of the range; undefined when the range is empty. */
  lastKeyOfNext(
    client: Queryable,
    range: KeyRange,
    rows: number,
    scope: string | undefined,
  ): Promise<RowKey | undefined>;
  /** The keys of the next `rows` rows of the range; from the index, so that a row that cannot be read does not hinder. */
  keysOfNext(client: Queryable, range: KeyRange, rows: number, scope: string | undefined): Promise<readonly RowKey[]>;
  /** The highest key now; undefined for an empty table. */
  highestKey(client: Queryable): Promise<RowKey | undefined>;
  /** The planner's estimate, which knows the size of a table that was never analysed. */
  estimateRows(client: Queryable, scope: string | undefined): Promise<number>;
  /** Per column, cells and cells for which `predicate(column)` does not hold; over a range. */
  countNot(
    client: Queryable,
    range: KeyRange,
    scope: string | undefined,
    predicate: (expression: string, column: TargetColumn) => string,
  ): Promise<{ rows: number; cells: number; others: number }>;
}

/**
 * Nested loops over the primary key are the only good plan for a slice, at any table size and with any statistics; the
 * planner would scan a small or never analysed table instead, or gather the rest of a batch by bitmap and sort it for every
 * slice. Ends with the transaction.
 */
export const sliceSettings =
  'SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; SET LOCAL row_security = off; SET LOCAL jit = off';

export function createCellStore(target: Target): CellStore {
  const table = `${quoteIdentifier(target.schema)}.${quoteIdentifier(target.table)}`;
  const keyNames = target.key.map((column) => `t.${quoteIdentifier(column.name)}`);
  const keyTexts = keyNames.map((name) => `${name}::text`).join(', ');
  const keyOrder = keyNames.join(', ');
  const keyCount = target.key.length;
  const scopeText = target.scope === undefined ? 'NULL' : `t.${quoteIdentifier(target.scope.name)}::text`;
  const columnNames = target.columns.map(({ columnName }) => `t.${quoteIdentifier(columnName)}`);
  const cellExpressions = target.columns.map((column) => cellExpression(column));
  const rowSelect = `SELECT ${keyTexts}, ${scopeText}, ${target.columns.map((column, at) => (column.sqlType === 'bytea' ? `encode(${cellExpressions[at]}, 'hex')` : cellExpressions[at])).join(', ')}`;

  /** WHERE of a range; parameters are the key parts of `after`, then of `upto`, then the scope. */
  function where(range: KeyRange, scope: string | undefined): { sql: string; parameters: unknown[] } {
    const parameters: unknown[] = [];
    const conditions: string[] = [];
    const bind = (key: RowKey): string =>
      target.key.map((column, part) => `$${parameters.push(key[part])}::${column.type}`).join(', ');
    const left = keyCount === 1 ? keyOrder : `(${keyOrder})`;
    const row = (values: string): string => (keyCount === 1 ? values : `(${values})`);
    if (range.after !== undefined) conditions.push(`${left} > ${row(bind(range.after))}`);
    if (range.upto !== undefined) conditions.push(`${left} <= ${row(bind(range.upto))}`);
    if (scope !== undefined && target.scope !== undefined)
      conditions.push(`t.${quoteIdentifier(target.scope.name)} = $${parameters.push(scope)}::${target.scope.type}`);
    return { sql: conditions.length === 0 ? '' : ` WHERE ${conditions.join(' AND ')}`, parameters };
  }

  function rangeStatement(range: KeyRange, scope: string | undefined): string {
    return `${rowSelect} FROM ${table} t${where(range, scope).sql} ORDER BY ${keyOrder}`;
  }

  function rowOf(row: Row): CellRow {
    return {
      key: row.slice(0, keyCount) as string[],
      scope: row[keyCount] as string | null,
      values: row.slice(keyCount + 1) as (string | null)[],
    };
  }

  /** `unnest` of the key arrays, one parameter per key column, with the position as `i`. */
  function keysJoin(alias: string): string {
    const arrays = target.key.map((column, part) => `$${part + 1}::text[]::${column.type}[]`).join(', ');
    const names = target.key.map((_, part) => `k${part}`).join(', ');
    return `unnest(${arrays}) WITH ORDINALITY AS ${alias}(${names}, i)`;
  }

  const joinOnKey = keyNames.map((name, part) => `${name} = u.k${part}`).join(' AND ');

  function keyArrays(keys: readonly RowKey[]): Buffer[] {
    return target.key.map((_, part) =>
      packArray(
        'text',
        keys.map((key) => key[part] ?? null),
      ),
    );
  }

  return {
    async readRange(client, range, limit, scope) {
      const { parameters } = where(range, scope);
      const { rows } = await client.query(`${rangeStatement(range, scope)} LIMIT ${limit}`, parameters);
      return rows.map(rowOf);
    },
    async readSome(client, condition, parameters, limit) {
      const { rows } = await client.query(`${rowSelect} FROM ${table} t WHERE ${condition} LIMIT ${limit}`, [
        ...parameters,
      ]);
      return rows.map(rowOf);
    },
    async readRows(client, keys) {
      const { rows } = await client.query(
        `${rowSelect} FROM ${keysJoin('u')} JOIN ${table} t ON ${joinOnKey} ORDER BY u.i`,
        keyArrays(keys),
      );
      return rows.map(rowOf);
    },
    async readRowsUpTo(client, keys, maxBytes) {
      // Lengths are known without reading what lies out of line; a document's is its length as stored.
      const sizes = target.columns.map(({ sqlType }, at) =>
        sqlType === 'jsonb' ? `pg_column_size(${columnNames[at]})` : `octet_length(${columnNames[at]})`,
      );
      const bytes = sizes.map((size) => `coalesce(${size}, 0)`).join(' + ');
      const sized = `SELECT u.*, sum(${bytes}) OVER (ORDER BY u.i) - (${bytes}) AS before FROM ${keysJoin('u')} JOIN ${table} t ON ${joinOnKey}`;
      const { rows } = await client.query(
        `${rowSelect}, u.i FROM (${sized}) u JOIN ${table} t ON ${joinOnKey} WHERE u.before < $${keyCount + 1} ORDER BY u.i`,
        [...keyArrays(keys), maxBytes],
      );
      const last = rows.at(-1)?.at(-1);
      return {
        rows: rows.map((row) => rowOf(row.slice(0, -1))),
        left: last === undefined ? [] : keys.slice(Number(last)),
      };
    },
    async lockUnlessBusy(client, { keys, rows: wanted }) {
      const locking = `SELECT u.i FROM ${keysJoin('u')} JOIN ${table} t ON ${joinOnKey} ORDER BY ${keyOrder} FOR NO KEY UPDATE OF t SKIP LOCKED`;
      const { rows } = await client.query(positionsStatement(locking, wanted), keys);
      return positionsOf(rows);
    },
    async replaceIfUnchanged(client, replacements, locked) {
      const parameters: unknown[] = [...replacements.keys];
      const unnested = target.key.map((column, part) => `$${part + 1}::text[]::${column.type}[]`);
      const names = target.key.map((_, part) => `k${part}`);
      const touched = target.columns.flatMap((column, at) => {
        const arrays = replacements.columns[at];
        return arrays === undefined ? [] : [{ column, at, arrays }];
      });
      for (const { column, at, arrays } of touched) {
        const type = column.sqlType === 'bytea' ? 'bytea[]' : 'text[]';
        unnested.push(`$${parameters.push(arrays.read)}::${type}`, `$${parameters.push(arrays.replacement)}::${type}`);
        names.push(`o${at}`, `n${at}`);
      }
      // Byte for byte: under the column's own collation two envelopes that differ in case may be equal.
      const conditions = touched.map(
        ({ column, at }) =>
          `(u.n${at} IS NULL OR ${cellExpressions[at]} = u.o${at}${column.sqlType === 'bytea' ? '' : ' COLLATE "C"'})`,
      );
      if (locked !== 'all') {
        unnested.push(
          `$${parameters.push(Array.from({ length: replacements.rows }, (_, position) => locked.has(position)))}::boolean[]`,
        );
        names.push('locked');
        conditions.push('u.locked');
      }
      const update = `UPDATE ${table} t SET ${assignments(touched)} FROM unnest(${unnested.join(', ')}) WITH ORDINALITY AS u(${names.join(', ')}, i)
        WHERE ${joinOnKey} AND ${conditions.join(' AND ')} RETURNING u.i`;
      const { rows } = await client.query(positionsStatement(update, replacements.rows), parameters);
      return positionsOf(rows);
    },
    async lastKeyOfNext(client, range, rows, scope) {
      const { sql, parameters } = where(range, scope);
      const inner = `SELECT ${keyNames.map((name, part) => `${name} AS k${part}`).join(', ')} FROM ${table} t${sql} ORDER BY ${keyOrder} LIMIT ${rows}`;
      const parts = target.key.map((_, part) => `k${part}`);
      const { rows: found } = await client.query(
        `SELECT ${parts.map((part) => `${part}::text`).join(', ')} FROM (${inner}) s ORDER BY ${parts.map((part) => `s.${part} DESC`).join(', ')} LIMIT 1`,
        parameters,
      );
      return found[0] as RowKey | undefined;
    },
    async keysOfNext(client, range, rows, scope) {
      const { sql, parameters } = where(range, scope);
      const { rows: found } = await client.query(
        `SELECT ${keyTexts} FROM ${table} t${sql} ORDER BY ${keyOrder} LIMIT ${rows}`,
        parameters,
      );
      return found as readonly RowKey[];
    },
    async highestKey(client) {
      const { rows } = await client.query(
        `SELECT ${keyTexts} FROM ${table} t ORDER BY ${keyNames.map((name) => `${name} DESC`).join(', ')} LIMIT 1`,
      );
      return rows[0] as RowKey | undefined;
    },
    async estimateRows(client, scope) {
      const { sql, parameters } = where({ after: undefined, upto: undefined }, scope);
      const { rows } = await client.query(`EXPLAIN (FORMAT JSON) SELECT 1 FROM ${table} t${sql}`, parameters);
      const [explained] = (rows[0]?.[0] ?? []) as { Plan?: { 'Plan Rows'?: number } }[];
      return explained?.Plan?.['Plan Rows'] ?? 0;
    },
    async countNot(client, range, scope, predicate) {
      const { sql, parameters } = where(range, scope);
      const cells = cellExpressions.map((expression) => `count(${expression})`).join(' + ');
      const others = target.columns
        .map(
          (column, at) =>
            `count(*) FILTER (WHERE ${cellExpressions[at]} IS NOT NULL AND (${predicate(cellExpressions[at] ?? '', column)}) IS NOT TRUE)`,
        )
        .join(' + ');
      const { rows } = await client.query(`SELECT count(*), ${cells}, ${others} FROM ${table} t${sql}`, parameters);
      const [rowCount, cellCount, otherCount] = rows[0] ?? [];
      return { rows: Number(rowCount), cells: Number(cellCount), others: Number(otherCount) };
    },
  };
}

/** Counts what `statement` answers, and lists the positions (from 1) only where some of the `wanted` are missing. */
function positionsStatement(statement: string, wanted: number): string {
  return `WITH touched AS (${statement}) SELECT CASE WHEN count(*) < ${wanted} THEN coalesce(array_agg(i::int), '{}') END FROM touched`;
}

function positionsOf(rows: readonly Row[]): Positions {
  const listed = rows[0]?.[0];
  return Array.isArray(listed) ? new Set(listed.map((position) => Number(position) - 1)) : 'all';
}

/** The SQL expression of one cell of row `t`. A JSON null is no cell, like NULL. */
export function cellExpression(column: Pick<TargetColumn, 'columnName' | 'path'>, alias = 't'): string {
  const name = `${alias}.${quoteIdentifier(column.columnName)}`;
  return column.path === undefined ? name : `(${name} #>> ${pathLiteral(column.path)})`;
}

export function pathLiteral(path: readonly string[]): string {
  return `ARRAY[${path.map(quoteLiteral).join(', ')}]::text[]`;
}

/** SET list: whole columns get the new value or stay; all paths of one jsonb column nest into one expression. */
function assignments(touched: readonly { readonly column: TargetColumn; readonly at: number }[]): string {
  const byColumn = new Map<string, string>();
  for (const { column, at } of touched) {
    const name = quoteIdentifier(column.columnName);
    const before = byColumn.get(name) ?? `t.${name}`;
    byColumn.set(
      name,
      column.path === undefined
        ? `coalesce(u.n${at}, t.${name})`
        : `CASE WHEN u.n${at} IS NULL THEN ${before} ELSE jsonb_set(${before}, ${pathLiteral(column.path)}, to_jsonb(u.n${at})) END`,
    );
  }
  return [...byColumn].map(([name, expression]) => `${name} = ${expression}`).join(', ');
}
