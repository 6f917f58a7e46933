// What the PostgreSQL catalogue says of a table: everything that registration and `doctor` decide on. Reads only.
import type { Queryable, Row } from './database.js';

export interface CatalogColumn {
  readonly attribute: number;
  readonly name: string;
  /** format_type without modifier, e.g. `character varying`. */
  readonly type: string;
  /** n of varchar(n). */
  readonly maxLength: number | undefined;
  readonly isGenerated: boolean;
  readonly isDomain: boolean;
  /** GENERATED ALWAYS AS IDENTITY: only the database can make its values. */
  readonly isAlwaysIdentity: boolean;
  readonly hasDefault: boolean;
  /** The default takes the next number of a sequence and nothing else. */
  readonly isNumbered: boolean;
  /** Its collation may call different texts equal. */
  readonly isLooselyCollated: boolean;
}

export interface CatalogTrigger {
  readonly name: string;
  readonly definition: string;
  /** Of `UPDATE OF …`; undefined where any update fires it. */
  readonly columns: readonly string[] | undefined;
  /** The WHEN clause mentions the setting that every write of the engine carries. */
  readonly optsOut: boolean;
}

export interface CatalogTable {
  readonly oid: number;
  readonly schema: string;
  readonly table: string;
  /** pg_class.relkind: r table, p partitioned, v view, m materialized view, f foreign. */
  readonly kind: string;
  readonly columns: readonly CatalogColumn[];
  /** Attribute numbers in key order; empty without a primary key. */
  readonly keyAttributes: readonly number[];
  readonly isKeyDeferrable: boolean;
  /** `none`, `others`: it applies to roles that are neither owner nor BYPASSRLS; `applies`: to the connected role. */
  readonly rowSecurity: 'none' | 'others' | 'applies';
  /** The table this one is a partition of. */
  readonly partitionOf: string | undefined;
  /** Rules that rewrite an UPDATE. */
  readonly updateRules: readonly string[];
  readonly updateTriggers: readonly CatalogTrigger[];
  readonly foreignPartitions: readonly string[];
  /** Inheritance children that are not partitions. */
  readonly inheritingTables: readonly string[];
  /** What is built on each attribute. */
  readonly dependents: readonly CatalogDependent[];
  /** As the statistics know it, all partitions together; 0 before the first ANALYZE. */
  readonly estimatedRows: number;
  /** With indexes and TOAST, all partitions together. */
  readonly totalBytes: number;
}

export interface CatalogDependent {
  readonly attribute: number;
  readonly kind: 'index' | 'unique index' | 'check' | 'foreign key' | 'generated column' | 'view';
  readonly name: string;
}

/** Undefined when there is no such relation. */
export async function findTable(
  database: Queryable,
  name: { schema: string; table: string } | { oid: number },
): Promise<CatalogTable | undefined> {
  const [where, parameters] =
    'oid' in name ? ['c.oid = $1', [name.oid]] : ['n.nspname = $1 AND c.relname = $2', [name.schema, name.table]];
  const { rows } = await database.query(
    `SELECT c.oid, n.nspname, c.relname, c.relkind, s.rows, s.bytes,
       CASE WHEN row_security_active(c.oid) THEN 'applies' WHEN c.relrowsecurity THEN 'others' ELSE 'none' END,
       p.conkey, coalesce(p.condeferrable, false),
       (SELECT i.inhparent::regclass::text FROM pg_inherits i WHERE i.inhrelid = c.oid AND c.relispartition),
       ARRAY(SELECT w.rulename::text FROM pg_rewrite w WHERE w.ev_class = c.oid AND w.ev_type = '2' AND w.ev_enabled IN ('O', 'A') ORDER BY 1)
     FROM pg_class c
     CROSS JOIN LATERAL (
       SELECT sum(greatest(l.reltuples, 0)) AS rows, sum(pg_total_relation_size(l.oid)) AS bytes FROM pg_class l
       WHERE (c.relkind <> 'p' AND l.oid = c.oid) OR (c.relkind = 'p' AND l.oid IN (SELECT relid FROM pg_partition_tree(c.oid) WHERE isleaf))) s
     JOIN pg_namespace n ON n.oid = c.relnamespace
     LEFT JOIN pg_constraint p ON p.conrelid = c.oid AND p.contype = 'p'
     WHERE ${where} AND c.relkind IN ('r', 'p', 'v', 'm', 'f')`,
    parameters,
  );
  const row = rows[0];
  if (row === undefined) return undefined;
  const oid = Number(row[0]);
  const [columns, updateTriggers, foreignPartitions, inheritingTables, dependents] = [
    await listColumns(database, oid),
    await listUpdateTriggers(database, oid),
    await listForeignPartitions(database, oid),
    await listInheritingTables(database, oid),
    await listDependents(database, oid),
  ];
  return {
    oid,
    schema: String(row[1]),
    table: String(row[2]),
    kind: String(row[3]),
    columns,
    keyAttributes: (row[7] as number[] | null) ?? [],
    isKeyDeferrable: row[8] === true,
    rowSecurity: String(row[6]) as CatalogTable['rowSecurity'],
    partitionOf: row[9] === null ? undefined : String(row[9]),
    updateRules: row[10] as string[],
    updateTriggers,
    foreignPartitions,
    inheritingTables,
    dependents,
    estimatedRows: Number(row[4]),
    totalBytes: Number(row[5]),
  };
}

async function listColumns(database: Queryable, oid: number): Promise<readonly CatalogColumn[]> {
  const { rows } = await database.query(
    `SELECT a.attnum, a.attname, format_type(a.atttypid, NULL), a.atttypmod, a.attgenerated <> '', t.typtype = 'd', a.atttypid = 'varchar'::regtype,
       a.atthasdef AND a.attgenerated = '', NOT coalesce(l.collisdeterministic, true), a.attidentity = 'a',
       coalesce(pg_get_expr(d.adbin, d.adrelid) ~ '^nextval\\(''[^'']+''::regclass\\)$', false)
     FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_collation l ON l.oid = a.attcollation
     LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
     WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum`,
    [oid],
  );
  return rows.map(
    ([
      attribute,
      name,
      type,
      modifier,
      isGenerated,
      isDomain,
      isVarchar,
      hasDefault,
      isLooselyCollated,
      isAlwaysIdentity,
      isNumbered,
    ]) => ({
      attribute: Number(attribute),
      name: String(name),
      type: String(type),
      // varchar keeps n + 4 in its modifier (the length word).
      maxLength: isVarchar === true && Number(modifier) > 4 ? Number(modifier) - 4 : undefined,
      isGenerated: isGenerated === true,
      isDomain: isDomain === true,
      isAlwaysIdentity: isAlwaysIdentity === true,
      isNumbered: isNumbered === true,
      hasDefault: hasDefault === true,
      isLooselyCollated: isLooselyCollated === true,
    }),
  );
}

/** Enabled row and statement triggers that an UPDATE fires, on the table or any partition; foreign-key triggers are internal. */
async function listUpdateTriggers(database: Queryable, oid: number): Promise<readonly CatalogTrigger[]> {
  const { rows } = await database.query(
    `SELECT t.tgname, pg_get_triggerdef(t.oid), pg_get_triggerdef(t.oid) ~ ' WHEN .*keyturn[.]active.* EXECUTE ',
       (SELECT jsonb_agg(a.attname) FROM pg_attribute a WHERE a.attrelid = t.tgrelid AND a.attnum = ANY(t.tgattr::smallint[]))
     FROM pg_trigger t
     WHERE (t.tgrelid = $1 OR t.tgrelid IN (SELECT relid FROM pg_partition_tree($1::regclass)))
       AND NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND (t.tgtype & 16) <> 0 AND t.tgparentid = 0
       AND t.tgfoid IS DISTINCT FROM to_regprocedure('keyturn.refuse_envelope()')
     ORDER BY 1, 2`,
    [oid],
  );
  return rows.map(([name, definition, optsOut, columns]) => ({
    name: String(name),
    definition: String(definition),
    columns: (columns as string[] | null) ?? undefined,
    optsOut: optsOut === true,
  }));
}

async function listForeignPartitions(database: Queryable, oid: number): Promise<readonly string[]> {
  const { rows } = await database.query(
    `SELECT p.relid::regclass::text FROM pg_partition_tree($1::regclass) p JOIN pg_class c ON c.oid = p.relid WHERE c.relkind = 'f'`,
    [oid],
  );
  return rows.map((row) => String(row[0]));
}

async function listInheritingTables(database: Queryable, oid: number): Promise<readonly string[]> {
  const { rows } = await database.query(
    `SELECT i.inhrelid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1 AND NOT c.relispartition`,
    [oid],
  );
  return rows.map((row) => String(row[0]));
}

async function listDependents(database: Queryable, oid: number): Promise<readonly CatalogDependent[]> {
  const { rows } = await database.query(
    `SELECT a.attnum, CASE WHEN (i.indisunique OR i.indisexclusion) AND (a.attnum = ANY((i.indkey::smallint[])[0:i.indnkeyatts - 1])
           OR (i.indexprs IS NOT NULL AND a.attnum <> ALL(i.indkey::smallint[]))) THEN 'unique index' ELSE 'index' END, i.indexrelid::regclass::text
       FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum > 0
       WHERE i.indrelid = $1 AND (a.attnum = ANY(i.indkey::smallint[]) OR EXISTS (
         SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
           AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = a.attnum))
     UNION ALL
     SELECT unnest(k.conkey), CASE k.contype WHEN 'c' THEN 'check' ELSE 'foreign key' END, k.conname FROM pg_constraint k WHERE k.conrelid = $1 AND k.contype IN ('c', 'f')
     UNION ALL
     SELECT d.refobjsubid, 'generated column', g.attname
       FROM pg_attrdef f JOIN pg_attribute g ON g.attrelid = f.adrelid AND g.attnum = f.adnum AND g.attgenerated <> ''
       JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid AND d.refobjid = $1 AND d.refobjsubid > 0 AND d.refobjsubid <> f.adnum
       WHERE f.adrelid = $1
     UNION ALL
     SELECT DISTINCT d.refobjsubid, 'view', v.oid::regclass::text
       FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND d.classid = 'pg_rewrite'::regclass JOIN pg_class v ON v.oid = r.ev_class
       WHERE d.refobjid = $1 AND d.refclassid = 'pg_class'::regclass AND d.refobjsubid > 0 AND v.relkind = 'm'
     ORDER BY 1, 2, 3`,
    [oid],
  );
  return rows.map(([attribute, kind, name]) => ({
    attribute: Number(attribute),
    kind: String(kind) as CatalogDependent['kind'],
    name: String(name),
  }));
}

/** A text, varchar, bytea or jsonb column of the application, for the scan that looks for envelopes nobody registered. */
export interface ApplicationColumn {
  readonly tableOid: number;
  readonly attribute: number;
  readonly schema: string;
  readonly table: string;
  readonly column: string;
  readonly type: 'text' | 'bytes' | 'jsonb';
}

/**
 * Every such column of ordinary, partitioned and materialised relations outside the system's and our own schemas; a domain
 * counts as the type it is made of, however many domains lie between.
 */
export async function listApplicationColumns(database: Queryable): Promise<readonly ApplicationColumn[]> {
  const { rows } = await database.query(
    `WITH RECURSIVE base (type_oid, base_oid) AS (
       SELECT oid, oid FROM pg_type WHERE typtype <> 'd'
       UNION ALL
       SELECT d.oid, base.base_oid FROM base JOIN pg_type d ON d.typtype = 'd' AND d.typbasetype = base.type_oid)
     SELECT c.oid, a.attnum, n.nspname, c.relname, a.attname,
       CASE WHEN b.typname = 'bytea' THEN 'bytes' WHEN b.typname IN ('jsonb', 'json') THEN 'jsonb' ELSE 'text' END
     FROM pg_class c
     JOIN pg_namespace n ON n.oid = c.relnamespace
     JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
     JOIN base ON base.type_oid = a.atttypid
     JOIN pg_type b ON b.oid = base.base_oid
     WHERE c.relkind IN ('r', 'p', 'm') AND NOT c.relispartition AND (c.relkind <> 'm' OR c.relispopulated)
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'keyturn', 'bullmq') AND n.nspname NOT LIKE 'pg\\_%'
       AND (b.typname IN ('text', 'varchar', 'bpchar', 'bytea', 'jsonb', 'json', 'citext'))
     ORDER BY n.nspname, c.relname, a.attnum`,
  );
  return rows.map(applicationColumnOf);
}

function applicationColumnOf([oid, attribute, schema, table, column, type]: Row): ApplicationColumn {
  return {
    tableOid: Number(oid),
    attribute: Number(attribute),
    schema: String(schema),
    table: String(table),
    column: String(column),
    type: String(type) as ApplicationColumn['type'],
  };
}

/** `server_version_num`, e.g. 150020. */
export async function serverVersion(database: Queryable): Promise<number> {
  const { rows } = await database.query(`SELECT current_setting('server_version_num')::int`);
  return Number(rows[0]?.[0]);
}
