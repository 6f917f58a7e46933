// Fences in the database: on every registered table two triggers that refuse a new value whose header names a fenced key. The
// refused headers stand in the triggers themselves, so raising one waits for running writers and binds transactions that
// were open before; a list in a table would do neither. Here they are written, read and compared; engine/fence.ts decides.
import type { ValueKeyName } from '../formats/format.js';
import type { Target, TargetColumn } from '../rotation/target.js';
import type { AlgorithmName } from '../crypto/algorithms.js';
import { writeAudit } from './audit.js';
import { cellExpression } from './cells.js';
import type { FormatOf } from './census.js';
import { quoteIdentifier, quoteLiteral, type Queryable } from './database.js';
import { refuseEnvelopeBody } from './migrations/retirement-statements.js';

/** Row triggers fire in the order of their names, and these are to see what all others have made of the row. */
const events = [
  { event: 'INSERT', name: 'zz_keyturn_fence_insert' },
  { event: 'UPDATE', name: 'zz_keyturn_fence_update' },
] as const;

type FenceEvent = (typeof events)[number]['event'];

/** A fence as it should stand on one table. */
export interface DesiredFence {
  readonly target: Target;
  readonly keyIds: readonly number[];
  /** By event: SQL that gives the id of the refused key a row names; the argument of the trigger. */
  readonly expressions: Readonly<Record<FenceEvent, string>>;
  readonly conditions: Readonly<Record<FenceEvent, string>>;
}

export function desiredFence(target: Target, keys: readonly ValueKeyName[], formatOf: FormatOf): DesiredFence {
  const named = (event: FenceEvent, fresh: string, old: string, refused: readonly ValueKeyName[]): string =>
    target.columns
      .map((column) => {
        const cell = cellExpression(column, fresh);
        const storage = column.sqlType === 'bytea' ? 'bytes' : 'text';
        const names = refused.map((key) => formatOf(target, column).sqlNamesKey(cell, storage, key)).join(' OR ');
        return event === 'INSERT' ? `(${names})` : `((${names}) AND ${changed(column, fresh, old)})`;
      })
      .join(' OR ');
  const expression = (event: FenceEvent): string =>
    `CASE ${keys.map((key) => `WHEN ${named(event, '($1)', '($2)', [key])} THEN ${key.id}`).join(' ')} END`;
  return {
    target,
    keyIds: keys.map((key) => Number(key.id)),
    expressions: { INSERT: expression('INSERT'), UPDATE: expression('UPDATE') },
    conditions: { INSERT: named('INSERT', 'NEW', 'OLD', keys), UPDATE: named('UPDATE', 'NEW', 'OLD', keys) },
  };
}

/** Byte for byte: under the column's own collation two envelopes that differ in case may be equal. */
function changed(column: TargetColumn, fresh: string, old: string): string {
  const collate = column.sqlType === 'bytea' ? '' : ' COLLATE "C"';
  return `${cellExpression(column, fresh)}${collate} IS DISTINCT FROM ${cellExpression(column, old)}${collate}`;
}

function tableName({ schema, table }: { readonly schema: string; readonly table: string }): string {
  return `${quoteIdentifier(schema)}.${quoteIdentifier(table)}`;
}

/** Replacing a trigger sets it back to firing for ordinary sessions alone, so ALWAYS is said again every time. */
export function fenceStatements(fence: DesiredFence, present: readonly PresentTrigger[]): readonly string[] {
  const table = tableName(fence.target);
  if (fence.keyIds.length === 0) return events.map(({ name }) => `DROP TRIGGER IF EXISTS ${name} ON ${table}`);
  const partitions = [...new Set(present.filter(({ isRoot }) => !isRoot).map(({ relation }) => relation))];
  return events.flatMap(({ event, name }) => [
    `CREATE OR REPLACE TRIGGER ${name} BEFORE ${event} ON ${table} FOR EACH ROW WHEN (${fence.conditions[event]}) EXECUTE FUNCTION keyturn.refuse_envelope(${quoteLiteral(fence.expressions[event]).trim()})`,
    `ALTER TABLE ${table} ENABLE ALWAYS TRIGGER ${name}`,
    ...partitions.map((partition) => `ALTER TABLE ${partition} ENABLE ALWAYS TRIGGER ${name}`),
  ]);
}

/** One of the two triggers on the table or on a partition of it, or its absence. */
export interface PresentTrigger {
  /** As SQL names it. */
  readonly relation: string;
  readonly isRoot: boolean;
  readonly name: string;
  readonly oid: number | undefined;
  /** The transaction that wrote it last: equal before and after means nobody touched it in between. */
  readonly xmin: string | undefined;
  readonly firesAlways: boolean;
  readonly definition: string | undefined;
  readonly expression: string | undefined;
}

export async function readTriggers(client: Queryable, tableOid: number): Promise<readonly PresentTrigger[]> {
  const { rows } = await client.query(
    `SELECT format('%I.%I', n.nspname, c.relname), c.oid = $1, g.name, t.oid, t.xmin::text, t.tgenabled = 'A',
       pg_get_triggerdef(t.oid), convert_from(substring(t.tgargs FROM 1 FOR octet_length(t.tgargs) - 1), 'UTF8')
     FROM (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass)) tree
     JOIN pg_class c ON c.oid = tree.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     CROSS JOIN unnest($2::text[]) AS g(name)
     LEFT JOIN pg_trigger t ON t.tgrelid = c.oid AND t.tgname = g.name AND t.tgfoid = to_regprocedure('keyturn.refuse_envelope()')
     ORDER BY c.oid <> $1, 1, g.name`,
    [tableOid, events.map(({ name }) => name)],
  );
  return rows.map(([relation, isRoot, name, oid, xmin, firesAlways, definition, expression]) => ({
    relation: String(relation),
    isRoot: isRoot === true,
    name: String(name),
    oid: oid === null ? undefined : Number(oid),
    xmin: xmin === null ? undefined : String(xmin),
    firesAlways: firesAlways === true,
    definition: definition === null ? undefined : String(definition),
    expression: expression === null ? undefined : String(expression),
  }));
}

/** What of a trigger is kept, and compared with later. */
export interface StoredTrigger {
  readonly name: string;
  readonly oid: number;
  readonly definition: string;
  readonly expression: string;
}

/** Of the table itself: partitions get theirs from it. */
export function storedOf(present: readonly PresentTrigger[]): readonly StoredTrigger[] {
  return present.flatMap(({ isRoot, name, oid, definition, expression }) =>
    isRoot && oid !== undefined && definition !== undefined && expression !== undefined
      ? [{ name, oid, definition, expression }]
      : [],
  );
}

/** What is wrong with the triggers that stand, in words; empty where they are what they should be. */
export function examineTriggers(fence: DesiredFence, present: readonly PresentTrigger[]): readonly string[] {
  if (fence.keyIds.length === 0)
    return present.filter(({ oid }) => oid !== undefined).map(({ relation }) => `${relation} still has one`);
  return present.flatMap((trigger) => {
    const event = events.find(({ name }) => name === trigger.name)?.event ?? 'INSERT';
    if (trigger.oid === undefined) return [`${trigger.relation} has no trigger ${trigger.name}`];
    if (!trigger.firesAlways) return [`trigger ${trigger.name} of ${trigger.relation} does not fire always`];
    if (trigger.expression !== fence.expressions[event])
      return [`trigger ${trigger.name} of ${trigger.relation} is about other keys or columns`];
    return [];
  });
}

/** Compared with what was kept when it was raised: a trigger that says the same and is another one was gone in between. */
export function compareWithStored(
  present: readonly PresentTrigger[],
  stored: readonly StoredTrigger[] | undefined,
): readonly string[] {
  return storedOf(present).flatMap((trigger) => {
    const kept = stored?.find(({ name }) => name === trigger.name);
    if (kept === undefined) return [`trigger ${trigger.name} is not one that keyturn has seen`];
    if (kept.definition !== trigger.definition) return [`trigger ${trigger.name} was altered`];
    return kept.oid === trigger.oid ? [] : [`trigger ${trigger.name} was dropped and created anew`];
  });
}

export async function findStored(client: Queryable, targetId: string): Promise<readonly StoredTrigger[] | undefined> {
  const { rows } = await client.query('SELECT triggers FROM keyturn.fence WHERE target_id = $1', [targetId]);
  return rows[0] === undefined ? undefined : (rows[0][0] as StoredTrigger[]);
}

export async function storeTriggers(
  client: Queryable,
  targetId: string,
  triggers: readonly StoredTrigger[],
): Promise<void> {
  if (triggers.length === 0) await client.query('DELETE FROM keyturn.fence WHERE target_id = $1', [targetId]);
  else
    await client.query(
      `INSERT INTO keyturn.fence (target_id, triggers) VALUES ($1, $2)
       ON CONFLICT (target_id) DO UPDATE SET triggers = excluded.triggers, raised_at = clock_timestamp()`,
      [targetId, JSON.stringify(triggers)],
    );
}

/** Whether the function behind the triggers is the one that refuses. */
export async function isFunctionIntact(client: Queryable): Promise<boolean> {
  const { rows } = await client.query(
    `SELECT prosrc = $1 FROM pg_proc WHERE oid = to_regprocedure('keyturn.refuse_envelope()')`,
    [refuseEnvelopeBody],
  );
  return rows[0]?.[0] === true;
}

/** Row triggers before the write that come after the fence could change what it has let pass. */
export async function listLaterTriggers(client: Queryable, tableOid: number): Promise<readonly string[]> {
  const { rows } = await client.query(
    `SELECT DISTINCT t.tgname::text FROM pg_trigger t
     WHERE (t.tgrelid = $1 OR t.tgrelid IN (SELECT relid FROM pg_partition_tree($1::oid::regclass)))
       AND t.tgtype & 3 = 3 AND t.tgtype & 20 <> 0 AND NOT t.tgisinternal AND t.tgenabled <> 'D'
       AND t.tgname COLLATE "C" > $2 AND t.tgname <> ALL($3::text[]) ORDER BY 1`,
    [tableOid, events[0].name, events.map(({ name }) => name)],
  );
  return rows.map((row) => String(row[0]));
}

/** Keys whose mark says that no registered table takes them, whatever their keyring. */
export async function listFencedKeys(client: Queryable): Promise<readonly ValueKeyName[]> {
  const { rows } = await client.query(
    'SELECT id, algorithm, commitment FROM keyturn.data_key WHERE fenced_at IS NOT NULL AND purpose = 1 ORDER BY id',
  );
  return rows.map(([id, algorithm, commitment]) => ({
    id: Number(id),
    algorithm: String(algorithm) as AlgorithmName,
    commitment: commitment as Buffer,
  }));
}

/** The order for or against a fence: the triggers follow. Answers whether anything changed. */
export async function markFenced(
  client: Queryable,
  keyId: number,
  isFenced: boolean,
  reason: string | undefined,
): Promise<boolean> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.data_key SET fenced_at = CASE WHEN $2 THEN clock_timestamp() END WHERE id = $1 AND (fenced_at IS NOT NULL) <> $2`,
    [keyId, isFenced],
  );
  if (rowCount === 0) return false;
  await writeAudit(client, {
    action: isFenced ? 'key.fence' : 'key.unfence',
    object: `key ${keyId}`,
    reason,
    before: { fenced: !isFenced },
    after: { fenced: isFenced },
  });
  return true;
}

export async function mayMark(client: Queryable): Promise<boolean> {
  return (await client.query(`SELECT has_table_privilege('keyturn.data_key', 'UPDATE')`)).rows[0]?.[0] === true;
}

/** One writer of a table's fence at a time; foreign keys to the target stay free. */
export async function lockFenceOf(client: Queryable, targetId: string): Promise<void> {
  await client.query('SELECT 1 FROM keyturn.target WHERE id = $1 FOR NO KEY UPDATE', [targetId]);
}

/** The owner of a table or partition that is not this login's to alter; undefined where all are. */
export async function findForeignOwner(client: Queryable, tableOid: number): Promise<string | undefined> {
  const { rows } = await client.query(
    `SELECT pg_get_userbyid(c.relowner) FROM (SELECT $1::oid AS oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass)) tree
     JOIN pg_class c ON c.oid = tree.oid WHERE NOT pg_has_role(c.relowner, 'USAGE') LIMIT 1`,
    [tableOid],
  );
  return rows[0] === undefined ? undefined : String(rows[0][0]);
}

/** What another role needs to put a fence on its own table. */
export function grantsForOwner(owner: string): readonly string[] {
  const role = quoteIdentifier(owner);
  return [`GRANT USAGE ON SCHEMA keyturn TO ${role}`, `GRANT EXECUTE ON FUNCTION keyturn.refuse_envelope() TO ${role}`];
}

/** Transactions that hold the table so that no trigger can be put on it: words for people. */
export async function listHolders(client: Queryable, tableOid: number): Promise<readonly string[]> {
  const { rows } = await client.query(
    `SELECT DISTINCT CASE WHEN l.pid IS NULL THEN 'prepared transaction ' || coalesce(p.gid, '') ELSE 'transaction of backend ' || l.pid
       || coalesce(' (' || nullif(a.application_name, '') || ')', '') END
     FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
     LEFT JOIN pg_prepared_xacts p ON l.pid IS NULL AND p.database = current_database()
     WHERE l.granted AND l.locktype = 'relation' AND l.relation IN (SELECT $1::oid UNION SELECT relid FROM pg_partition_tree($1::oid::regclass))
       AND l.mode NOT IN ('AccessShareLock', 'RowShareLock') AND l.pid IS DISTINCT FROM pg_backend_pid() ORDER BY 1`,
    [tableOid],
  );
  return rows.map((row) => String(row[0]));
}

/**
 * Keeps everybody from changing the triggers of the table until the transaction ends, without keeping anybody from writing.
 * A login that may only read can hold off less: dropping them, and not switching them off.
 */
export async function holdTriggers(client: Queryable, target: Target): Promise<void> {
  const { rows } = await client.query(`SELECT has_table_privilege($1::oid, 'UPDATE')`, [target.tableOid]);
  await client.query(
    `LOCK TABLE ${tableName(target)} IN ${rows[0]?.[0] === true ? 'ROW EXCLUSIVE' : 'ACCESS SHARE'} MODE`,
  );
}
