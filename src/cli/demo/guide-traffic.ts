// Sends the application's traffic to where the workers are: real updates on the very rows that move. Until the first
// conflict has been seen the writer goes nowhere else; then it spreads out again.
import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { ControlContext } from '../../control/context.js';
import type { App } from './crew.js';
import { readRunCounts } from './evidence.js';
import type { Crowd, ReadCounts, WriteCounts } from './messages.js';

export interface Applications {
  readonly writer: App<WriteCounts>;
  readonly reader: App<ReadCounts>;
}

/** About what a worker reads and rewrites until we look again. */
const crowdRows = 1_000;
const lookEveryMs = 50;

/** Goes on until the signal. `deadMember`: nothing moves in the batch of a killed worker. */
export async function guideTraffic(
  context: ControlContext,
  runId: number,
  { writer, reader }: Applications,
  options: { readonly deadMember: () => string | undefined; readonly until: AbortSignal },
): Promise<void> {
  while (!options.until.aborted) {
    const where = await findCrowd(context, runId, options.deadMember());
    await Promise.all([writer.tasks.crowd(where), reader.tasks.crowd(where)]);
    await delay(lookEveryMs);
  }
  await Promise.all([writer.tasks.crowd(null), reader.tasks.crowd(null)]);
}

/** The rows that a live worker has before it; null when none is in the middle of a range. */
async function findCrowd(
  context: ControlContext,
  runId: number,
  deadMember: string | undefined,
): Promise<Crowd | null> {
  const { rows } = await context.database.query(
    `SELECT coalesce((coalesce(cursor_key, after_key))[1]::bigint, 0), upto_key[1]::bigint FROM keyturn.batch
     WHERE run_id = $1 AND kind = 'reencrypt' AND state = 'running' AND cells IS NULL AND member_id IS DISTINCT FROM $2`,
    [runId, deadMember ?? null],
  );
  if (rows.length === 0) return null;
  const [cursor, last] = (rows[randomInt(rows.length)] ?? []).map(Number);
  if (cursor === undefined || last === undefined || cursor >= last) return null;
  const { byBatches } = await readRunCounts(context, runId);
  return { from: cursor + 1, upto: Math.min(cursor + crowdRows, last), isUrgent: byBatches.conflicted === 0 };
}
