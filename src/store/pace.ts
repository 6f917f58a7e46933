// The pace of all workers together: one row, written by the supervisor that leads, read by workers with each slice (see
// standing.ts). No row means that nobody has ever set a pace.
import type { Queryable } from './database.js';

export interface PaceRow {
  /** Batches that workers may have at a time; undefined for no bound. */
  readonly targetWorkers: number | undefined;
  /** Rest per time of work. */
  readonly nice: number;
  /** In words, what holds the fleet back. */
  readonly reason: string | undefined;
  /** What was measured, as numbers and words for people; never values of rows. */
  readonly signals: Readonly<Record<string, unknown>>;
}

/** Replaces the pace, measured now. */
export async function writePace(client: Queryable, pace: PaceRow): Promise<void> {
  await client.query(
    `INSERT INTO keyturn.pace (target_workers, nice, reason, signals) VALUES ($1, $2, $3, $4)
     ON CONFLICT (singleton) DO UPDATE SET target_workers = excluded.target_workers, nice = excluded.nice,
       reason = excluded.reason, signals = excluded.signals, measured_at = clock_timestamp()`,
    [pace.targetWorkers ?? null, pace.nice, pace.reason ?? null, JSON.stringify(pace.signals)],
  );
}

/** Undefined when nobody has ever set one. */
export async function readPace(database: Queryable): Promise<(PaceRow & { readonly ageSeconds: number }) | undefined> {
  const { rows } = await database.query(
    `SELECT target_workers, nice, reason, signals, extract(epoch FROM clock_timestamp() - measured_at)::float8 FROM keyturn.pace`,
  );
  if (rows[0] === undefined) return undefined;
  const [targetWorkers, nice, reason, signals, ageSeconds] = rows[0];
  return {
    targetWorkers: targetWorkers === null ? undefined : Number(targetWorkers),
    nice: Number(nice),
    reason: reason === null ? undefined : String(reason),
    signals: signals as Record<string, unknown>,
    ageSeconds: Number(ageSeconds),
  };
}
