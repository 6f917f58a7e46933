// When schedules fire, and what follows a firing: the policy of a keyring as one literal table of moves, and its calendar.
// Pure: the time is always given.
import { CronExpressionParser } from 'cron-parser';
import { KeyturnError } from '../errors.js';

const dayMs = 86_400_000;

/** At 03:00 on the first day of January, April, July and October. */
export const quarterly = '0 3 1 */3 *';
export const defaultGradualMs = 30 * dayMs;

/** Cron with five fields, in a named time zone: an hour that daylight saving skips or doubles needs a place to know of. */
export interface Times {
  readonly cron: string;
  readonly timeZone: string;
}

export type OccurrenceState =
  | 'due'
  | 'rotating'
  | 'gradual'
  | 'reencrypting'
  | 'retiring'
  | 'done'
  | 'failed'
  | 'cancelled';

export const occurrenceMoves: Readonly<Record<OccurrenceState, readonly OccurrenceState[]>> = {
  due: [
    'rotating', // a supervisor takes it up
    'failed', // the next time of the schedule came first
    'cancelled', // the schedule was removed
  ],
  rotating: [
    'gradual', // a key was activated since it fired, by a supervisor or by an operator
    'failed', // as above
    'cancelled', // as above
  ],
  gradual: [
    'reencrypting', // the gradual days are over: a run is ordered, or joined
    'failed', // as above
    'cancelled', // as above
  ],
  reencrypting: [
    'retiring', // the run has verified every cell
    'failed', // the run ended otherwise, or as above
    'cancelled', // as above
  ],
  retiring: [
    'done', // every key before the new one is proven unused and retired
    'failed', // as above
    'cancelled', // as above
  ],
  done: [],
  failed: [],
  cancelled: [],
};

export function mayMoveOccurrence(from: OccurrenceState, to: OccurrenceState): boolean {
  return occurrenceMoves[from].includes(to);
}

export function isOpen(state: OccurrenceState): boolean {
  return occurrenceMoves[state].length > 0;
}

/** Throws SCHEDULE_INVALID, saying what was expected. */
export function requireTimes({ cron, timeZone }: Times): void {
  const refuse = (why: string): never => {
    throw new KeyturnError('SCHEDULE_INVALID', why, { cron, timeZone });
  };
  if (!isNamedZone(timeZone))
    refuse(`"${timeZone}" is no time zone; expected a name such as Europe/Berlin or UTC, no offset`);
  // The parser would fill in missing fields, and takes seconds, and H for a random value: none of it is plain cron.
  if (cron.trim().split(/\s+/).length !== 5 || /(^|[\s,])H/i.test(cron))
    refuse(`"${cron}" is no cron expression of five fields: minute hour day month weekday, such as "${quarterly}"`);
  nextTimes({ cron, timeZone }, new Date(0), 1);
}

function isNamedZone(name: string): boolean {
  if (!/^[A-Za-z][\w+-]*(\/[\w+-]+)*$/.test(name)) return false;
  try {
    return new Intl.DateTimeFormat('en', { timeZone: name }).resolvedOptions().timeZone !== '';
  } catch {
    return false;
  }
}

/** The next times after `after`. An hour that is skipped fires as soon as it would have passed, a doubled one once. */
export function nextTimes({ cron, timeZone }: Times, after: Date, count: number): readonly Date[] {
  const next = timesAfter({ cron, timeZone }, after);
  return Array.from({ length: count }, next);
}

/** Throws SCHEDULE_INVALID also for what was valid where it was set: another machine may not know a newer time zone. */
function timesAfter({ cron, timeZone }: Times, after: Date): () => Date {
  const orRefuse = <T>(ask: () => T): T => {
    try {
      return ask();
    } catch {
      throw new KeyturnError(
        'SCHEDULE_INVALID',
        `"${cron}" in ${timeZone} never comes, or is unknown here; expected five fields such as "${quarterly}" and a time zone that this machine knows`,
        { cron, timeZone },
      );
    }
  };
  const expression = orRefuse(() => CronExpressionParser.parse(cron, { currentDate: after, tz: timeZone }));
  return () => orRefuse(() => expression.next().toDate());
}

export interface DueTime {
  /** The latest time that has come: it stands for those missed before it, which never fire. */
  readonly period: Date;
  /** The first that has not. */
  readonly nextAt: Date;
}

/** What fires at `now` for a schedule that was to fire at `nextAt`; undefined while that is still to come. */
export function dueTime(times: Times, nextAt: Date, now: Date): DueTime | undefined {
  if (nextAt > now) return undefined;
  const following = timesAfter(times, nextAt);
  let period = nextAt;
  for (;;) {
    const next = following();
    if (next > now) return { period, nextAt: next };
    period = next;
  }
}

export interface Policy extends Times {
  readonly gradualMs: number;
  readonly cryptoperiodDays: number;
}

const leastGapMs = 22 * 3_600_000;
const mostMarginMs = 14 * dayMs;

export interface Room {
  readonly shortestGapMs: number;
  readonly longestGapMs: number;
  /** From one rotation: what is over by then is over before the cryptoperiod, and before the next rotation. */
  readonly endMs: number;
  /** Kept for the run, its second scan and the proofs. */
  readonly marginMs: number;
}

/** How much time a policy has; looks ahead over the next two dozen times. */
export function roomOf(policy: Policy, now: Date): Room {
  const times = nextTimes(policy, now, 25).map((time) => time.getTime());
  const gaps = times.slice(1).map((time, at) => time - (times[at] ?? 0));
  const shortestGapMs = Math.min(...gaps);
  const endMs = Math.min(policy.cryptoperiodDays * dayMs, shortestGapMs);
  return { shortestGapMs, longestGapMs: Math.max(...gaps), endMs, marginMs: Math.min(mostMarginMs, endMs / 4) };
}

/** Throws SCHEDULE_INVALID for a policy that cannot be over in time. */
export function requireRoom(policy: Policy, now: Date): Room {
  requireTimes(policy);
  const room = roomOf(policy, now);
  if (room.shortestGapMs < leastGapMs)
    throw new KeyturnError('SCHEDULE_INVALID', `"${policy.cron}" fires more often than daily; expected at most daily`, {
      cron: policy.cron,
    });
  const mostMs = room.endMs - room.marginMs;
  if (policy.gradualMs > mostMs) {
    const reason =
      room.endMs === room.shortestGapMs
        ? `the next rotation may come ${days(room.endMs)} after one`
        : `the cryptoperiod is ${days(room.endMs)}`;
    throw new KeyturnError(
      'SCHEDULE_INVALID',
      `${days(policy.gradualMs)} of gradual reencryption do not fit: ${reason}, and ${days(room.marginMs)} of it are kept for the run, its scan and the proof; expected at most --gradual ${Math.floor(mostMs / dayMs)}d`,
      { cron: policy.cron },
    );
  }
  return room;
}

function days(ms: number): string {
  const count = Math.round(ms / dayMs / 0.1) * 0.1;
  return `${Number(count.toFixed(1))} ${count === 1 ? 'day' : 'days'}`;
}

/** When the phases of a rotation end whose key became active at `activatedAt`. */
export interface Phases {
  readonly gradualUntil: Date;
  /** The end of the cryptoperiod: everything is to be over by then. */
  readonly overBy: Date;
}

/** A cryptoperiod that was shortened since the policy was set shortens the gradual days. */
export function phasesOf(policy: Pick<Policy, 'gradualMs' | 'cryptoperiodDays'>, activatedAt: Date): Phases {
  const periodMs = policy.cryptoperiodDays * dayMs;
  const mostMs = periodMs - Math.min(mostMarginMs, periodMs / 4);
  return {
    gradualUntil: new Date(activatedAt.getTime() + Math.min(policy.gradualMs, mostMs)),
    overBy: new Date(activatedAt.getTime() + periodMs),
  };
}

export interface CalendarEntry extends Phases {
  readonly rotates: Date;
}

/** The next rotations and their phases, if each begins on time. */
export function calendarOf(policy: Policy, nextAt: Date, count: number): readonly CalendarEntry[] {
  const later = count > 1 ? nextTimes(policy, nextAt, count - 1) : [];
  return [nextAt, ...later].slice(0, count).map((rotates) => ({ rotates, ...phasesOf(policy, rotates) }));
}
