// How a run and the fleet stand for one batch in a worker's hands: part of the statements that claim and advance it, so
// that hearing of a pause, a limit or a new pace costs no round trip.
import type { RunState } from '../rotation/run.js';
import type { Standing } from '../rotation/standing.js';
import type { Row } from './database.js';
import { limitColumns, limitsOf, limitWidth } from './limits.js';

/**
 * A worker that rests after the last slice of a batch has none in hand and still has its share; no rest is longer than
 * this (see `restAfter`).
 */
const restsAtMostSeconds = 5;

/** For `standingOf`; goes with `standingFrom`. */
export const standingColumns = `r.state, clock_timestamp(), p.target_workers, p.nice, extract(epoch FROM clock_timestamp() - p.measured_at)::float8,
     ahead.in_run, ahead.in_all, sharers.others, ${limitColumns}`;

/** `batches`: a query's name whose rows are batches in hand, with id, run_id, pass and member_id; here as `b`. */
export function standingFrom(batches: string): string {
  return `FROM ${batches} b JOIN keyturn.run r ON r.id = b.run_id LEFT JOIN keyturn.pace p ON true
     CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE o.run_id = r.id) AS in_run, count(*) AS in_all
       FROM keyturn.batch o JOIN keyturn.run other ON other.id = o.run_id
       WHERE o.state = 'running' AND o.id <> b.id AND (other.priority, -o.id) > (r.priority, -b.id)) ahead
     CROSS JOIN LATERAL (
       SELECT count(DISTINCT o.member_id) AS others FROM keyturn.batch o
       WHERE r.max_rows_per_second IS NOT NULL AND o.run_id = r.id AND o.pass = b.pass AND o.state IN ('running', 'done')
         AND (o.state = 'running' OR o.finished_at > clock_timestamp() - make_interval(secs => ${restsAtMostSeconds}))
         AND o.member_id <> b.member_id) sharers`;
}

export const standingWidth = 8 + limitWidth;

export function standingOf(row: Row): Standing {
  const [runState, now, targetWorkers, nice, paceAgeSeconds, aheadInRun, ahead, otherSharers, ...limits] = row;
  return {
    runState: String(runState) as RunState,
    now: now as Date,
    limits: limitsOf(limits),
    sharers: 1 + Number(otherSharers),
    aheadInRun: Number(aheadInRun),
    ahead: Number(ahead),
    pace:
      nice === null
        ? undefined
        : {
            targetWorkers: targetWorkers === null ? undefined : Number(targetWorkers),
            nice: Number(nice),
            ageSeconds: Number(paceAgeSeconds),
          },
  };
}
