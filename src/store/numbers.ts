// The numbers of the whole cluster, for metrics: a few statements over the control tables, none over application tables. Sums
// go over the batch rows of unfinished runs; rows left are those estimated when the pass began, less those settled.
import type { RunKind, RunState } from '../rotation/run.js';
import type { Queryable } from './database.js';
import { memberLiveSeconds } from './members.js';

export interface RunNumbers {
  readonly id: number;
  readonly keyring: string;
  readonly kind: RunKind;
  readonly state: RunState;
  /** Of batches of the run's own kind. */
  readonly rows: {
    readonly updated: number;
    readonly skipped: number;
    readonly conflicted: number;
    readonly failed: number;
  };
  readonly passRows: number;
  readonly passEstimatedRows: number;
  readonly rowsPerSecond: number;
  readonly idleSeconds: number;
  readonly batches: {
    readonly pending: number;
    readonly dispatched: number;
    readonly running: number;
    readonly done: number;
  };
}

const rateWindowSeconds = 60;

/** Unfinished runs. */
export async function readRunNumbers(database: Queryable): Promise<readonly RunNumbers[]> {
  const { rows } = await database.query(
    `SELECT r.id, k.name, r.kind, r.state, b.updated, b.skipped, b.conflicted, b.failed, b.pass_rows,
       (SELECT coalesce(sum(t.estimated_rows), 0) FROM keyturn.run_target t WHERE t.run_id = r.id AND t.pass = r.pass),
       b.recent_rows / $1::float8,
       extract(epoch FROM clock_timestamp() - greatest(b.settled_at, r.created_at, r.started_at, r.resumed_at))::float8,
       b.pending, b.dispatched, b.running, b.done
     FROM keyturn.run r
     JOIN keyturn.keyring k ON k.id = r.keyring_id
     CROSS JOIN LATERAL (
       SELECT coalesce(sum(b.rows_updated) FILTER (WHERE b.kind = r.kind), 0) AS updated,
         coalesce(sum(b.rows_skipped) FILTER (WHERE b.kind = r.kind), 0) AS skipped,
         coalesce(sum(b.rows_conflicted) FILTER (WHERE b.kind = r.kind), 0) AS conflicted,
         coalesce(sum(b.rows_failed) FILTER (WHERE b.kind = r.kind), 0) AS failed,
         coalesce(sum(b.rows_examined) FILTER (WHERE b.pass = r.pass AND b.cells IS NULL), 0) AS pass_rows,
         coalesce(sum(l.recent_rows), 0) AS recent_rows,
         max(coalesce(b.finished_at, l.settled_at)) AS settled_at,
         count(*) FILTER (WHERE b.pass = r.pass AND b.state = 'pending') AS pending,
         count(*) FILTER (WHERE b.pass = r.pass AND b.state = 'dispatched') AS dispatched,
         count(*) FILTER (WHERE b.pass = r.pass AND b.state = 'running') AS running,
         count(*) FILTER (WHERE b.pass = r.pass AND b.state = 'done') AS done
       FROM keyturn.batch b
       -- The ledger of the few batches that are not done or were done a moment ago, by its primary key. The sub-select makes
       -- the moment one value, so that the ledger is not looked into at all for the others.
       LEFT JOIN LATERAL (
         SELECT max(l.committed_at) AS settled_at,
           sum(l.rows_examined) FILTER (WHERE l.committed_at > clock_timestamp() - make_interval(secs => $1)) AS recent_rows
         FROM keyturn.ledger l
         WHERE l.batch_id = b.id AND b.slices > 0 AND (b.finished_at IS NULL OR b.finished_at > (SELECT clock_timestamp() - make_interval(secs => $1)))
       ) l ON true
       WHERE b.run_id = r.id) b
     WHERE r.state NOT IN ('cancelled', 'succeeded', 'completed_with_failures', 'failed')
     ORDER BY r.id`,
    [rateWindowSeconds],
  );
  return rows.map(([id, keyring, kind, state, ...numbers]) => {
    const at = (position: number): number => Number(numbers[position] ?? 0);
    return {
      id: Number(id),
      keyring: String(keyring),
      kind: String(kind) as RunKind,
      state: String(state) as RunState,
      rows: { updated: at(0), skipped: at(1), conflicted: at(2), failed: at(3) },
      passRows: at(4),
      passEstimatedRows: at(5),
      rowsPerSecond: at(6),
      idleSeconds: Math.max(0, at(7)),
      batches: { pending: at(8), dispatched: at(9), running: at(10), done: at(11) },
    };
  });
}

/** How long the longest-waiting dispatched batch has waited for a worker; 0 when none waits. */
export async function readOldestDispatchedSeconds(database: Queryable): Promise<number> {
  const { rows } = await database.query(
    `SELECT extract(epoch FROM clock_timestamp() - min(dispatched_at))::float8 FROM keyturn.batch WHERE state = 'dispatched'`,
  );
  return Math.max(0, Number(rows[0]?.[0] ?? 0));
}

export interface QuarantineNumber {
  readonly cause: string;
  readonly cells: number;
}

/** Unresolved cells, over all runs. */
export async function readQuarantineNumbers(database: Queryable): Promise<readonly QuarantineNumber[]> {
  const { rows } = await database.query(
    `SELECT cause, count(*) FROM keyturn.quarantine WHERE resolved_at IS NULL GROUP BY cause ORDER BY cause`,
  );
  return rows.map(([cause, cells]) => ({ cause: String(cause), cells: Number(cells) }));
}

export interface LazyNumber {
  readonly keyring: string;
  /** Moved to the active key. */
  readonly cells: number;
}

export async function readLazyNumbers(database: Queryable): Promise<readonly LazyNumber[]> {
  const { rows } = await database.query(
    `SELECT k.name, coalesce(sum(u.cells_reencrypted), 0) FROM keyturn.keyring k
     LEFT JOIN keyturn.data_key d ON d.keyring_id = k.id AND d.state = 'active'
     LEFT JOIN keyturn.lazy_upgrade u ON u.key_id = d.id GROUP BY k.name ORDER BY k.name`,
  );
  return rows.map(([keyring, cells]) => ({ keyring: String(keyring), cells: Number(cells) }));
}

export interface KeyringNumbers {
  readonly keyring: string;
  readonly generation: number;
  /** Undefined where no key is active. */
  readonly activeKeyAgeSeconds: number | undefined;
  /** Of the keys that still decrypt. */
  readonly oldestKeyAgeSeconds: number | undefined;
  readonly cryptoperiodSeconds: number;
  /** Until its schedule rotates it; undefined where it has none, negative where a time has come and not fired. */
  readonly nextRotationSeconds: number | undefined;
  /** Reserved under the active key so far; 0 where none is active. */
  readonly encryptions: number;
  readonly algorithm: string | undefined;
}

export async function readKeyringNumbers(database: Queryable): Promise<readonly KeyringNumbers[]> {
  const { rows } = await database.query(
    `SELECT k.name, k.generation,
       extract(epoch FROM clock_timestamp() - max(d.activated_at) FILTER (WHERE d.state = 'active'))::float8,
       extract(epoch FROM clock_timestamp() - min(d.activated_at) FILTER (WHERE d.state IN ('active', 'decrypt_only')))::float8,
       k.cryptoperiod_days * 86400,
       extract(epoch FROM min(s.next_at) - clock_timestamp())::float8,
       coalesce(max(u.reserved) FILTER (WHERE d.state = 'active'), 0), max(d.algorithm) FILTER (WHERE d.state = 'active')
     FROM keyturn.keyring k LEFT JOIN keyturn.data_key d ON d.keyring_id = k.id
     LEFT JOIN keyturn.key_usage u ON u.data_key_id = d.id
     LEFT JOIN keyturn.schedule s ON s.keyring_id = k.id AND s.enabled
     GROUP BY k.id ORDER BY k.name`,
  );
  return rows.map(([keyring, generation, active, oldest, cryptoperiod, next, encryptions, algorithm]) => ({
    keyring: String(keyring),
    generation: Number(generation),
    activeKeyAgeSeconds: typeof active === 'number' ? active : undefined,
    oldestKeyAgeSeconds: typeof oldest === 'number' ? oldest : undefined,
    cryptoperiodSeconds: Number(cryptoperiod),
    nextRotationSeconds: typeof next === 'number' ? next : undefined,
    encryptions: Number(encryptions),
    algorithm: algorithm === null ? undefined : String(algorithm),
  }));
}

export interface MemberNumbers {
  readonly kind: string;
  readonly live: number;
}

export async function readMemberNumbers(database: Queryable): Promise<readonly MemberNumbers[]> {
  const { rows } = await database.query(
    `SELECT kind, count(*) FROM keyturn.member WHERE heartbeat_at > clock_timestamp() - make_interval(secs => $1) GROUP BY kind`,
    [memberLiveSeconds],
  );
  return rows.map(([kind, live]) => ({ kind: String(kind), live: Number(live) }));
}

export interface HoldingNumbers {
  readonly kind: string;
  readonly keyring: string;
  readonly generation: number;
  readonly isBehind: boolean;
  readonly members: number;
}

/** Live members by what they hold. */
export async function readHoldingNumbers(database: Queryable): Promise<readonly HoldingNumbers[]> {
  const { rows } = await database.query(
    `SELECT m.kind, k.name, h.generation, h.generation < k.generation, count(*)
     FROM keyturn.member m JOIN keyturn.member_keyring h ON h.member_id = m.id JOIN keyturn.keyring k ON k.id = h.keyring_id
     WHERE m.heartbeat_at > clock_timestamp() - make_interval(secs => $1)
     GROUP BY m.kind, k.name, h.generation, k.generation ORDER BY 1, 2, 3`,
    [memberLiveSeconds],
  );
  return rows.map(([kind, keyring, generation, isBehind, members]) => ({
    kind: String(kind),
    keyring: String(keyring),
    generation: Number(generation),
    isBehind: isBehind === true,
    members: Number(members),
  }));
}
