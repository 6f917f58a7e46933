// The registry of targets: stable ids for tables and columns whose names may change. `init` and `target rename` write it;
// everyone else reads it joined with the catalogue, so that names and types are today's.
import { KeyturnError } from '../errors.js';
import { keyTags, type Target, type TargetColumn } from '../rotation/target.js';
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';

const targetSelect = `
  SELECT t.id, t.keyring_id, r.name, t.table_oid, coalesce(n.nspname, t.schema_name), coalesce(c.relname, t.table_name), c.oid IS NOT NULL,
    (SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, NULL)) ORDER BY k.position)
       FROM unnest(t.key_attributes) WITH ORDINALITY AS k(attribute, position)
       JOIN pg_attribute a ON a.attrelid = t.table_oid AND a.attnum = k.attribute AND NOT a.attisdropped),
    (SELECT jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, NULL))
       FROM pg_attribute a WHERE a.attrelid = t.table_oid AND a.attnum = t.scope_attribute AND NOT a.attisdropped),
    (SELECT jsonb_agg(jsonb_build_object('id', e.id, 'name', e.name, 'columnName', coalesce(a.attname, e.column_name), 'path', e.path,
        'type', format_type(a.atttypid, NULL), 'maxLength', CASE WHEN a.atttypid = 'varchar'::regtype AND a.atttypmod > 4 THEN a.atttypmod - 4 END,
        'format', e.format, 'bind', e.bind) ORDER BY e.attribute, e.name)
       FROM keyturn.target_column e
       LEFT JOIN pg_attribute a ON a.attrelid = t.table_oid AND a.attnum = e.attribute AND NOT a.attisdropped
       WHERE e.target_id = t.id)
  FROM keyturn.target t
  JOIN keyturn.keyring r ON r.id = t.keyring_id
  LEFT JOIN pg_class c ON c.oid = t.table_oid
  LEFT JOIN pg_namespace n ON n.oid = c.relnamespace`;

interface ColumnJson {
  id: string;
  name: string;
  columnName: string;
  path: string[] | null;
  type: string | null;
  maxLength: number | null;
  format: string;
  bind: 'row' | 'column';
}

/** Targets of all keyrings, by name. Tables that were dropped are left out. */
export async function listTargets(database: Queryable): Promise<readonly Target[]> {
  const { rows } = await database.query(`${targetSelect} WHERE c.oid IS NOT NULL ORDER BY 5, 6`);
  return rows.map(targetOf);
}

/** Throws TARGET_NOT_FOUND. */
export async function getTarget(database: Queryable, id: string): Promise<Target> {
  const { rows } = await database.query(`${targetSelect} WHERE t.id = $1 AND c.oid IS NOT NULL`, [id]);
  if (rows[0] === undefined) throw new KeyturnError('TARGET_NOT_FOUND', `target ${id} is not registered or its table was dropped; see: keyturn target list`, { target: id });
  return targetOf(rows[0]);
}

function targetOf(row: readonly unknown[]): Target {
  const [id, keyringId, keyringName, oid, schema, table, , key, scope, columns] = row;
  const title = `${String(schema)}.${String(table)}`;
  return {
    id: String(id),
    keyringId: String(keyringId),
    keyringName: String(keyringName),
    tableOid: Number(oid),
    schema: String(schema),
    table: String(table),
    key: ((key as { name: string; type: string }[] | null) ?? []).map(({ name, type }) => {
      const tag = keyTags[type];
      if (tag === undefined) throw new KeyturnError('TARGET_INVALID', `primary key column ${title}.${name} is now ${type}; expected ${Object.keys(keyTags).join(', ')}`, { target: title });
      return { name, type, tag };
    }),
    scope: (scope as { name: string; type: string } | null) ?? undefined,
    columns: ((columns as ColumnJson[] | null) ?? []).map((column) => columnOf(title, column)),
  };
}

const sqlTypes: Readonly<Record<string, TargetColumn['sqlType']>> = { text: 'text', 'character varying': 'varchar', bytea: 'bytea', jsonb: 'jsonb' };

/** The column type under the name the registry uses; undefined for types that hold no envelopes. */
export function columnType(type: string): TargetColumn['sqlType'] | undefined {
  return sqlTypes[type];
}

function columnOf(title: string, column: ColumnJson): TargetColumn {
  const sqlType = column.type === null ? undefined : columnType(column.type);
  if (sqlType === undefined) {
    throw new KeyturnError('TARGET_INVALID', `registered column ${title}.${column.name} is ${column.type ?? 'gone'}; expected text, varchar, bytea or jsonb; see: keyturn doctor`, { target: title, column: column.name });
  }
  return {
    id: column.id,
    name: column.name,
    columnName: column.columnName,
    path: column.path ?? undefined,
    sqlType,
    maxLength: column.maxLength ?? undefined,
    format: column.format,
    bind: column.bind,
  };
}

export interface RegisteredTarget {
  readonly id: string;
  readonly keyringId: string;
  readonly tableOid: number;
  readonly schema: string;
  readonly table: string;
  readonly keyAttributes: readonly number[];
  readonly scopeAttribute: number | undefined;
  readonly columns: readonly RegisteredColumn[];
}

export interface RegisteredColumn {
  readonly id: string;
  readonly name: string;
  readonly attribute: number;
  readonly columnName: string;
  readonly path: readonly string[] | undefined;
  readonly format: string;
  readonly bind: 'row' | 'column';
}

/** The registry's own rows, as last written: what `init` compares the file and the catalogue with. */
export async function listRegistered(database: Queryable): Promise<readonly RegisteredTarget[]> {
  const { rows } = await database.query(
    `SELECT t.id, t.keyring_id, t.table_oid, t.schema_name, t.table_name, t.key_attributes, t.scope_attribute,
       coalesce((SELECT jsonb_agg(jsonb_build_object('id', e.id, 'name', e.name, 'attribute', e.attribute, 'columnName', e.column_name, 'path', e.path, 'format', e.format, 'bind', e.bind))
         FROM keyturn.target_column e WHERE e.target_id = t.id), '[]')
     FROM keyturn.target t ORDER BY t.schema_name, t.table_name`,
  );
  return rows.map(([id, keyringId, oid, schema, table, keyAttributes, scopeAttribute, columns]) => ({
    id: String(id),
    keyringId: String(keyringId),
    tableOid: Number(oid),
    schema: String(schema),
    table: String(table),
    keyAttributes: keyAttributes as number[],
    scopeAttribute: scopeAttribute === null ? undefined : Number(scopeAttribute),
    columns: (columns as (Omit<RegisteredColumn, 'path'> & { path: string[] | null })[]).map((column) => ({ ...column, path: column.path ?? undefined })),
  }));
}

export async function insertTarget(client: Queryable, target: RegisteredTarget): Promise<void> {
  await client.query('INSERT INTO keyturn.target (id, keyring_id, table_oid, schema_name, table_name, key_attributes, scope_attribute) VALUES ($1, $2, $3, $4, $5, $6, $7)', [
    target.id,
    target.keyringId,
    target.tableOid,
    target.schema,
    target.table,
    target.keyAttributes,
    target.scopeAttribute ?? null,
  ]);
  await writeAudit(client, { action: 'target.register', object: `target ${target.schema}.${target.table}`, after: { id: target.id } });
  for (const column of target.columns) await insertColumn(client, target, column);
}

export async function insertColumn(client: Queryable, target: RegisteredTarget, column: RegisteredColumn): Promise<void> {
  await client.query('INSERT INTO keyturn.target_column (id, target_id, name, attribute, column_name, path, format, bind) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)', [
    column.id,
    target.id,
    column.name,
    column.attribute,
    column.columnName,
    column.path ?? null,
    column.format,
    column.bind,
  ]);
  await writeAudit(client, { action: 'target.column', object: `column ${target.schema}.${target.table}.${column.name}`, after: { id: column.id, format: column.format, bind: column.bind } });
}

/** Follows a rename or a re-created table: the ids stay, so the envelopes stay readable. */
export async function renameTarget(client: Queryable, target: RegisteredTarget, now: { tableOid: number; schema: string; table: string; keyAttributes: readonly number[]; scopeAttribute: number | undefined }): Promise<void> {
  await client.query('UPDATE keyturn.target SET table_oid = $2, schema_name = $3, table_name = $4, key_attributes = $5, scope_attribute = $6 WHERE id = $1', [
    target.id,
    now.tableOid,
    now.schema,
    now.table,
    now.keyAttributes,
    now.scopeAttribute ?? null,
  ]);
  await writeAudit(client, { action: 'target.rename', object: `target ${target.id}`, before: { table: `${target.schema}.${target.table}` }, after: { table: `${now.schema}.${now.table}` } });
}

export async function renameColumn(client: Queryable, target: RegisteredTarget, column: RegisteredColumn, now: { name: string; attribute: number; columnName: string }): Promise<void> {
  await client.query('UPDATE keyturn.target_column SET name = $2, attribute = $3, column_name = $4 WHERE id = $1', [column.id, now.name, now.attribute, now.columnName]);
  await writeAudit(client, { action: 'target.column.rename', object: `column ${column.id}`, before: { name: `${target.schema}.${target.table}.${column.name}` }, after: { name: `${target.schema}.${target.table}.${now.name}` } });
}
