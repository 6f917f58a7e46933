// Lazy upgrades in the control schema: how far they may go, per keyring, and what they have moved, counted per target, key,
// member and day in the transaction that changes the rows (I4).
import { KeyturnError } from '../errors.js';
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';

export interface LazySettings {
  readonly isOn: boolean;
  /** At most so many rows a second and process. */
  readonly rowsPerSecond: number;
  /** The share of stale reads that queue their row, over 0 to 1. */
  readonly sample: number;
}

/** Throws KEYRING_NOT_FOUND. */
export async function readLazySettings(database: Queryable, keyring: string): Promise<LazySettings> {
  const { rows } = await database.query(
    'SELECT lazy_is_on, lazy_rows_per_second, lazy_sample FROM keyturn.keyring WHERE name = $1',
    [keyring],
  );
  const row = rows[0];
  if (row === undefined)
    throw new KeyturnError('KEYRING_NOT_FOUND', `there is no keyring "${keyring}"; see: keyturn key list`, { keyring });
  return { isOn: row[0] === true, rowsPerSecond: Number(row[1]), sample: Number(row[2]) };
}

/** Members read it with their next write; none restarts. */
export async function writeLazySettings(
  client: Queryable,
  keyring: string,
  before: LazySettings,
  after: LazySettings,
  reason: string | undefined,
): Promise<void> {
  await client.query(
    'UPDATE keyturn.keyring SET lazy_is_on = $2, lazy_rows_per_second = $3, lazy_sample = $4 WHERE name = $1',
    [keyring, after.isOn, after.rowsPerSecond, after.sample],
  );
  await writeAudit(client, {
    action: 'keyring.lazy',
    object: `keyring ${keyring}`,
    reason,
    before: { ...before },
    after: { ...after },
  });
}

export interface LazyCount {
  readonly targetId: string;
  readonly keyId: number;
  readonly memberId: string;
  readonly rowsUpdated: number;
  readonly rowsConflicted: number;
  readonly cellsReencrypted: number;
  readonly cellsFailed: number;
}

export async function countLazyUpgrade(client: Queryable, count: LazyCount): Promise<void> {
  await client.query('SELECT keyturn.count_lazy_upgrade($1, $2, $3, $4, $5, $6, $7)', [
    count.targetId,
    count.keyId,
    count.memberId,
    count.rowsUpdated,
    count.rowsConflicted,
    count.cellsReencrypted,
    count.cellsFailed,
  ]);
}

export interface LazySum {
  readonly rows: number;
  readonly cells: number;
  /** Of the cells, those of the last seven days. */
  readonly cellsThisWeek: number;
  readonly lastAt: Date | undefined;
}

/** What reads have moved to one key. */
export async function sumLazyUpgrades(database: Queryable, keyId: number): Promise<LazySum> {
  const { rows } = await database.query(
    `SELECT coalesce(sum(rows_updated), 0), coalesce(sum(cells_reencrypted), 0),
       coalesce(sum(cells_reencrypted) FILTER (WHERE day > (clock_timestamp() AT TIME ZONE 'UTC')::date - 7), 0), max(last_at)
     FROM keyturn.lazy_upgrade WHERE key_id = $1`,
    [keyId],
  );
  const [rowCount, cells, week, lastAt] = rows[0] ?? [];
  return {
    rows: Number(rowCount),
    cells: Number(cells),
    cellsThisWeek: Number(week),
    lastAt: (lastAt as Date | null) ?? undefined,
  };
}
