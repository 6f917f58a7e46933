// When schedules fire and how long their policy takes: daylight saving, what was missed, what cannot fit, the calendar, and
// every move of an occurrence.
import { describe, expect, test } from 'vitest';
import {
  calendarOf,
  defaultGradualMs,
  dueTime,
  isOpen,
  mayMoveOccurrence,
  nextTimes,
  occurrenceMoves,
  phasesOf,
  quarterly,
  requireRoom,
  requireTimes,
  type OccurrenceState,
  type Policy,
} from '../../src/rotation/schedule.js';

const dayMs = 86_400_000;
const now = new Date('2026-11-22T12:00:00Z');

function iso(times: readonly Date[]): string[] {
  return times.map((time) => time.toISOString().replace(':00.000Z', 'Z'));
}

function next(cron: string, timeZone: string, after: string, count: number): string[] {
  return iso(nextTimes({ cron, timeZone }, new Date(after), count));
}

describe('times in a named zone', () => {
  test('the default comes on the first of each quarter at three', () => {
    expect(next(quarterly, 'UTC', '2026-11-22T00:00:00Z', 4)).toEqual([
      '2027-01-01T03:00Z',
      '2027-04-01T03:00Z',
      '2027-07-01T03:00Z',
      '2027-10-01T03:00Z',
    ]);
  });

  test('summer and winter time keep the hour of the zone', () => {
    expect(next(quarterly, 'Europe/Berlin', '2026-11-22T00:00:00Z', 2)).toEqual([
      '2027-01-01T02:00Z',
      '2027-04-01T01:00Z',
    ]);
  });

  test('a time in the hour that daylight saving skips comes that day all the same, once', () => {
    expect(next('30 2 * * *', 'Europe/Berlin', '2027-03-27T00:00:00Z', 3)).toEqual([
      '2027-03-27T01:30Z',
      '2027-03-28T01:30Z',
      '2027-03-29T00:30Z',
    ]);
  });

  test('a time in the hour that daylight saving doubles comes once that day', () => {
    expect(next('30 2 * * *', 'Europe/Berlin', '2027-10-30T00:00:00Z', 3)).toEqual([
      '2027-10-30T00:30Z',
      '2027-10-31T00:30Z',
      '2027-11-01T01:30Z',
    ]);
  });

  test('the time asked from is not the next one', () => {
    expect(next('0 3 * * *', 'UTC', '2027-01-01T03:00:00Z', 1)).toEqual(['2027-01-02T03:00Z']);
  });

  test.each([
    ['', 'UTC'],
    ['* * *', 'UTC'],
    ['@daily', 'UTC'],
    ['0 0 3 1 * *', 'UTC'],
    ['H 3 * * *', 'UTC'],
    ['61 3 * * *', 'UTC'],
    ['0 3 31 2 *', 'UTC'],
    ['0 3 * * *', '+02:00'],
    ['0 3 * * *', 'Nowhere/Zone'],
    ['0 3 * * *', ''],
    ['0 3 * * *', 'local'],
  ])('%j in %j is refused with SCHEDULE_INVALID', (cron, timeZone) => {
    expect(() => requireTimes({ cron, timeZone })).toThrow(expect.objectContaining({ code: 'SCHEDULE_INVALID' }));
  });

  test.each(['0 3 * * THU', '15,45 3-5 * JAN-MAR MON', '0 3 L * *'])('%j is accepted', (cron) => {
    expect(() => requireTimes({ cron, timeZone: 'America/Argentina/Buenos_Aires' })).not.toThrow();
  });
});

describe('what fires', () => {
  const daily = { cron: '0 3 * * *', timeZone: 'UTC' };

  test('a time zone that this machine does not know is SCHEDULE_INVALID, not a crash', () => {
    const unknown = { ...daily, timeZone: 'Mars/Olympus' };
    for (const ask of [() => dueTime(unknown, new Date(0), now), () => nextTimes(unknown, now, 1)])
      expect(ask).toThrow(expect.objectContaining({ code: 'SCHEDULE_INVALID' }));
  });

  test('nothing before its time', () => {
    expect(dueTime(daily, new Date('2026-11-22T12:00:00.001Z'), now)).toBeUndefined();
  });

  test('at its time that time, and the one after is next', () => {
    expect(dueTime(daily, new Date('2026-11-22T03:00:00Z'), now)).toEqual({
      period: new Date('2026-11-22T03:00:00Z'),
      nextAt: new Date('2026-11-23T03:00:00Z'),
    });
    expect(dueTime(daily, now, now)?.period).toEqual(now);
  });

  test('of several that were missed one, the latest', () => {
    expect(dueTime(daily, new Date('2026-11-19T03:00:00Z'), now)).toEqual({
      period: new Date('2026-11-22T03:00:00Z'),
      nextAt: new Date('2026-11-23T03:00:00Z'),
    });
  });
});

describe('whether a policy can be over in time', () => {
  const policy: Policy = { cron: quarterly, timeZone: 'UTC', gradualMs: defaultGradualMs, cryptoperiodDays: 90 };

  test('the defaults can, with two weeks kept for run and proof', () => {
    expect(requireRoom(policy, now)).toEqual({
      shortestGapMs: 90 * dayMs,
      longestGapMs: 92 * dayMs,
      endMs: 90 * dayMs,
      marginMs: 14 * dayMs,
    });
  });

  test.each([
    ['gradual days beyond the cryptoperiod', { gradualMs: 77 * dayMs }, /cryptoperiod|next rotation/],
    ['a short cryptoperiod', { cryptoperiodDays: 39 }, /30 days .* the cryptoperiod is 39 days, .*--gradual 29d/],
    ['a month between two rotations', { cron: '0 3 1 * *' }, /the next rotation may come 28 days after one/],
    ['an hour between two rotations', { cron: '0 * * * *', gradualMs: 0 }, /more often than daily/],
  ] as const)('%s is refused with SCHEDULE_INVALID, and what would fit is said', (_, changes, words) => {
    expect(() => requireRoom({ ...policy, ...changes }, now)).toThrow(
      expect.objectContaining({ code: 'SCHEDULE_INVALID', message: expect.stringMatching(words) as string }),
    );
  });

  test('the most that fits is accepted, and daily rotations across a change of the clock', () => {
    expect(() => requireRoom({ ...policy, gradualMs: 76 * dayMs }, now)).not.toThrow();
    const daily = { ...policy, cron: '30 2 * * *', timeZone: 'Europe/Berlin', gradualMs: 0 };
    expect(() => requireRoom(daily, new Date('2027-03-20T00:00:00Z'))).not.toThrow();
  });

  test('the calendar shows each rotation, the end of its gradual days and of its cryptoperiod', () => {
    expect(calendarOf(policy, new Date('2027-01-01T03:00:00Z'), 2)).toEqual([
      {
        rotates: new Date('2027-01-01T03:00:00Z'),
        gradualUntil: new Date('2027-01-31T03:00:00Z'),
        overBy: new Date('2027-04-01T03:00:00Z'),
      },
      {
        rotates: new Date('2027-04-01T03:00:00Z'),
        gradualUntil: new Date('2027-05-01T03:00:00Z'),
        overBy: new Date('2027-06-30T03:00:00Z'),
      },
    ]);
    expect(calendarOf(policy, now, 1)).toHaveLength(1);
  });

  test('a cryptoperiod that was shortened afterwards shortens the gradual days', () => {
    expect(phasesOf({ gradualMs: 30 * dayMs, cryptoperiodDays: 20 }, now)).toEqual({
      gradualUntil: new Date(now.getTime() + 15 * dayMs),
      overBy: new Date(now.getTime() + 20 * dayMs),
    });
  });
});

describe('the states of an occurrence', () => {
  const states = Object.keys(occurrenceMoves) as OccurrenceState[];
  /** Written out a second time on purpose: a change of the table has to be meant twice. */
  const legal: Readonly<Record<OccurrenceState, string>> = {
    due: 'rotating failed cancelled',
    rotating: 'gradual failed cancelled',
    gradual: 'reencrypting failed cancelled',
    reencrypting: 'retiring failed cancelled',
    retiring: 'done failed cancelled',
    done: '',
    failed: '',
    cancelled: '',
  };

  for (const from of states) {
    for (const to of states) {
      const isLegal = legal[from].split(' ').includes(to);
      test(`an occurrence that is ${from} ${isLegal ? 'may' : 'cannot'} become ${to}`, () => {
        expect(mayMoveOccurrence(from, to)).toBe(isLegal);
      });
    }
  }

  test('the open ones are those with a way on', () => {
    expect(states.filter(isOpen)).toEqual(['due', 'rotating', 'gradual', 'reencrypting', 'retiring']);
  });
});
