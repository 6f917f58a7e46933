// What the database says about its health: one statement a source, each with a bound on its time. Statements read the
// server's own views; those that hide their rows from a role without pg_monitor answer `unavailable` instead of a number
// that would be wrong. Nothing here judges: that is src/rotation.
import type { SeenArchive } from '../rotation/archive-watch.js';
import type { SeenSlot, SeenTable } from '../rotation/disk-use.js';
import { isAtWork } from '../rotation/precedence.js';
import type { RunState } from '../rotation/run.js';
import type { Database, Row } from './database.js';
import { limitColumns, limitsOf } from './limits.js';
import { memberLiveSeconds } from './members.js';

/** A statement that takes longer is given up: a gauge must not be a load itself. */
const readOnlyAndShort = `BEGIN READ ONLY; SET LOCAL statement_timeout = '1s'; SET LOCAL lock_timeout = '200ms'`;
const short = `BEGIN; SET LOCAL statement_timeout = '1s'`;

export type Seen<T> = { readonly seen: T } | { readonly unavailable: string };

/** Sessions of our own processes; what they cost is not foreign load. */
const isOurs = `application_name LIKE 'keyturn%'`;

async function read(
  database: Database,
  statement: string,
  parameters: readonly unknown[] = [],
): Promise<readonly Row[]> {
  return database.transaction(async (client) => (await client.query(statement, parameters)).rows, readOnlyAndShort);
}

function needsMonitor(what: string): { readonly unavailable: string } {
  return { unavailable: `${what} can be seen by members of pg_monitor alone; run: GRANT pg_monitor TO this role` };
}

/** Whether the role may see what other roles do; a superuser is a member of everything. */
const maySeeAll = `pg_has_role('pg_read_all_stats', 'USAGE')`;

export interface Fleet {
  /** Live ones. */
  readonly workers: number;
  /** Some run has batches to hand out, or out. */
  readonly isWorking: boolean;
  /** An emergency run is at work: one outside its hours has others go as gently as ever. */
  readonly isEmergency: boolean;
}

export async function readFleet(database: Database): Promise<Fleet> {
  const rows = await read(
    database,
    `SELECT (SELECT count(*) FROM keyturn.member WHERE kind = 'worker' AND heartbeat_at > clock_timestamp() - make_interval(secs => $1))::int,
       clock_timestamp(), r.state, r.emergency, ${limitColumns}
     FROM (VALUES (1)) here LEFT JOIN keyturn.run r ON r.state IN ('running', 'verifying')`,
    [memberLiveSeconds],
  );
  const runs = rows.filter(([, , state]) => state !== null);
  return {
    workers: Number(rows[0]?.[0]),
    isWorking: runs.length > 0,
    isEmergency: runs.some(
      ([, now, state, isEmergency, ...limits]) =>
        isEmergency === true && isAtWork({ state: String(state) as RunState, limits: limitsOf(limits) }, now as Date),
    ),
  };
}

export interface Replica {
  /** As it introduces itself, and from where; a second one of the same name carries a number. */
  readonly name: string;
  /** Written here and not replayed there. */
  readonly bytesBehind: number;
  /** As it measured it last; undefined where it has not. It does not grow while the replica is silent. */
  readonly measuredSeconds: number | undefined;
  /** Bytes of WAL up to which it has replayed, counted from the beginning. */
  readonly replayed: number;
  /** A subscriber reports when it likes, so silence says nothing about it. */
  readonly isPhysical: boolean;
}

export interface Replication {
  /** Bytes of WAL written so far, counted from the beginning. */
  readonly written: number;
  readonly replicas: readonly Replica[];
}

/** Base backups in progress are no replicas; a receiver of WAL that replays nothing counts by what it has written. */
export async function readReplication(database: Database): Promise<Seen<Replication>> {
  const rows = await read(
    database,
    `WITH here AS MATERIALIZED (
       SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn AS written),
     there AS (
       SELECT s.application_name || coalesce('@' || host(s.client_addr), '') AS name, s.pid, s.replay_lag,
         coalesce(s.replay_lsn, s.write_lsn, s.sent_lsn) - '0/0'::pg_lsn AS replayed,
         NOT EXISTS (SELECT 1 FROM pg_replication_slots l WHERE l.active_pid = s.pid AND l.slot_type = 'logical') AS is_physical
       FROM pg_stat_replication s WHERE s.state IS DISTINCT FROM 'backup')
     SELECT here.written::float8, ${maySeeAll}, there.pid IS NOT NULL,
       there.name || CASE row_number() OVER (PARTITION BY there.name ORDER BY there.pid) WHEN 1 THEN '' ELSE ' #' || row_number() OVER (PARTITION BY there.name ORDER BY there.pid) END,
       greatest(here.written - there.replayed, 0)::float8, extract(epoch FROM there.replay_lag)::float8, there.replayed::float8, there.is_physical
     FROM here LEFT JOIN there ON true`,
  );
  const replicas = rows.filter((row) => row[2] === true);
  if (replicas.length > 0 && rows[0]?.[1] !== true) return needsMonitor('how far replicas are behind');
  return {
    seen: {
      written: Number(rows[0]?.[0]),
      replicas: replicas.map(([, , , name, bytesBehind, measured, replayed, isPhysical]) => ({
        name: String(name),
        bytesBehind: Number(bytesBehind ?? 0),
        measuredSeconds: measured === null ? undefined : Number(measured),
        replayed: Number(replayed ?? 0),
        isPhysical: isPhysical === true,
      })),
    },
  };
}

/** The number of a segment by the name of its file; NULL for a file that is none, as the history of a timeline. */
const segmentOf = (file: string): string =>
  `CASE WHEN ${file} ~ '^[0-9A-F]{24}' THEN
     (('x' || substr(${file}, 9, 8))::bit(32)::bigint * floor(4294967296 / size.bytes) + ('x' || substr(${file}, 17, 8))::bit(32)::bigint)::float8 END`;

/** Undefined where nothing is archived. */
export async function readWalArchive(database: Database): Promise<SeenArchive | undefined> {
  const [row] = await read(
    database,
    `WITH size AS (SELECT setting::numeric AS bytes FROM pg_settings WHERE name = 'wal_segment_size')
     SELECT floor((pg_current_wal_lsn() - '0/0'::pg_lsn) / size.bytes)::float8, ${segmentOf('a.last_archived_wal')}, ${segmentOf('a.last_failed_wal')},
       has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE')
     FROM pg_stat_archiver a, size WHERE current_setting('archive_mode') <> 'off' AND NOT pg_is_in_recovery()`,
  );
  if (row === undefined) return undefined;
  const [current, archived, failed, mayList] = row;
  return {
    current: Number(current),
    archived: archived === null ? undefined : Number(archived),
    failed: failed === null ? undefined : Number(failed),
    // In a statement of its own, which without the right would be refused whole.
    waiting: mayList === true ? await countWaitingSegments(database) : undefined,
  };
}

async function countWaitingSegments(database: Database): Promise<number> {
  const [row] = await read(
    database,
    `SELECT count(*)::int FROM pg_ls_archive_statusdir() WHERE name ~ '^[0-9A-F]{24}[.]ready$'`,
  );
  return Number(row?.[0]);
}

export async function readSlots(database: Database): Promise<readonly SeenSlot[]> {
  const rows = await read(
    database,
    `SELECT slot_name::text, wal_status, safe_wal_size::float8 / nullif(m.setting::float8 * 1048576, 0)
     FROM pg_replication_slots, pg_settings m WHERE m.name = 'max_slot_wal_keep_size' AND wal_status IS NOT NULL`,
  );
  return rows.map(([name, grade, left]) => ({
    name: String(name),
    grade: String(grade) as SeenSlot['grade'],
    left: left === null ? undefined : Number(left),
  }));
}

/** Sessions of others that are executing something now. */
export async function countActiveSessions(database: Database): Promise<Seen<number>> {
  const [row] = await read(
    database,
    `SELECT ${maySeeAll}, count(*) FILTER (WHERE state = 'active' AND backend_type = 'client backend' AND NOT coalesce(${isOurs}, false) AND pid <> pg_backend_pid())::int
     FROM pg_stat_activity`,
  );
  return row?.[0] === true ? { seen: Number(row[1]) } : needsMonitor('what sessions do');
}

/** Sessions of others that wait for a lock one of ours holds. */
export async function countBlockedByUs(database: Database): Promise<number> {
  const [row] = await read(
    database,
    `WITH ours AS MATERIALIZED (SELECT pid FROM pg_stat_activity WHERE ${isOurs}),
     waiting AS MATERIALIZED (SELECT DISTINCT pid FROM pg_locks WHERE NOT granted AND pid NOT IN (SELECT pid FROM ours))
     SELECT count(*)::int FROM waiting WHERE pg_blocking_pids(pid) && ARRAY(SELECT pid FROM ours)`,
  );
  return Number(row?.[0]);
}

/** Tables that a run is moving now, leaf by leaf where they are partitioned. */
const movedTables = `SELECT DISTINCT coalesce(p.relid, t.table_oid::regclass) AS relid FROM keyturn.run r
  JOIN keyturn.run_target w ON w.run_id = r.id AND w.pass = r.pass JOIN keyturn.target t ON t.id = w.target_id
  LEFT JOIN LATERAL pg_partition_tree(t.table_oid::regclass) p ON p.isleaf
  WHERE r.state IN ('running', 'verifying')`;

export async function readTables(database: Database): Promise<readonly SeenTable[]> {
  const rows = await read(
    database,
    `SELECT s.schemaname || '.' || s.relname, pg_relation_size(s.relid)::float8, s.n_dead_tup::float8, s.n_live_tup::float8,
       current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean AND NOT EXISTS (
         SELECT 1 FROM pg_class c, pg_options_to_table(c.reloptions) o
         WHERE c.oid = s.relid AND o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean)
     FROM (${movedTables}) m JOIN pg_stat_all_tables s ON s.relid = m.relid`,
  );
  return rows.map(([table, bytes, dead, live, isCleanedUp]) => ({
    table: String(table),
    bytes: Number(bytes),
    deadRows: Number(dead),
    liveRows: Number(live),
    isCleanedUp: isCleanedUp === true,
  }));
}

/** Names of the moved tables that a vacuum is working on. */
export async function listVacuums(database: Database): Promise<Seen<readonly string[]>> {
  const rows = await read(
    database,
    `SELECT ${maySeeAll}, (SELECT array_agg(v.relid::regclass::text) FROM pg_stat_progress_vacuum v
       WHERE v.datname = current_database() AND v.relid IN (SELECT relid FROM (${movedTables}) m))`,
  );
  return rows[0]?.[0] === true
    ? { seen: (rows[0][1] as string[] | null) ?? [] }
    : needsMonitor('which table is being vacuumed');
}

/** Age in seconds of the oldest transaction that keeps rows of this database from being cleaned up; 0 without one. */
export async function readOldestTransaction(database: Database): Promise<Seen<number>> {
  const [row] = await read(
    database,
    `SELECT ${maySeeAll}, coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8 FROM pg_stat_activity
     WHERE datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND backend_type <> 'autovacuum worker'
       AND pid <> pg_backend_pid() AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)`,
  );
  return row?.[0] === true ? { seen: Number(row[1]) } : needsMonitor('how old transactions are');
}

export interface Checkpoints {
  /** Requested ones since the statistics began; what asked for them is not kept. */
  readonly requested: number;
  /** Bytes of WAL before the newest one, counted from the beginning. */
  readonly redo: number;
  /** WAL after which the server asks for one by itself. */
  readonly walBetween: number;
}

export async function readCheckpoints(database: Database): Promise<Checkpoints> {
  const [row] = await read(
    database,
    `SELECT (to_jsonb(b) ->> 'checkpoints_req')::float8, c.redo_lsn - '0/0'::pg_lsn, m.setting::float8 * 1048576 / (1 + current_setting('checkpoint_completion_target')::float8)
     FROM pg_stat_bgwriter b, pg_control_checkpoint() c, pg_settings m WHERE m.name = 'max_wal_size'`,
  );
  const requested =
    row?.[0] ?? (await read(database, 'SELECT num_requested::float8 FROM pg_stat_checkpointer'))[0]?.[0];
  return { requested: Number(requested), redo: Number(row?.[1]), walBetween: Number(row?.[2]) };
}

export interface Canary {
  readonly statement: string;
  readonly parameters: readonly unknown[];
}

/** One read by primary key, of a row that was the last of a registered table; of nothing where there is no such table. */
export async function chooseCanary(database: Database): Promise<Canary> {
  const [table] = await read(
    database,
    `SELECT format('SELECT %2$I::text FROM %1$s ORDER BY %2$I DESC LIMIT 1', c.relation, c.key),
       format('SELECT 1 FROM %1$s WHERE %2$I = $1::%3$s LIMIT 1', c.relation, c.key, c.type)
     FROM (SELECT t.table_oid::regclass AS relation, a.attname AS key, format_type(a.atttypid, a.atttypmod) AS type
       FROM keyturn.target t JOIN pg_class r ON r.oid = t.table_oid
       JOIN pg_attribute a ON a.attrelid = t.table_oid AND a.attnum = t.key_attributes[1] AND NOT a.attisdropped
       WHERE has_table_privilege(t.table_oid, 'SELECT') ORDER BY t.id LIMIT 1) c`,
  );
  if (table === undefined) return { statement: 'SELECT 1', parameters: [] };
  const [row] = await read(database, String(table[0]));
  return row === undefined
    ? { statement: 'SELECT 1', parameters: [] }
    : { statement: String(table[1]), parameters: [row[0]] };
}

/** Milliseconds of one read. */
export async function timeRead(database: Database, { statement, parameters }: Canary): Promise<number> {
  return database.transaction(async (client) => {
    const startedAt = performance.now();
    await client.query(statement, parameters);
    return performance.now() - startedAt;
  }, readOnlyAndShort);
}

/** Milliseconds of a transaction that writes a few bytes of WAL, and nothing else, and waits for the disk as any commit does. */
export async function timeCommit(database: Database): Promise<number> {
  const startedAt = performance.now();
  await database.transaction((client) => client.query(`SELECT pg_logical_emit_message(true, 'keyturn', '')`), short);
  return performance.now() - startedAt;
}
