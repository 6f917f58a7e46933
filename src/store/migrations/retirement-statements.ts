// The part of the control schema that guards the end of a key: legal moves, the fence's function, and destruction by two
// people. What stands here holds whatever the program does; only whoever may change the schema itself can get round it
// (docs/retiring.md). Belongs to migration 0001.
import { keyMoves } from '../../keys/states.js';

/** SQLSTATE of a write that a fence refuses. */
export const fenceState = 'KTF01';
/** SQLSTATE of a move, a request or an approval that the guards refuse. */
export const guardState = 'KTG01';

/** The smallest waiting time of a key that was ever active. */
export const leastWaitDays = 7;

const legalMoves = Object.entries(keyMoves)
  .flatMap(([from, all]) => all.map((to) => `('${from}', '${to}')`))
  .join(', ');

/** Body of the fence's function, compared with what the database has: a fence is as good as its function. */
export const refuseEnvelopeBody = `
DECLARE
  key_id bigint;
BEGIN
  BEGIN
    EXECUTE 'SELECT ' || TG_ARGV[0] INTO key_id USING NEW, OLD;
  EXCEPTION WHEN OTHERS THEN
    key_id := NULL; -- A column was renamed since: refused all the same.
  END;
  RAISE EXCEPTION USING ERRCODE = '${fenceState}', SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME,
    MESSAGE = format('keyturn fence: a value for %I.%I names key %s, which is retired or about to be', TG_TABLE_SCHEMA, TG_TABLE_NAME, coalesce(key_id::text, 'unknown')),
    HINT = 'Encrypt it with the active key; a process that still writes with an older one must be updated or restarted.';
END `;

/** Table and trigger: what holds the states of keys and the second login. */
export const guards: readonly (readonly [string, string])[] = [
  ['data_key', 'data_key_guard'],
  ['data_key', 'data_key_stays'],
  ['data_key_wrap', 'data_key_wrap_guard'],
  ['data_key_wrap', 'data_key_wrap_remembered'],
  ['data_key_wrap', 'data_key_wrap_stays'],
  ['root_key', 'root_key_suspicion'],
  ['destruction', 'destruction_guard'],
  ['destruction', 'destruction_stays'],
  ['retirement', 'retirement_stays'],
];

export const retirementStatements: readonly string[] = [
  `CREATE TABLE keyturn.retirement (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  data_key_id bigint NOT NULL REFERENCES keyturn.data_key,
  snapshot text NOT NULL,
  scanned_at timestamptz NOT NULL,
  evidence jsonb NOT NULL
)`,
  // What one party asked for, another approved, and how it ended. The guards below fill in who and when.
  `CREATE TABLE keyturn.destruction (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  data_key_id bigint NOT NULL REFERENCES keyturn.data_key,
  wait_days integer NOT NULL CHECK (wait_days >= 0),
  reason text NOT NULL CHECK (reason <> ''),
  not_before timestamptz NOT NULL,
  request text NOT NULL,
  hash bytea NOT NULL UNIQUE CHECK (hash = sha256(convert_to(request, 'UTF8'))),
  requested_by text NOT NULL,
  requested_at timestamptz NOT NULL,
  approved_by text CHECK (approved_by <> requested_by),
  approved_at timestamptz,
  outcome text CHECK (outcome IN ('cancelled', 'destroyed')),
  ended_at timestamptz,
  CHECK ((approved_by IS NULL) = (approved_at IS NULL)),
  CHECK ((outcome IS NULL) = (ended_at IS NULL))
)`,
  `CREATE UNIQUE INDEX destruction_one_open ON keyturn.destruction (data_key_id) WHERE outcome IS NULL`,
  // The fences as they were raised, for comparing with what stands.
  `CREATE TABLE keyturn.fence (
  target_id uuid PRIMARY KEY REFERENCES keyturn.target,
  triggers jsonb NOT NULL,
  raised_at timestamptz NOT NULL DEFAULT clock_timestamp()
)`,
  `CREATE FUNCTION keyturn.refuse_envelope() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$${refuseEnvelopeBody}$$`,
  // Everything an approval is bound to, as one text: of another key, time, reason or proof it would be another hash.
  `CREATE FUNCTION keyturn.destruction_request(request keyturn.destruction) RETURNS text LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
  SELECT jsonb_build_object('label', 'keyturn/v1/destruction', 'request', (request).id, 'key', k.id, 'commitment', encode(k.commitment, 'hex'),
    'not_before', (extract(epoch FROM (request).not_before) * 1000000)::bigint, 'reason', (request).reason, 'requested_by', (request).requested_by,
    'evidence', (SELECT coalesce(jsonb_agg(r.id ORDER BY r.id), '[]') FROM keyturn.retirement r WHERE r.data_key_id = k.id))::text
  FROM keyturn.data_key k WHERE k.id = (request).data_key_id
$$`,
  `CREATE FUNCTION keyturn.guard_destruction() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  data_key keyturn.data_key;
BEGIN
  SELECT * INTO STRICT data_key FROM keyturn.data_key k WHERE k.id = NEW.data_key_id;
  IF TG_OP = 'INSERT' THEN
    IF NEW.wait_days < ${leastWaitDays} AND data_key.activated_at IS NOT NULL THEN
      RAISE EXCEPTION 'a key that was active waits at least ${leastWaitDays} days' USING ERRCODE = '${guardState}';
    END IF;
    NEW.requested_by := session_user;
    NEW.requested_at := clock_timestamp();
    NEW.not_before := NEW.requested_at + NEW.wait_days * interval '1 day';
    NEW.approved_by := NULL;
    NEW.approved_at := NULL;
    NEW.outcome := NULL;
    NEW.ended_at := NULL;
    NEW.request := keyturn.destruction_request(NEW);
    NEW.hash := sha256(convert_to(NEW.request, 'UTF8'));
    RETURN NEW;
  END IF;
  IF (NEW.id, NEW.data_key_id, NEW.wait_days, NEW.reason, NEW.not_before, NEW.request, NEW.hash, NEW.requested_by, NEW.requested_at)
    IS DISTINCT FROM (OLD.id, OLD.data_key_id, OLD.wait_days, OLD.reason, OLD.not_before, OLD.request, OLD.hash, OLD.requested_by, OLD.requested_at)
    OR OLD.outcome IS NOT NULL THEN
    RAISE EXCEPTION 'a request is never changed' USING ERRCODE = '${guardState}';
  END IF;
  IF NEW.outcome IS NOT NULL THEN
    NEW.approved_by := OLD.approved_by;
    NEW.approved_at := OLD.approved_at;
    NEW.ended_at := clock_timestamp();
    IF pg_trigger_depth() < 2 THEN
      RAISE EXCEPTION 'a request ends with the move of its key alone' USING ERRCODE = '${guardState}';
    END IF;
    RETURN NEW;
  END IF;
  IF session_user = OLD.requested_by THEN
    RAISE EXCEPTION 'whoever asked for a destruction cannot approve it' USING ERRCODE = '${guardState}';
  END IF;
  IF clock_timestamp() < OLD.not_before OR keyturn.destruction_request(OLD) IS DISTINCT FROM OLD.request THEN
    RAISE EXCEPTION 'the waiting time is not over, or the request is not about this key any more' USING ERRCODE = '${guardState}';
  END IF;
  NEW.approved_by := session_user;
  NEW.approved_at := clock_timestamp();
  NEW.ended_at := NULL;
  RETURN NEW;
END $$`,
  `CREATE TRIGGER destruction_guard BEFORE INSERT OR UPDATE ON keyturn.destruction FOR EACH ROW EXECUTE FUNCTION keyturn.guard_destruction()`,
  `CREATE FUNCTION keyturn.guard_key() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF (NEW.id, NEW.scope_id, NEW.version, NEW.algorithm, NEW.purpose, NEW.commitment) IS DISTINCT FROM
    (OLD.id, OLD.scope_id, OLD.version, OLD.algorithm, OLD.purpose, OLD.commitment)
    OR (OLD.activated_at IS NOT NULL AND NEW.activated_at IS NULL) THEN
    RAISE EXCEPTION 'what a data key is never changes' USING ERRCODE = '${guardState}';
  END IF;
  IF NOT NEW.wrapped_under @> OLD.wrapped_under THEN
    NEW.wrapped_under := ARRAY(SELECT DISTINCT root FROM unnest(NEW.wrapped_under || OLD.wrapped_under) AS root ORDER BY root);
  END IF;
  IF NEW.state = OLD.state THEN
    RETURN NEW;
  END IF;
  IF (OLD.state, NEW.state) NOT IN (${legalMoves}) THEN
    RAISE EXCEPTION 'a key that is % cannot become %', OLD.state, NEW.state USING ERRCODE = '${guardState}';
  END IF;
  IF NEW.state = 'pending_destruction' THEN
    PERFORM FROM keyturn.destruction d WHERE d.data_key_id = NEW.id AND d.outcome IS NULL;
    IF NOT FOUND THEN
      RAISE EXCEPTION 'nobody asked for the destruction of this key' USING ERRCODE = '${guardState}';
    END IF;
  ELSIF OLD.state = 'pending_destruction' AND NEW.state = 'retired' THEN
    UPDATE keyturn.destruction SET outcome = 'cancelled' WHERE data_key_id = NEW.id AND outcome IS NULL;
  ELSIF NEW.state = 'destroyed' THEN
    IF EXISTS (SELECT FROM keyturn.data_key_wrap w WHERE w.data_key_id = NEW.id) THEN
      RAISE EXCEPTION 'the key still has wraps' USING ERRCODE = '${guardState}';
    END IF;
    IF OLD.state = 'pending_destruction' THEN
      -- now() is when the transaction began: the scan in it may take longer than the approval counts.
      UPDATE keyturn.destruction d SET outcome = 'destroyed' WHERE d.data_key_id = NEW.id AND d.outcome IS NULL
        AND d.not_before <= clock_timestamp() AND d.approved_by <> d.requested_by
        AND d.approved_at > now() - interval '1 hour' AND keyturn.destruction_request(d) = d.request;
      IF NOT FOUND THEN
        RAISE EXCEPTION 'no approval of this destruction by a second login stands now' USING ERRCODE = '${guardState}';
      END IF;
    ELSIF OLD.activated_at IS NOT NULL THEN
      RAISE EXCEPTION 'a key that was active is retired first' USING ERRCODE = '${guardState}';
    END IF;
  END IF;
  RETURN NEW;
END $$`,
  `CREATE TRIGGER data_key_guard BEFORE UPDATE ON keyturn.data_key FOR EACH ROW EXECUTE FUNCTION keyturn.guard_key()`,
  // At the commit, so that a root change may bring new wraps after it took the old ones away.
  `CREATE FUNCTION keyturn.guard_wrap() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  IF EXISTS (SELECT FROM keyturn.data_key k WHERE k.id = OLD.data_key_id AND k.state <> 'destroyed')
    AND NOT EXISTS (SELECT FROM keyturn.data_key_wrap w WHERE w.data_key_id = OLD.data_key_id) THEN
    RAISE EXCEPTION 'key % would be left without a wrap', OLD.data_key_id USING ERRCODE = '${guardState}';
  END IF;
  RETURN NULL;
END $$`,
  `CREATE CONSTRAINT TRIGGER data_key_wrap_guard AFTER DELETE ON keyturn.data_key_wrap DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION keyturn.guard_wrap()`,
  // What root key a data key was ever wrapped under is known to whoever held that root and read the tables then.
  `CREATE FUNCTION keyturn.remember_wraps() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  UPDATE keyturn.data_key k SET wrapped_under = k.wrapped_under || a.roots
  FROM (SELECT data_key_id, array_agg(root_key_id ORDER BY root_key_id) AS roots FROM added GROUP BY data_key_id) a
  WHERE k.id = a.data_key_id AND NOT k.wrapped_under @> a.roots;
  RETURN NULL;
END $$`,
  `CREATE TRIGGER data_key_wrap_remembered AFTER INSERT ON keyturn.data_key_wrap REFERENCING NEW TABLE AS added
  FOR EACH STATEMENT EXECUTE FUNCTION keyturn.remember_wraps()`,
  `CREATE FUNCTION keyturn.keep_suspicion() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.suspect_at := coalesce(OLD.suspect_at, NEW.suspect_at);
  RETURN NEW;
END $$`,
  `CREATE TRIGGER root_key_suspicion BEFORE UPDATE ON keyturn.root_key FOR EACH ROW EXECUTE FUNCTION keyturn.keep_suspicion()`,
  `CREATE FUNCTION keyturn.refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'rows of keyturn.% stay', TG_TABLE_NAME USING ERRCODE = '${guardState}';
END $$`,
  ...[
    ['data_key', 'DELETE OR TRUNCATE'],
    ['data_key_wrap', 'TRUNCATE'],
    ['destruction', 'DELETE OR TRUNCATE'],
    ['retirement', 'UPDATE OR DELETE OR TRUNCATE'],
  ].map(
    ([table, events]) =>
      `CREATE TRIGGER ${table}_stays BEFORE ${events} ON keyturn.${table} FOR EACH STATEMENT EXECUTE FUNCTION keyturn.refuse_removal()`,
  ),
  `REVOKE ALL ON FUNCTION keyturn.refuse_envelope(), keyturn.destruction_request(keyturn.destruction), keyturn.guard_destruction(),
  keyturn.guard_key(), keyturn.guard_wrap(), keyturn.remember_wraps(), keyturn.keep_suspicion(), keyturn.refuse_removal() FROM PUBLIC`,
  // Whoever may pretend to be a replica would otherwise step over them.
  ...guards.map(([table, trigger]) => `ALTER TABLE keyturn.${table} ENABLE ALWAYS TRIGGER ${trigger}`),
];
