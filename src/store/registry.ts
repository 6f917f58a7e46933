// The registry of targets: stable ids for tables and columns whose names may change. `init` and `target rename` write it;
// everyone else reads it joined with the catalogue, so that names and types are today's.
import { KeyturnError } from '../errors.js';
import { keyTags, type KeyColumn, type KeyTag, type Target, type TargetColumn } from '../rotation/target.js';
import { writeAudit } from './audit.js';
import type { CatalogTable } from './catalog.js';
import type { Queryable } from './database.js';

/** `columns`: which of target_column `e`, as a condition. */
const targetSelect = (columns: string): string => `
  SELECT t.id, t.keyring_id, r.name, t.table_oid, coalesce(n.nspname, t.schema_name), coalesce(c.relname, t.table_name), c.oid IS NOT NULL,
    (SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, NULL)) ORDER BY k.position)
       FROM unnest(t.key_attributes) WITH ORDINALITY AS k(attribute, position)
       JOIN pg_attribute a ON a.attrelid = t.table_oid AND a.attnum = k.attribute AND NOT a.attisdropped),
    (SELECT jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, NULL))
       FROM pg_attribute a WHERE a.attrelid = t.table_oid AND a.attnum = t.scope_attribute AND NOT a.attisdropped),
    (SELECT jsonb_agg(jsonb_build_object('id', e.id, 'name', e.name, 'columnName', coalesce(a.attname, e.column_name), 'path', e.path,
        'type', format_type(a.atttypid, NULL), 'maxLength', CASE WHEN a.atttypid = 'varchar'::regtype AND a.atttypmod > 4 THEN a.atttypmod - 4 END,
        'format', e.format, 'bind', e.bind, 'awaitsAdoption', e.awaits_adoption, 'isLeft', e.left_at IS NOT NULL) ORDER BY e.attribute, e.name)
       FROM keyturn.target_column e
       LEFT JOIN pg_attribute a ON a.attrelid = t.table_oid AND a.attnum = e.attribute AND NOT a.attisdropped
       WHERE e.target_id = t.id AND ${columns}),
    t.key_tags
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
  awaitsAdoption: boolean;
  isLeft: boolean;
}

const isRegistered = 'e.left_at IS NULL';
/** Left, not registered anew since, and still of a type that may hold values of ours. */
const isStillThere = `e.left_at IS NOT NULL AND format_type(a.atttypid, NULL) IN ('text', 'character varying', 'bytea')
  AND NOT EXISTS (SELECT FROM keyturn.target_column o WHERE o.target_id = e.target_id AND o.attribute = e.attribute AND (o.left_at IS NULL OR o.left_at > e.left_at))`;

/** The table is there, and a column of it has not been left. */
const isPresent = `c.oid IS NOT NULL AND EXISTS (SELECT FROM keyturn.target_column e WHERE e.target_id = t.id AND e.left_at IS NULL)`;

/**
 * Targets of one keyring, or of all, by name. Tables that were dropped are left out; throws TARGET_INVALID for one that
 * has lost what its envelopes need.
 */
export async function listTargets(database: Queryable, keyringId?: string): Promise<readonly Target[]> {
  const { rows } = await database.query(
    `${targetSelect(isRegistered)} WHERE ${isPresent} AND ($1::uuid IS NULL OR t.keyring_id = $1) ORDER BY 5, 6`,
    [keyringId ?? null],
  );
  return rows.map(targetOf);
}

/** With the columns that were left, and the targets of which nothing else remains: what entities of an application may name. */
export async function listTargetsOfEntities(database: Queryable): Promise<readonly Target[]> {
  const { rows } = await database.query(
    `${targetSelect(`(${isRegistered} OR (${isStillThere}))`)} WHERE c.oid IS NOT NULL ORDER BY 5, 6`,
  );
  return rows.flatMap((row) => {
    const columns = (row[9] as ColumnJson[] | null) ?? [];
    if (columns.some(({ isLeft }) => !isLeft)) return [targetOf(row)];
    try {
      return columns.length === 0 ? [] : [targetOf(row)];
    } catch {
      // Nothing is bound to what such a table has lost.
      return [];
    }
  });
}

/** Throws TARGET_NOT_FOUND. */
export async function getTarget(database: Queryable, id: string): Promise<Target> {
  const { rows } = await database.query(`${targetSelect(isRegistered)} WHERE t.id = $1 AND ${isPresent}`, [id]);
  if (rows[0] === undefined)
    throw new KeyturnError(
      'TARGET_NOT_FOUND',
      `target ${id} is not registered or its table was dropped; see: keyturn target list`,
      { target: id },
    );
  return targetOf(rows[0]);
}

function targetOf(row: readonly unknown[]): Target {
  const [id, keyringId, keyringName, oid, schema, table, , key, scope, columns, tags] = row;
  const title = `${String(schema)}.${String(table)}`;
  return {
    id: String(id),
    keyringId: String(keyringId),
    keyringName: String(keyringName),
    tableOid: Number(oid),
    schema: String(schema),
    table: String(table),
    key: keyOf(title, (key as { name: string; type: string }[] | null) ?? [], tags as KeyTag[]),
    scope: (scope as { name: string; type: string } | null) ?? undefined,
    columns: ((columns as ColumnJson[] | null) ?? []).map((column) => columnOf(title, column)),
  };
}

/** Envelopes are bound to the key as it was when the target was registered: as many columns, of the same kinds. */
function keyOf(
  title: string,
  key: readonly { name: string; type: string }[],
  tags: readonly KeyTag[],
): readonly KeyColumn[] {
  if (key.length !== tags.length)
    throw new KeyturnError(
      'TARGET_INVALID',
      `a primary key column of ${title} is gone, and its envelopes are bound to it; see: keyturn doctor`,
      { target: title },
    );
  return key.map(({ name, type }, part) => {
    const [tag, bound] = [keyTags[type], tags[part]];
    if (tag !== undefined && tag === bound) return { name, type, tag };
    throw new KeyturnError(
      'TARGET_INVALID',
      `primary key column ${title}.${name} is now ${type}, and its envelopes are bound to it as ${bound ?? '?'}; see: keyturn doctor`,
      { target: title },
    );
  });
}

const sqlTypes: Readonly<Record<string, TargetColumn['sqlType']>> = {
  text: 'text',
  'character varying': 'varchar',
  bytea: 'bytea',
  jsonb: 'jsonb',
};

/** The column type under the name the registry uses; undefined for types that hold no envelopes. */
export function columnType(type: string): TargetColumn['sqlType'] | undefined {
  return sqlTypes[type];
}

function columnOf(title: string, column: ColumnJson): TargetColumn {
  const sqlType = column.type === null ? undefined : columnType(column.type);
  if (sqlType === undefined) {
    throw new KeyturnError(
      'TARGET_INVALID',
      `registered column ${title}.${column.name} is ${column.type ?? 'gone'}; expected text, varchar, bytea or jsonb; see: keyturn doctor`,
      { target: title, column: column.name },
    );
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
    ...(column.awaitsAdoption ? { awaitsAdoption: true } : {}),
    ...(column.isLeft ? { isLeft: true } : {}),
  };
}

export interface RegisteredTarget {
  readonly id: string;
  readonly keyringId: string;
  readonly tableOid: number;
  readonly schema: string;
  readonly table: string;
  /** In key order; names and kinds are those of the registration. */
  readonly keyAttributes: readonly number[];
  readonly keyNames: readonly string[];
  readonly keyTags: readonly KeyTag[];
  readonly scopeAttribute: number | undefined;
  readonly scopeName: string | undefined;
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
  readonly awaitsAdoption: boolean;
}

/** The registry's own rows, as last written: what `init` compares the file and the catalogue with. */
export async function listRegistered(database: Queryable): Promise<readonly RegisteredTarget[]> {
  const { rows } = await database.query(
    `SELECT t.id, t.keyring_id, t.table_oid, t.schema_name, t.table_name, t.key_attributes, t.key_names, t.key_tags, t.scope_attribute, t.scope_name,
       coalesce((SELECT jsonb_agg(jsonb_build_object('id', e.id, 'name', e.name, 'attribute', e.attribute, 'columnName', e.column_name, 'path', e.path, 'format', e.format, 'bind', e.bind, 'awaitsAdoption', e.awaits_adoption) ORDER BY e.attribute, e.name)
         FROM keyturn.target_column e WHERE e.target_id = t.id AND e.left_at IS NULL), '[]')
     FROM keyturn.target t ORDER BY t.schema_name, t.table_name`,
  );
  return rows.map(
    ([id, keyringId, oid, schema, table, keyAttributes, keyNames, tags, scopeAttribute, scopeName, columns]) => ({
      id: String(id),
      keyringId: String(keyringId),
      tableOid: Number(oid),
      schema: String(schema),
      table: String(table),
      keyAttributes: keyAttributes as number[],
      keyNames: keyNames as string[],
      keyTags: tags as KeyTag[],
      scopeAttribute: scopeAttribute === null ? undefined : Number(scopeAttribute),
      scopeName: scopeName === null ? undefined : String(scopeName),
      columns: (columns as (Omit<RegisteredColumn, 'path'> & { path: string[] | null })[]).map((column) => ({
        ...column,
        path: column.path ?? undefined,
      })),
    }),
  );
}

/** The primary key of a table as the registry keeps it. The kind of a type that no key may have is undefined. */
export function keyOfTable(table: CatalogTable): {
  keyAttributes: readonly number[];
  keyNames: readonly string[];
  keyTags: readonly (KeyTag | undefined)[];
} {
  const columns = table.keyAttributes.map((attribute) =>
    table.columns.find((column) => column.attribute === attribute),
  );
  return {
    keyAttributes: table.keyAttributes,
    keyNames: columns.map((column) => column?.name ?? ''),
    keyTags: columns.map((column) => (column === undefined || column.isDomain ? undefined : keyTags[column.type])),
  };
}

/**
 * What the envelopes of a target are bound to and `table` has otherwise; empty where they stay readable in it. A table
 * that was only renamed is compared by attribute number, another table by the names of its columns.
 */
export function bindingsLost(
  target: RegisteredTarget,
  table: CatalogTable,
  scopeColumn: string | undefined,
): readonly string[] {
  const isSameTable = target.tableOid === table.oid;
  const key = keyOfTable(table);
  const scope = table.columns.find((column) => column.name === scopeColumn);
  const isSameKey = isSameTable
    ? isEqual(target.keyAttributes, key.keyAttributes)
    : isEqual(target.keyNames, key.keyNames);
  const isSameScope = isSameTable ? target.scopeAttribute === scope?.attribute : target.scopeName === scope?.name;
  return [
    ...(isSameKey && isEqual(target.keyTags, key.keyTags) ? [] : ['its primary key']),
    ...(isSameScope ? [] : ['its scope column']),
  ];
}

function isEqual(one: readonly unknown[], other: readonly unknown[]): boolean {
  return one.length === other.length && one.every((part, at) => part === other[at]);
}

export function placeOf(table: CatalogTable, scopeColumn: string | undefined): TargetPlace {
  const { keyAttributes, keyNames } = keyOfTable(table);
  const scope = table.columns.find((column) => column.name === scopeColumn);
  return {
    tableOid: table.oid,
    schema: table.schema,
    table: table.table,
    keyAttributes,
    keyNames,
    scopeAttribute: scope?.attribute,
    scopeName: scope?.name,
  };
}

export async function insertTarget(
  client: Queryable,
  target: RegisteredTarget,
  reason: string | undefined,
): Promise<void> {
  await client.query(
    `INSERT INTO keyturn.target (id, keyring_id, table_oid, schema_name, table_name, key_attributes, key_names, key_tags, scope_attribute, scope_name)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
    [
      target.id,
      target.keyringId,
      target.tableOid,
      target.schema,
      target.table,
      target.keyAttributes,
      target.keyNames,
      target.keyTags,
      target.scopeAttribute ?? null,
      target.scopeName ?? null,
    ],
  );
  await writeAudit(client, {
    action: 'target.register',
    object: `target ${target.schema}.${target.table}`,
    reason,
    after: { id: target.id },
  });
  for (const column of target.columns) await insertColumn(client, target, column, reason);
}

export async function insertColumn(
  client: Queryable,
  target: RegisteredTarget,
  column: RegisteredColumn,
  reason: string | undefined,
): Promise<void> {
  await client.query(
    'INSERT INTO keyturn.target_column (id, target_id, name, attribute, column_name, path, format, bind, awaits_adoption) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)',
    [
      column.id,
      target.id,
      column.name,
      column.attribute,
      column.columnName,
      column.path ?? null,
      column.format,
      column.bind,
      column.awaitsAdoption,
    ],
  );
  await writeAudit(client, {
    action: 'target.column',
    object: `column ${target.schema}.${target.table}.${column.name}`,
    reason,
    after: {
      id: column.id,
      format: column.format,
      bind: column.bind,
      ...(column.awaitsAdoption ? { awaitsAdoption: true } : {}),
    },
  });
}

/** Its values turned out to be envelopes all the same. */
export async function endAwaiting(client: Queryable, column: RegisteredColumn): Promise<void> {
  await client.query('UPDATE keyturn.target_column SET awaits_adoption = false WHERE id = $1', [column.id]);
}

/** Where a target is now, as the catalogue says. */
export type TargetPlace = Pick<
  RegisteredTarget,
  'tableOid' | 'schema' | 'table' | 'keyAttributes' | 'keyNames' | 'scopeAttribute' | 'scopeName'
>;

/** Follows a rename or a re-created table: the ids stay, so the envelopes stay readable. */
export async function renameTarget(
  client: Queryable,
  target: RegisteredTarget,
  now: TargetPlace,
  reason: string | undefined,
): Promise<void> {
  await client.query(
    `UPDATE keyturn.target SET table_oid = $2, schema_name = $3, table_name = $4, key_attributes = $5, key_names = $6, scope_attribute = $7, scope_name = $8
     WHERE id = $1`,
    [
      target.id,
      now.tableOid,
      now.schema,
      now.table,
      now.keyAttributes,
      now.keyNames,
      now.scopeAttribute ?? null,
      now.scopeName ?? null,
    ],
  );
  await writeAudit(client, {
    action: 'target.rename',
    object: `target ${target.id}`,
    reason,
    before: { table: `${target.schema}.${target.table}` },
    after: { table: `${now.schema}.${now.table}` },
  });
}

/** `schema.table` before the last rename that was recorded; undefined where there was none. */
export async function findFormerTable(
  database: Queryable,
  target: Pick<RegisteredTarget, 'id'>,
): Promise<string | undefined> {
  const { rows } = await database.query(
    `SELECT before::jsonb ->> 'table' FROM keyturn.audit WHERE action = 'target.rename' AND object = $1 ORDER BY id DESC LIMIT 1`,
    [`target ${target.id}`],
  );
  return rows[0] === undefined ? undefined : String(rows[0][0]);
}

export async function renameColumn(
  client: Queryable,
  target: RegisteredTarget,
  column: RegisteredColumn,
  now: { name: string; attribute: number; columnName: string },
  reason: string | undefined,
): Promise<void> {
  await client.query('UPDATE keyturn.target_column SET name = $2, attribute = $3, column_name = $4 WHERE id = $1', [
    column.id,
    now.name,
    now.attribute,
    now.columnName,
  ]);
  await writeAudit(client, {
    action: 'target.column.rename',
    object: `column ${column.id}`,
    reason,
    before: { name: `${target.schema}.${target.table}.${column.name}` },
    after: { name: `${target.schema}.${target.table}.${now.name}` },
  });
}
