// The control schema: keys, registry, members, runs, batches with their ledger, quarantine, audit. Never edited once
// released; a change is a new migration.
import type { MigrationInterface, QueryRunner } from 'typeorm';

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
  queue_marker uuid
)`,
  `CREATE TABLE keyturn.root_key (
  id bigint GENERATED ALWAYS AS IDENTITY (MAXVALUE 4294967295) PRIMARY KEY,
  fingerprint bytea NOT NULL UNIQUE CHECK (octet_length(fingerprint) = 32),
  verification_token bytea NOT NULL,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`,
  `CREATE TABLE keyturn.keyring (
  id uuid PRIMARY KEY,
  name text NOT NULL UNIQUE,
  algorithm text NOT NULL,
  root_uris text[] NOT NULL,
  generation bigint NOT NULL DEFAULT 1,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  lazy_is_on boolean NOT NULL DEFAULT true,
  lazy_rows_per_second integer NOT NULL DEFAULT 500 CHECK (lazy_rows_per_second > 0),
  lazy_sample real NOT NULL DEFAULT 1 CHECK (lazy_sample > 0 AND lazy_sample <= 1)
)`,
  `CREATE SEQUENCE keyturn.key_id AS bigint MINVALUE 1 MAXVALUE 4294967295 NO CYCLE`,
  // scope_id names keyring and tenant; without tenant keys it is the keyring's own id.
  `CREATE TABLE keyturn.data_key (
  id bigint PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),
  keyring_id uuid NOT NULL REFERENCES keyturn.keyring,
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
  UNIQUE (keyring_id, version)
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
  `CREATE TABLE keyturn.retirement (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  data_key_id bigint NOT NULL REFERENCES keyturn.data_key,
  provisional boolean NOT NULL,
  snapshot text NOT NULL,
  scanned_at timestamptz NOT NULL,
  evidence jsonb NOT NULL
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
  `CREATE TABLE keyturn.target_column (
  id uuid PRIMARY KEY,
  target_id uuid NOT NULL REFERENCES keyturn.target,
  name text NOT NULL,
  attribute smallint NOT NULL,
  column_name text NOT NULL,
  path text[],
  format text NOT NULL,
  bind text NOT NULL CHECK (bind IN ('row', 'column')),
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  UNIQUE (target_id, name)
)`,
  `CREATE TABLE keyturn.member (
  id uuid PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('application', 'worker', 'supervisor')),
  name text NOT NULL,
  host text NOT NULL,
  pid integer NOT NULL,
  version text NOT NULL,
  formats text[] NOT NULL,
  algorithms text[] NOT NULL,
  started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  heartbeat_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`,
  `CREATE TABLE keyturn.member_keyring (
  member_id uuid NOT NULL REFERENCES keyturn.member ON DELETE CASCADE,
  keyring_id uuid NOT NULL REFERENCES keyturn.keyring,
  generation bigint NOT NULL,
  write_key_id bigint,
  held_key_ids bigint[] NOT NULL,
  PRIMARY KEY (member_id, keyring_id)
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
  pass integer NOT NULL DEFAULT 0,
  round integer NOT NULL DEFAULT 0,
  held_back_by text,
  reason text,
  requested_by text NOT NULL DEFAULT session_user,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  started_at timestamptz,
  resumed_at timestamptz,
  verified_at timestamptz,
  finished_at timestamptz
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
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'dispatched', 'running', 'done', 'cancelled')),
  after_key text[],
  upto_key text[],
  cells jsonb,
  cursor_key text[],
  follows bigint REFERENCES keyturn.batch,
  depth integer NOT NULL DEFAULT 0,
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
  failed bigint) RETURNS void LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
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
  UNIQUE (run_id, column_id, row_key)
)`,
  `CREATE INDEX quarantine_of_batch ON keyturn.quarantine (batch_id)`,
  `CREATE TABLE keyturn.leadership (
  name text PRIMARY KEY,
  holder uuid NOT NULL,
  fencing_token bigint NOT NULL,
  expires_at timestamptz NOT NULL
)`,
  `CREATE TABLE keyturn.audit (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor text NOT NULL DEFAULT session_user,
  action text NOT NULL,
  object text NOT NULL,
  reason text,
  before jsonb,
  after jsonb
)`,
  `CREATE FUNCTION keyturn.refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'keyturn.audit is append-only' USING ERRCODE = 'insufficient_privilege';
END $$`,
  `CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON keyturn.audit
  FOR EACH STATEMENT EXECUTE FUNCTION keyturn.refuse_audit_change()`,
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
