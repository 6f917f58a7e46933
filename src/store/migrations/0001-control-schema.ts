// The control schema: keys, registry, members, runs, batches with their ledger, quarantine, audit. Never edited once
// released; a change is a new migration.
import type { MigrationInterface, QueryRunner } from 'typeorm';
import { retirementStatements } from './retirement-statements.js';

const counts = `
  rows_examined bigint NOT NULL DEFAULT 0,
  rows_updated bigint NOT NULL DEFAULT 0,
  rows_skipped bigint NOT NULL DEFAULT 0,
  rows_conflicted bigint NOT NULL DEFAULT 0,
  rows_failed bigint NOT NULL DEFAULT 0,
  cells_examined bigint NOT NULL DEFAULT 0,
  cells_reencrypted bigint NOT NULL DEFAULT 0,
  cells_current bigint NOT NULL DEFAULT 0,
  cells_conflicted bigint NOT NULL DEFAULT 0,
  cells_failed bigint NOT NULL DEFAULT 0,
  CHECK (cells_examined = cells_reencrypted + cells_current + cells_conflicted + cells_failed),
  CHECK (rows_examined = rows_updated + rows_skipped + rows_conflicted + rows_failed)`;

export const controlSchemaStatements: readonly string[] = [
  `CREATE TABLE keyturn.cluster (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  id uuid NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  queue_backend text CHECK (queue_backend IN ('postgres', 'redis')),
  queue_prefix text,
  queue_marker uuid,
  cpus integer CHECK (cpus > 0),
  optional_sources text[]
)`,
  // Between prepare and finalize of a root change the new root names the one it replaces.
  `CREATE TABLE keyturn.root_key (
  id bigint GENERATED ALWAYS AS IDENTITY (MAXVALUE 4294967295) PRIMARY KEY,
  fingerprint bytea NOT NULL UNIQUE CHECK (octet_length(fingerprint) = 32),
  verification_token bytea NOT NULL,
  uri text NOT NULL,
  replaces bigint REFERENCES keyturn.root_key,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  -- Since when others may hold it. Never taken back.
  suspect_at timestamptz
)`,
  `CREATE TABLE keyturn.keyring (
  id uuid PRIMARY KEY,
  name text NOT NULL UNIQUE,
  algorithm text NOT NULL,
  root_uris text[] NOT NULL,
  cryptoperiod_days integer NOT NULL DEFAULT 90 CHECK (cryptoperiod_days > 0),
  backup_policy text NOT NULL DEFAULT 'warn' CHECK (backup_policy IN ('warn', 'require')),
  generation bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  lazy_is_on boolean NOT NULL DEFAULT true,
  lazy_rows_per_second integer NOT NULL DEFAULT 100 CHECK (lazy_rows_per_second > 0),
  lazy_sample real NOT NULL DEFAULT 1 CHECK (lazy_sample > 0 AND lazy_sample <= 1)
)`,
  `CREATE SEQUENCE keyturn.key_id AS bigint MINVALUE 1 MAXVALUE 4294963199 NO CYCLE`,
  // Audit keys count in a range of their own, so that keys of values go 1, 2, 3.
  `CREATE SEQUENCE keyturn.audit_key_id AS bigint MINVALUE 4294963200 MAXVALUE 4294967295 NO CYCLE`,
  // scope_id names keyring and tenant; without tenant keys it is the keyring's own id. An audit key (purpose 3) belongs to
  // no keyring, its scope is the cluster.
  `CREATE TABLE keyturn.data_key (
  id bigint PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
  keyring_id uuid REFERENCES keyturn.keyring,
  scope_id uuid NOT NULL,
  version integer NOT NULL CHECK (version > 0),
  algorithm text NOT NULL,
  purpose smallint NOT NULL DEFAULT 1,
  state text NOT NULL CHECK (state IN ('staged', 'active', 'decrypt_only', 'retired', 'pending_destruction', 'destroyed')),
  compromised boolean NOT NULL DEFAULT false,
  commitment bytea NOT NULL CHECK (octet_length(commitment) = 32),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  activated_at timestamptz,
  activated_generation bigint,
  replaced_at timestamptz,
  retired_at timestamptz,
  -- Of a staged key: when a rotation took it up. A standby has none.
  ordered_at timestamptz,
  -- The compromised key in whose stead it was made.
  instead_of bigint REFERENCES keyturn.data_key,
  -- Every root key that it was ever wrapped under, those that are gone too.
  wrapped_under bigint[] NOT NULL DEFAULT '{}',
  fenced_at timestamptz,
  UNIQUE (keyring_id, version),
  CHECK ((keyring_id IS NULL) = (purpose = 3)),
  CHECK (NOT (compromised AND state IN ('staged', 'active'))),
  CONSTRAINT data_key_active_unfenced CHECK (state <> 'active' OR fenced_at IS NULL)
)`,
  `CREATE UNIQUE INDEX data_key_one_active ON keyturn.data_key (scope_id, purpose) WHERE state = 'active'`,
  `CREATE UNIQUE INDEX data_key_one_staged ON keyturn.data_key (scope_id, purpose) WHERE state = 'staged'`,
  `CREATE TABLE keyturn.data_key_wrap (
  data_key_id bigint NOT NULL REFERENCES keyturn.data_key,
  root_key_id bigint NOT NULL REFERENCES keyturn.root_key,
  blob bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (data_key_id, root_key_id)
)`,
  // Encryptions that processes have reserved under a key, before using them.
  `CREATE TABLE keyturn.key_usage (
  data_key_id bigint PRIMARY KEY REFERENCES keyturn.data_key,
  reserved bigint NOT NULL DEFAULT 0 CHECK (reserved >= 0)
)`,
  // Durable before it is used, whatever the session's synchronous_commit. AES-256-GCM ends at 0.9 * 2^32.
  `CREATE FUNCTION keyturn.reserve_encryptions(key_id bigint, wanted bigint, OUT granted bigint, OUT reserved bigint) LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  before bigint;
  highest bigint;
BEGIN
  IF wanted NOT BETWEEN 1 AND 1000000000 THEN
    RAISE EXCEPTION 'a reservation is 1 to 1000000000 encryptions' USING ERRCODE = 'invalid_parameter_value';
  END IF;
  IF current_setting('synchronous_commit') = 'off' THEN
    PERFORM set_config('synchronous_commit', 'on', true);
  END IF;
  INSERT INTO keyturn.key_usage (data_key_id) VALUES (key_id) ON CONFLICT DO NOTHING;
  SELECT u.reserved INTO STRICT before FROM keyturn.key_usage u WHERE u.data_key_id = key_id FOR UPDATE;
  SELECT CASE d.algorithm WHEN 'aes-256-gcm' THEN 3865470566 ELSE 9223372036854775807 END INTO STRICT highest
  FROM keyturn.data_key d WHERE d.id = key_id;
  granted := GREATEST(0, LEAST(wanted, highest - before));
  UPDATE keyturn.key_usage u SET reserved = before + granted WHERE u.data_key_id = key_id;
  reserved := before + granted;
END $$`,
  `REVOKE ALL ON FUNCTION keyturn.reserve_encryptions(bigint, bigint) FROM PUBLIC`,
  // Which backups were taken, or restored here: what covers which key. The hash is of the locked file.
  `CREATE TABLE keyturn.backup (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  taken_at timestamptz NOT NULL,
  recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  recorded_by text NOT NULL DEFAULT session_user,
  file_name text NOT NULL,
  file_hash bytea NOT NULL UNIQUE CHECK (octet_length(file_hash) = 32),
  locked_by text NOT NULL CHECK (locked_by IN ('passphrase', 'recipients')),
  has_root_keys boolean NOT NULL,
  key_ids bigint[] NOT NULL,
  root_key_ids bigint[] NOT NULL
)`,
  `CREATE TABLE keyturn.target (
  id uuid PRIMARY KEY,
  keyring_id uuid NOT NULL REFERENCES keyturn.keyring,
  table_oid oid NOT NULL UNIQUE,
  schema_name text NOT NULL,
  table_name text NOT NULL,
  key_attributes smallint[] NOT NULL,
  key_names text[] NOT NULL,
  key_tags text[] NOT NULL,
  scope_attribute smallint,
  scope_name text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (schema_name, table_name)
)`,
  // awaits_adoption: registered over values of which not all were envelopes; no run goes over it before it is adopted.
  `CREATE TABLE keyturn.target_column (
  id uuid PRIMARY KEY,
  target_id uuid NOT NULL REFERENCES keyturn.target,
  name text NOT NULL,
  attribute smallint NOT NULL,
  column_name text NOT NULL,
  path text[],
  format text NOT NULL,
  bind text NOT NULL CHECK (bind IN ('row', 'column')),
  move text CHECK (move IN ('adopting', 'leaving')),
  foreign_format text,
  foreign_secret_uri text,
  awaits_adoption boolean NOT NULL DEFAULT false,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  left_at timestamptz,
  CHECK ((move IS NULL) = (foreign_format IS NULL)),
  CHECK (foreign_secret_uri IS NULL OR foreign_format IS NOT NULL)
)`,
  `CREATE UNIQUE INDEX target_column_name ON keyturn.target_column (target_id, name) WHERE left_at IS NULL`,
  ...retirementStatements,
  `CREATE TABLE keyturn.member (
  id uuid PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('application', 'worker', 'supervisor')),
  name text NOT NULL,
  host text NOT NULL,
  pid integer NOT NULL,
  version text NOT NULL,
  formats text[] NOT NULL,
  algorithms text[] NOT NULL,
  login text NOT NULL DEFAULT session_user,
  health_url text,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`,
  `CREATE TABLE keyturn.member_keyring (
  member_id uuid NOT NULL REFERENCES keyturn.member ON DELETE CASCADE,
  keyring_id uuid NOT NULL REFERENCES keyturn.keyring,
  generation bigint NOT NULL,
  write_key_id bigint,
  held_key_ids bigint[] NOT NULL,
  root_key_ids bigint[] NOT NULL DEFAULT '{}',
  foreign_key_ids text[] NOT NULL DEFAULT '{}',
  PRIMARY KEY (member_id, keyring_id)
)`,
  // A member writes its own row alone: the id is known to nobody else who may not read the table, and the login is its own.
  // Only logins that may work on batches are workers and supervisors.
  `CREATE FUNCTION keyturn.beat(member jsonb, held jsonb) RETURNS void LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF member ->> 'kind' IS DISTINCT FROM 'application' AND NOT has_table_privilege(session_user, 'keyturn.batch', 'UPDATE') THEN
    RAISE EXCEPTION 'this login may be an application only' USING ERRCODE = 'insufficient_privilege';
  END IF;
  INSERT INTO keyturn.member AS m (id, kind, name, host, pid, version, formats, algorithms, health_url)
  SELECT id, kind, name, host, pid, version, formats, algorithms, "healthUrl"
  FROM jsonb_to_record(member) AS w(id uuid, kind text, name text, host text, pid integer, version text, formats text[], algorithms text[], "healthUrl" text)
  ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp() WHERE m.login = session_user;
  IF NOT FOUND THEN
    RAISE EXCEPTION 'this member belongs to another login' USING ERRCODE = 'insufficient_privilege';
  END IF;
  INSERT INTO keyturn.member_keyring (member_id, keyring_id, generation, write_key_id, held_key_ids, root_key_ids, foreign_key_ids)
  SELECT (member ->> 'id')::uuid, k.keyring_id, k.generation, k.write_key_id, k.held_key_ids, k.root_key_ids, coalesce(k.foreign_key_ids, '{}')
  FROM jsonb_to_recordset(held) AS k(keyring_id uuid, generation bigint, write_key_id bigint, held_key_ids bigint[], root_key_ids bigint[],
    foreign_key_ids text[])
  ON CONFLICT (member_id, keyring_id) DO UPDATE
    SET generation = excluded.generation, write_key_id = excluded.write_key_id, held_key_ids = excluded.held_key_ids,
      root_key_ids = excluded.root_key_ids, foreign_key_ids = excluded.foreign_key_ids;
END $$`,
  `CREATE FUNCTION keyturn.leave(member_id uuid) RETURNS void LANGUAGE sql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  DELETE FROM keyturn.member m WHERE m.id = leave.member_id AND m.login = session_user;
$$`,
  `REVOKE ALL ON FUNCTION keyturn.beat(jsonb, jsonb), keyturn.leave(uuid) FROM PUBLIC`,
  // Names that keyturn.yaml expects among the live members.
  `CREATE TABLE keyturn.expected_member (
  name text PRIMARY KEY
)`,
  `CREATE TABLE keyturn.run (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('reencrypt', 'dry_run', 'verify')),
  state text NOT NULL CHECK (state IN ('pending', 'running', 'verifying', 'pausing', 'paused', 'cancelling', 'cancelled',
    'succeeded', 'completed_with_failures', 'failed')),
  resume_state text CHECK (resume_state IN ('pending', 'running', 'verifying')),
  keyring_id uuid NOT NULL REFERENCES keyturn.keyring,
  target_key_id bigint NOT NULL REFERENCES keyturn.data_key,
  generation bigint NOT NULL,
  target_id uuid REFERENCES keyturn.target,
  scope text,
  deep boolean NOT NULL DEFAULT false,
  only_cells boolean NOT NULL DEFAULT false,
  pass integer NOT NULL DEFAULT 0,
  round integer NOT NULL DEFAULT 0,
  held_back_by text,
  priority smallint NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 10),
  emergency boolean NOT NULL DEFAULT false CHECK (emergency = (priority = 10)),
  max_rows_per_second integer CHECK (max_rows_per_second > 0),
  max_workers integer CHECK (max_workers > 0),
  hours_from time,
  hours_to time,
  hours_zone text,
  retries bigint REFERENCES keyturn.run,
  reason text,
  requested_by text NOT NULL DEFAULT session_user,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  started_at timestamptz,
  resumed_at timestamptz,
  verified_at timestamptz,
  finished_at timestamptz,
  CHECK (num_nulls(hours_from, hours_to, hours_zone) IN (0, 3))
)`,
  `CREATE INDEX run_unfinished ON keyturn.run (id)
  WHERE state NOT IN ('cancelled', 'succeeded', 'completed_with_failures', 'failed')`,
  // One pass over one target: where planning stands. The bound is frozen when the pass begins.
  `CREATE TABLE keyturn.run_target (
  run_id bigint NOT NULL REFERENCES keyturn.run,
  pass integer NOT NULL,
  target_id uuid NOT NULL REFERENCES keyturn.target,
  bound text[],
  planned_to text[],
  is_planned boolean NOT NULL DEFAULT false,
  estimated_rows bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (run_id, pass, target_id)
)`,
  // A range (after, upto] in key order, or an explicit list of cells; the cursor is the last key settled, or for a list
  // the number of rows settled.
  `CREATE TABLE keyturn.batch (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  run_id bigint NOT NULL REFERENCES keyturn.run,
  pass integer NOT NULL,
  target_id uuid NOT NULL REFERENCES keyturn.target,
  kind text NOT NULL CHECK (kind IN ('reencrypt', 'dry_run', 'verify')),
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'dispatched', 'running', 'done', 'split', 'cancelled')),
  after_key text[],
  upto_key text[],
  cells jsonb,
  cursor_key text[],
  follows bigint REFERENCES keyturn.batch,
  depth integer NOT NULL DEFAULT 0,
  waits integer NOT NULL DEFAULT 0,
  not_before timestamptz NOT NULL DEFAULT '-infinity',
  generation integer NOT NULL DEFAULT 0,
  attempts integer NOT NULL DEFAULT 0,
  lease_token uuid,
  lease_until timestamptz,
  member_id uuid,
  slices integer NOT NULL DEFAULT 0,
  cells_stale bigint NOT NULL DEFAULT 0,
  last_error text,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  dispatched_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz,${counts}
)`,
  `CREATE INDEX batch_of_run ON keyturn.batch (run_id, pass, state)`,
  `CREATE INDEX batch_pending ON keyturn.batch (run_id, id) WHERE state = 'pending'`,
  `CREATE INDEX batch_out ON keyturn.batch (state, lease_until) WHERE state IN ('dispatched', 'running')`,
  // What was done, one entry per slice, written in the transaction that changed the rows (I4).
  `CREATE TABLE keyturn.ledger (
  batch_id bigint NOT NULL REFERENCES keyturn.batch,
  slice integer NOT NULL,
  member_id uuid NOT NULL,
  committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  read_ms real NOT NULL,
  crypto_ms real NOT NULL,
  write_ms real NOT NULL,${counts},
  PRIMARY KEY (batch_id, slice)
)`,
  // What reads have moved, written in the transaction that changed the rows. Applications write through the function alone.
  `CREATE TABLE keyturn.lazy_upgrade (
  target_id uuid NOT NULL REFERENCES keyturn.target,
  key_id bigint NOT NULL REFERENCES keyturn.data_key,
  member_id uuid NOT NULL,
  day date NOT NULL,
  rows_updated bigint NOT NULL,
  rows_conflicted bigint NOT NULL,
  cells_reencrypted bigint NOT NULL,
  cells_failed bigint NOT NULL,
  last_at timestamptz NOT NULL,
  PRIMARY KEY (target_id, key_id, member_id, day)
)`,
  `CREATE FUNCTION keyturn.count_lazy_upgrade(target uuid, key bigint, member uuid, updated bigint, conflicted bigint, reencrypted bigint,
  failed bigint) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
  INSERT INTO keyturn.lazy_upgrade AS u (target_id, key_id, member_id, day, rows_updated, rows_conflicted, cells_reencrypted, cells_failed, last_at)
  VALUES (target, key, member, (clock_timestamp() AT TIME ZONE 'UTC')::date, updated, conflicted, reencrypted, failed, clock_timestamp())
  ON CONFLICT (target_id, key_id, member_id, day) DO UPDATE SET rows_updated = u.rows_updated + excluded.rows_updated,
    rows_conflicted = u.rows_conflicted + excluded.rows_conflicted, cells_reencrypted = u.cells_reencrypted + excluded.cells_reencrypted,
    cells_failed = u.cells_failed + excluded.cells_failed, last_at = excluded.last_at
$$`,
  `REVOKE ALL ON FUNCTION keyturn.count_lazy_upgrade FROM PUBLIC`,
  `CREATE TABLE keyturn.quarantine (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  run_id bigint NOT NULL REFERENCES keyturn.run,
  batch_id bigint NOT NULL REFERENCES keyturn.batch,
  target_id uuid NOT NULL REFERENCES keyturn.target,
  column_id uuid NOT NULL REFERENCES keyturn.target_column,
  row_key text[] NOT NULL,
  key_id bigint,
  cause text NOT NULL,
  seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  resolved_at timestamptz,
  resolution text CHECK (resolution IN ('settled', 'declared')),
  CHECK ((resolved_at IS NULL) = (resolution IS NULL)),
  UNIQUE (run_id, column_id, row_key)
)`,
  `CREATE INDEX quarantine_of_batch ON keyturn.quarantine (batch_id)`,
  // The pace of all workers together, as the leading supervisor last measured it.
  `CREATE TABLE keyturn.pace (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  target_workers integer CHECK (target_workers >= 0),
  nice real NOT NULL DEFAULT 0 CHECK (nice >= 0),
  reason text,
  signals jsonb NOT NULL DEFAULT '{}',
  measured_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`,
  `CREATE INDEX quarantine_unresolved ON keyturn.quarantine (target_id, row_key) WHERE resolved_at IS NULL`,
  `CREATE TABLE keyturn.leadership (
  name text PRIMARY KEY,
  holder uuid NOT NULL,
  fencing_token bigint NOT NULL,
  expires_at timestamptz NOT NULL,
  health_url text
)`,
  // One policy per keyring. A schedule that was removed stays as the history of its occurrences.
  `CREATE TABLE keyturn.schedule (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  keyring_id uuid NOT NULL UNIQUE REFERENCES keyturn.keyring,
  cron text NOT NULL,
  time_zone text NOT NULL,
  gradual_seconds bigint NOT NULL CHECK (gradual_seconds >= 0),
  next_at timestamptz NOT NULL,
  enabled boolean NOT NULL DEFAULT true,
  reason text,
  created_by text NOT NULL DEFAULT session_user,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`,
  // One due time of a schedule, and how far its policy has come. A time fires once, whoever sees it.
  `CREATE TABLE keyturn.occurrence (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  schedule_id bigint NOT NULL REFERENCES keyturn.schedule,
  period timestamptz NOT NULL,
  state text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'rotating', 'gradual', 'reencrypting', 'retiring', 'done', 'failed', 'cancelled')),
  waits_for text,
  not_before timestamptz NOT NULL DEFAULT '-infinity',
  key_id bigint REFERENCES keyturn.data_key,
  gradual_until timestamptz,
  run_id bigint REFERENCES keyturn.run,
  fired_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  finished_at timestamptz,
  cause text,
  UNIQUE (schedule_id, period)
)`,
  `CREATE UNIQUE INDEX occurrence_one_open ON keyturn.occurrence (schedule_id) WHERE state NOT IN ('done', 'failed', 'cancelled')`,
  // before and after are json, not jsonb: the text that was written is the text that was hashed, whatever the server version.
  `CREATE TABLE keyturn.audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor text NOT NULL DEFAULT session_user,
  action text NOT NULL,
  object text NOT NULL,
  reason text,
  before json,
  after json
)`,
  // The chain over the record (docs/audit.md). n counts in the order of commits and has no gaps.
  `CREATE TABLE keyturn.audit_link (
  n bigint PRIMARY KEY CHECK (n > 0),
  audit_id bigint NOT NULL UNIQUE REFERENCES keyturn.audit,
  hash bytea NOT NULL CHECK (octet_length(hash) = 32)
)`,
  `CREATE TABLE keyturn.audit_head (
  singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
  n bigint NOT NULL,
  hash bytea NOT NULL CHECK (octet_length(hash) = 32)
)`,
  `INSERT INTO keyturn.audit_head (n, hash) VALUES (0, decode(repeat('00', 32), 'hex'))`,
  `CREATE TABLE keyturn.audit_seal (
  n bigint NOT NULL,
  data_key_id bigint NOT NULL REFERENCES keyturn.data_key,
  hash bytea NOT NULL CHECK (octet_length(hash) = 32),
  sealed_at timestamptz NOT NULL,
  mac bytea NOT NULL CHECK (octet_length(mac) = 32),
  PRIMARY KEY (n, data_key_id)
)`,
  `CREATE FUNCTION keyturn.stamp_audit() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.at := clock_timestamp();
  NEW.actor := session_user;
  RETURN NEW;
END $$`,
  `CREATE TRIGGER audit_stamp BEFORE INSERT ON keyturn.audit FOR EACH ROW EXECUTE FUNCTION keyturn.stamp_audit()`,
  `CREATE FUNCTION keyturn.audit_field(value text) RETURNS bytea LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT CASE WHEN value IS NULL THEN decode('00', 'hex')
    ELSE decode('01', 'hex') || int4send(octet_length(convert_to(value, 'UTF8'))) || convert_to(value, 'UTF8') END
$$`,
  // Deferred to the commit: whoever waits for the head holds every other lock it will ever want, so nobody waits in a circle.
  `CREATE FUNCTION keyturn.chain_audit() RETURNS trigger LANGUAGE plpgsql
  SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  head keyturn.audit_head;
  link bytea;
BEGIN
  SELECT * INTO STRICT head FROM keyturn.audit_head FOR UPDATE;
  link := sha256(convert_to('keyturn/v1/audit', 'UTF8') || decode('00', 'hex') || int8send(head.n + 1) || head.hash
    || int8send(NEW.id) || int8send((extract(epoch FROM NEW.at) * 1000000)::bigint)
    || keyturn.audit_field(NEW.actor) || keyturn.audit_field(NEW.action) || keyturn.audit_field(NEW.object)
    || keyturn.audit_field(NEW.reason) || keyturn.audit_field(NEW.before::text) || keyturn.audit_field(NEW.after::text));
  INSERT INTO keyturn.audit_link (n, audit_id, hash) VALUES (head.n + 1, NEW.id, link);
  UPDATE keyturn.audit_head SET n = head.n + 1, hash = link;
  RETURN NULL;
END $$`,
  `CREATE CONSTRAINT TRIGGER audit_chain AFTER INSERT ON keyturn.audit DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION keyturn.chain_audit()`,
  `REVOKE ALL ON FUNCTION keyturn.stamp_audit(), keyturn.audit_field(text), keyturn.chain_audit() FROM PUBLIC`,
  `CREATE FUNCTION keyturn.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'keyturn.% is append-only', TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
END $$`,
  ...['audit', 'audit_link', 'audit_seal'].map(
    (table) => `CREATE TRIGGER ${table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON keyturn.${table}
  FOR EACH STATEMENT EXECUTE FUNCTION keyturn.refuse_audit_change()`,
  ),
];

export class ControlSchema1767225600000 implements MigrationInterface {
  async up(queryRunner: QueryRunner): Promise<void> {
    for (const statement of controlSchemaStatements) await queryRunner.query(statement);
  }

  /** Forward only: a control schema holds the keys, so undoing it would lose data. */
  async down(): Promise<void> {
    throw new Error('the control schema is forward only');
  }
}
