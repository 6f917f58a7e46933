// Backups as the database sees them: the key tables read as rows, a restore plan written, and the record of which backup
// covers which key. What is merged how is decided in keys/merge-backup.ts.
import { bytesOf, checkKeyTables, type DataKeyRow, type Json, type KeyTables } from '../keys/backup.js';
import type { Change, RestorePlan } from '../keys/merge-backup.js';
import { statesBetween, type KeyState } from '../keys/states.js';
import { writeAudit } from './audit.js';
import { quoteIdentifier, type Queryable } from './database.js';

const rowsOf = (table: string, order: string): string =>
  `coalesce((SELECT jsonb_agg(to_jsonb(t) ORDER BY t.${order}) FROM keyturn.${table} t), '[]')`;
const lastOf = (sequence: string): string => `(SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM ${sequence})`;

/** In the caller's transaction, which sees one moment. Throws BACKUP_DAMAGED for rows that no backup can carry. */
export async function readKeyTables(client: Queryable): Promise<KeyTables> {
  // Times are printed with the session's zone; equal times must have equal texts.
  await client.query(`SET LOCAL TimeZone = 'UTC'`);
  const { rows } = await client.query(
    `SELECT (SELECT jsonb_build_object('id', c.id, 'created_at', c.created_at) FROM keyturn.cluster c),
       (SELECT count(*)::int FROM keyturn.migration),
       ${rowsOf('root_key', 'id')}, ${rowsOf('keyring', 'id')}, ${rowsOf('data_key', 'id')},
       ${rowsOf('data_key_wrap', 'root_key_id')}, ${rowsOf('target', 'id')}, ${rowsOf('target_column', 'id')},
       ${rowsOf('key_usage', 'data_key_id')}, ${lastOf('keyturn.key_id')}, ${lastOf('keyturn.audit_key_id')}, ${lastOf('keyturn.root_key_id_seq')}`,
  );
  const [cluster, schema, rootKeys, keyrings, dataKeys, wraps, targets, columns, keyUsage, key, auditKey, rootKey] =
    rows[0] ?? [];
  return checkKeyTables({
    cluster,
    schema,
    rootKeys,
    keyrings,
    dataKeys: (dataKeys as Json[]).map((row) => withParts(row, 'wraps', wraps as Json[], 'data_key_id')),
    keyUsage,
    targets: (targets as Json[]).map((row) => withParts(row, 'columns', columns as Json[], 'target_id')),
    lastIds: { key: Number(key), auditKey: Number(auditKey), rootKey: Number(rootKey) },
  });
}

type JsonRow = Record<string, Json>;

function withParts(row: Json, name: string, parts: readonly Json[], reference: string): JsonRow {
  const whole = row as JsonRow;
  return { ...whole, [name]: parts.filter((part) => (part as JsonRow)[reference] === whole['id']) };
}

/** Keeps every other key operation, init and restore out until the transaction ends. */
export async function lockKeyTables(client: Queryable): Promise<void> {
  await client.query('LOCK TABLE keyturn.cluster, keyturn.target IN SHARE ROW EXCLUSIVE MODE');
  await client.query('SELECT 1 FROM keyturn.keyring ORDER BY id FOR UPDATE');
}

/** Writes what a plan says, each key, keyring, root and target with its own audit record (I10). `afterKey`: of each data key. */
export async function writeRestore(
  client: Queryable,
  plan: RestorePlan,
  reason: string | undefined,
  afterKey: () => Promise<void>,
): Promise<void> {
  if (plan.cluster !== undefined)
    await client.query('INSERT INTO keyturn.cluster (id, created_at) VALUES ($1, $2)', [
      plan.cluster.id,
      plan.cluster.created_at,
    ]);
  const newRoots = plan.rootKeys.filter(({ before }) => before === undefined).map(({ after }) => after);
  // One statement: roots may name each other.
  await insertRows(client, 'root_key', newRoots);
  for (const { before, after } of plan.rootKeys) {
    if (before !== undefined) await updateRow(client, 'root_key', after);
    await record(client, 'root', `root ${after.id}`, { before, after, reason, shown: [] });
  }
  for (const { before, after } of plan.keyrings) {
    if (before === undefined) await insertRows(client, 'keyring', [after]);
    else await updateRow(client, 'keyring', after);
    await record(client, 'keyring', `keyring ${after.name}`, { before, after, reason, shown: ['generation'] });
  }
  await leaveActivePlace(client, plan.dataKeys);
  for (const change of plan.dataKeys.toSorted(placesLast)) {
    await writeDataKey(client, change, reason);
    await afterKey();
  }
  for (const { after } of plan.keyUsage)
    await client.query(
      `INSERT INTO keyturn.key_usage AS u (data_key_id, reserved) VALUES ($1, $2)
       ON CONFLICT (data_key_id) DO UPDATE SET reserved = greatest(u.reserved, excluded.reserved)`,
      [after.data_key_id, after.reserved],
    );
  for (const change of plan.targets) await writeTarget(client, change, reason);
  for (const [sequence, last] of [
    ['key_id', plan.lastIds.key],
    ['audit_key_id', plan.lastIds.auditKey],
    ['root_key_id_seq', plan.lastIds.rootKey],
  ] as const)
    if (last > 0)
      await client.query(
        `SELECT setval('keyturn.${sequence}', $1) FROM keyturn.${sequence} WHERE last_value < $1 OR NOT is_called`,
        [last],
      );
}

/** One key is active and one is staged at any moment: whoever gives such a place up is written before whoever takes it. */
function placesLast(one: Change<{ readonly state: string }>, other: Change<{ readonly state: string }>): number {
  const place = ({ after }: Change<{ readonly state: string }>): number => ['active', 'staged'].indexOf(after.state);
  const order = [-1, 0, 1];
  return order.indexOf(place(one)) - order.indexOf(place(other));
}

/**
 * A destruction takes two logins here as anywhere: what was destroyed elsewhere is retired here, and so is what waited for
 * it there, since nobody has asked here. A staged key that never encrypted is discarded, as it was there; a key that comes in
 * destroyed has nothing left to keep.
 */
function reachableState(from: KeyState | undefined, after: JsonRow & { readonly state: KeyState }): KeyState {
  const to = after.state;
  if (from === undefined) return to === 'pending_destruction' ? 'retired' : to;
  const isDiscarded = from === 'staged' && after['activated_at'] === null;
  return from !== to && !isDiscarded && (to === 'pending_destruction' || to === 'destroyed') ? 'retired' : to;
}

/** On its legal way another key may be the active one for a moment, so the place is left before. */
async function leaveActivePlace(client: Queryable, changes: RestorePlan['dataKeys']): Promise<void> {
  const ids = changes
    .filter(({ before }) => before !== undefined && hasActivePlace(before))
    .map(({ after }) => after.id);
  await client.query(`UPDATE keyturn.data_key SET state = 'decrypt_only' WHERE id = ANY($1)`, [ids]);
}

function hasActivePlace({ keyring_id, state }: DataKeyRow): boolean {
  return keyring_id !== null && state === 'active';
}

async function writeDataKey(
  client: Queryable,
  { before, after }: RestorePlan['dataKeys'][number],
  reason: string | undefined,
): Promise<void> {
  const { wraps, ...row } = after;
  const from = before !== undefined && hasActivePlace(before) ? 'decrypt_only' : before?.state;
  const moved = { ...row, state: reachableState(from, row) };
  if (from === undefined) await insertRows(client, 'data_key', [moved]);
  else {
    const kept = wraps.map((wrap) => wrap.root_key_id);
    if (moved.state === row.state)
      await client.query('DELETE FROM keyturn.data_key_wrap WHERE data_key_id = $1 AND NOT root_key_id = ANY($2)', [
        after.id,
        kept,
      ]);
    for (const passed of statesBetween(from, moved.state) ?? [])
      await client.query('UPDATE keyturn.data_key SET state = $2 WHERE id = $1', [row.id, passed]);
    await updateRow(client, 'data_key', moved);
  }
  for (const wrap of wraps) {
    const known = before?.wraps.find(({ root_key_id }) => root_key_id === wrap.root_key_id);
    if (known === undefined) await insertRows(client, 'data_key_wrap', [wrap]);
    else if (known.blob !== wrap.blob)
      await client.query('UPDATE keyturn.data_key_wrap SET blob = $3 WHERE data_key_id = $1 AND root_key_id = $2', [
        after.id,
        wrap.root_key_id,
        bytesOf(wrap.blob),
      ]);
  }
  await record(client, 'key', `${row.purpose === 3 ? 'audit key' : 'key'} ${row.id}`, {
    before,
    after: moved,
    reason,
    shown: ['state', 'version'],
  });
}

async function writeTarget(
  client: Queryable,
  { before, after }: RestorePlan['targets'][number],
  reason: string | undefined,
): Promise<void> {
  const { columns, ...row } = after;
  if (before === undefined) await insertRows(client, 'target', [row]);
  const known = new Set(before?.columns.map(({ id }) => id));
  await insertRows(
    client,
    'target_column',
    columns.filter(({ id }) => !known.has(id)),
  );
  await record(client, 'target', `target ${after.schema_name}.${after.table_name}`, {
    before,
    after,
    reason,
    shown: ['id'],
  });
}

async function insertRows(client: Queryable, table: string, rows: readonly object[]): Promise<void> {
  if (rows.length === 0) return;
  await client.query(
    `INSERT INTO keyturn.${table} OVERRIDING SYSTEM VALUE SELECT * FROM jsonb_populate_recordset(NULL::keyturn.${table}, $1::jsonb)`,
    [JSON.stringify(rows)],
  );
}

/** By id. The names are columns: the rows of this database and of the backup are of one schema. */
async function updateRow(client: Queryable, table: string, row: { readonly id: number | string }): Promise<void> {
  const columns = Object.keys(row)
    .filter((name) => name !== 'id')
    .map(quoteIdentifier)
    .join(', ');
  await client.query(
    `UPDATE keyturn.${table} SET (${columns}) = (SELECT ${columns} FROM jsonb_populate_record(NULL::keyturn.${table}, $2::jsonb)) WHERE id = $1`,
    [row.id, JSON.stringify(row)],
  );
}

async function record(
  client: Queryable,
  noun: string,
  object: string,
  change: Change<JsonRow> & { readonly reason: string | undefined; readonly shown: readonly string[] },
): Promise<void> {
  const { before, after, reason, shown } = change;
  const pick = (row: JsonRow): JsonRow => Object.fromEntries(shown.map((name) => [name, row[name] ?? null]));
  await writeAudit(client, {
    action: `${noun}.${before === undefined ? 'import' : 'import-newer'}`,
    object,
    reason,
    before: before === undefined ? undefined : pick(before),
    after: pick(after),
  });
}

export interface BackupRecord {
  readonly takenAt: string;
  /** The name alone: where backups lie is nobody's business who reads the database. */
  readonly fileName: string;
  readonly fileHash: Buffer;
  readonly lockedBy: 'passphrase' | 'recipients';
  readonly hasRootKeys: boolean;
  readonly keyIds: readonly number[];
  readonly rootKeyIds: readonly number[];
}

/** Once per file; answers whether it is new here. */
export async function recordBackup(client: Queryable, backup: BackupRecord): Promise<boolean> {
  const { rowCount } = await client.query(
    `INSERT INTO keyturn.backup (taken_at, file_name, file_hash, locked_by, has_root_keys, key_ids, root_key_ids)
     VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
    [
      backup.takenAt,
      backup.fileName,
      backup.fileHash,
      backup.lockedBy,
      backup.hasRootKeys,
      backup.keyIds,
      backup.rootKeyIds,
    ],
  );
  return rowCount === 1;
}

/**
 * Data keys of a keyring, or of all and the audit keys too, that no backup covers. A backup covers a key under the root keys
 * it was wrapped with then: after a change of root keys one that also holds those roots, or a new one, is needed.
 */
export async function listUnbackedKeys(client: Queryable, keyringId?: string): Promise<readonly number[]> {
  const { rows } = await client.query(
    `SELECT k.id FROM keyturn.data_key k
     WHERE k.state <> 'destroyed' AND ($1::uuid IS NULL OR k.keyring_id = $1) AND NOT EXISTS (
       SELECT 1 FROM keyturn.backup b WHERE k.id = ANY(b.key_ids) AND (b.has_root_keys OR EXISTS (
         SELECT 1 FROM keyturn.data_key_wrap w WHERE w.data_key_id = k.id AND w.root_key_id = ANY(b.root_key_ids))))
     ORDER BY k.id`,
    [keyringId ?? null],
  );
  return rows.map((row) => Number(row[0]));
}

/** For the metric keyturn_unbacked_data_keys. */
export async function countUnbackedKeys(client: Queryable): Promise<number> {
  return (await listUnbackedKeys(client)).length;
}

export interface LastBackup {
  readonly takenAt: Date;
  readonly fileName: string;
  readonly ageSeconds: number;
}

export async function findLastBackup(client: Queryable): Promise<LastBackup | undefined> {
  const { rows } = await client.query(
    `SELECT taken_at, file_name, extract(epoch FROM clock_timestamp() - taken_at)::float8
     FROM keyturn.backup ORDER BY taken_at DESC, id DESC LIMIT 1`,
  );
  const [row] = rows;
  return row === undefined
    ? undefined
    : { takenAt: row[0] as Date, fileName: String(row[1]), ageSeconds: Number(row[2]) };
}

export type BackupPolicy = 'warn' | 'require';

export async function getBackupPolicy(client: Queryable, keyringId: string): Promise<BackupPolicy> {
  const { rows } = await client.query('SELECT backup_policy FROM keyturn.keyring WHERE id = $1', [keyringId]);
  return rows[0]?.[0] === 'require' ? 'require' : 'warn';
}
