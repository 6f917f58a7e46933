// One supervisor leads: a lease row with a fencing token that grows with every change of leader. A leader that slept past
// its lease finds its token outdated and its statements refused.
import type { Queryable } from './database.js';

export const leadershipSeconds = 15;

export interface Leadership {
  readonly holder: string;
  readonly fencingToken: number;
}

/** Takes or renews the lease; undefined while another holder's is live. `healthUrl`: where the holder answers, for `status`. */
export async function holdLeadership(
  database: Queryable,
  holder: string,
  healthUrl?: string,
): Promise<Leadership | undefined> {
  const { rows } = await database.query(
    `INSERT INTO keyturn.leadership AS l (name, holder, fencing_token, expires_at, health_url)
     VALUES ('supervisor', $1, 1, clock_timestamp() + make_interval(secs => $2), $3)
     ON CONFLICT (name) DO UPDATE SET
       fencing_token = l.fencing_token + CASE WHEN l.holder = excluded.holder THEN 0 ELSE 1 END,
       holder = excluded.holder, expires_at = excluded.expires_at, health_url = excluded.health_url
     WHERE l.holder = excluded.holder OR l.expires_at < clock_timestamp()
     RETURNING fencing_token`,
    [holder, leadershipSeconds, healthUrl ?? null],
  );
  return rows[0] === undefined ? undefined : { holder, fencingToken: Number(rows[0][0]) };
}

/**
 * Locks the lease row for the rest of the transaction; false when this leader has been replaced. A leader that is frozen
 * before it commits would keep every successor waiting for the row, so the server ends its transaction after 10 s.
 */
export async function stillLeads(client: Queryable, leadership: Leadership): Promise<boolean> {
  const { rowCount } = await client.query(
    `SELECT set_config('idle_in_transaction_session_timeout', '10s', true) FROM keyturn.leadership
     WHERE name = 'supervisor' AND holder = $1 AND fencing_token = $2 FOR UPDATE`,
    [leadership.holder, leadership.fencingToken],
  );
  return rowCount === 1;
}

export async function giveUpLeadership(database: Queryable, leadership: Leadership): Promise<void> {
  await database.query(
    `UPDATE keyturn.leadership SET expires_at = clock_timestamp() WHERE name = 'supervisor' AND holder = $1 AND fencing_token = $2`,
    [leadership.holder, leadership.fencingToken],
  );
}

export interface Leader {
  readonly healthUrl: string | undefined;
}

/** Undefined while nobody leads. */
export async function findLeader(database: Queryable): Promise<Leader | undefined> {
  const { rows } = await database.query(
    `SELECT health_url FROM keyturn.leadership WHERE name = 'supervisor' AND expires_at > clock_timestamp()`,
  );
  const [row] = rows;
  return row === undefined ? undefined : { healthUrl: row[0] === null ? undefined : String(row[0]) };
}

export async function hasLeader(database: Queryable): Promise<boolean> {
  return (await findLeader(database)) !== undefined;
}
