// One supervisor leads: a lease row with a fencing token that grows with every change of leader. A leader that slept past
// its lease finds its token outdated and its statements refused.
import type { Queryable } from './database.js';

export const leadershipSeconds = 15;

export interface Leadership {
  readonly holder: string;
  readonly fencingToken: number;
}

/** Takes or renews the lease; undefined while another holder's is live. */
export async function holdLeadership(database: Queryable, holder: string): Promise<Leadership | undefined> {
  const { rows } = await database.query(
    `INSERT INTO keyturn.leadership AS l (name, holder, fencing_token, expires_at)
     VALUES ('supervisor', $1, 1, clock_timestamp() + make_interval(secs => $2))
     ON CONFLICT (name) DO UPDATE SET
       fencing_token = l.fencing_token + CASE WHEN l.holder = excluded.holder THEN 0 ELSE 1 END,
       holder = excluded.holder, expires_at = excluded.expires_at
     WHERE l.holder = excluded.holder OR l.expires_at < clock_timestamp()
     RETURNING fencing_token`,
    [holder, leadershipSeconds],
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

export async function hasLeader(database: Queryable): Promise<boolean> {
  const { rows } = await database.query(
    `SELECT EXISTS (SELECT 1 FROM keyturn.leadership WHERE name = 'supervisor' AND expires_at > clock_timestamp())`,
  );
  return rows[0]?.[0] === true;
}
