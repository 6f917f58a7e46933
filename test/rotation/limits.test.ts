// What an operator allows a run: hours read, refused, open and next open, over midnight and over changes of the clock.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  batchesAllowed,
  describeClosed,
  isOpenAt,
  nextOpening,
  noLimits,
  parseHours,
  requireCount,
  type OpeningHours,
} from '../../src/rotation/limits.js';

const night = parseHours('22:00-06:00', 'Europe/Berlin');

function at(text: string): Date {
  return new Date(text);
}

describe('hours as an operator writes them', () => {
  test('are two times and a zone; 24:00 ends a day', () => {
    expect(night).toEqual({ from: '22:00', to: '06:00', zone: 'Europe/Berlin' });
    expect(parseHours('18:30-24:00', 'UTC')).toEqual({ from: '18:30', to: '00:00', zone: 'UTC' });
  });

  test.each([
    ['22-6', /hours such as 22:00-06:00/],
    ['22:00-6:00', /two digits/],
    ['24:00-06:00', /hours such as/],
    ['22:00-25:00', /hours such as/],
    ['22:60-23:00', /hours such as/],
    ['22:00', /hours such as/],
    ['', /hours such as/],
    ['08:00-08:00', /begin when they end.*none/],
    ['00:00-24:00', /begin when they end.*none/],
  ])('"%s" is refused in words', (text, why) => {
    expect(() => parseHours(text, 'UTC')).toThrow(expect.objectContaining({ code: 'LIMIT_INVALID' }) as Error);
    expect(() => parseHours(text, 'UTC')).toThrow(why);
  });

  test.each(['', 'Berlin', '+02:00', 'Europe/Atlantis'])('the zone "%s" is refused', (zone) => {
    expect(() => parseHours('22:00-06:00', zone)).toThrow(/time zone such as Europe\/Berlin/);
  });
});

describe('counts an operator sets', () => {
  test.each([0, -1, 1.5, Number.NaN, Infinity, 11])('%d is refused where 1 to 10 are allowed', (count) => {
    expect(() => requireCount('a number of workers', count, 10)).toThrow(
      /number of workers, a whole number from 1 to 10/,
    );
  });

  test.each([1, 10])('%d, a bound itself, is allowed', (count) => {
    expect(() => requireCount('a number of workers', count, 10)).not.toThrow();
  });

  test('as many batches are out as workers are allowed, and no more than rows per second', () => {
    expect(batchesAllowed(noLimits)).toBe(Infinity);
    expect(batchesAllowed({ ...noLimits, workers: 3 })).toBe(3);
    expect(batchesAllowed({ ...noLimits, workers: 3, rowsPerSecond: 2 })).toBe(2);
    expect(batchesAllowed({ ...noLimits, workers: 3, rowsPerSecond: 2_000 })).toBe(3);
  });
});

describe('open or closed', () => {
  test('over midnight, with the first minute and without the last', () => {
    // Winter: Berlin is an hour ahead.
    expect(isOpenAt(night, at('2026-01-15T20:59:59.999Z'))).toBe(false);
    expect(isOpenAt(night, at('2026-01-15T21:00:00Z'))).toBe(true);
    expect(isOpenAt(night, at('2026-01-16T04:59:59.999Z'))).toBe(true);
    expect(isOpenAt(night, at('2026-01-16T05:00:00Z'))).toBe(false);
    // Summer: two hours.
    expect(isOpenAt(night, at('2026-07-15T20:00:00Z'))).toBe(true);
    expect(isOpenAt(night, at('2026-07-15T19:59:00Z'))).toBe(false);
  });

  test('within a day', () => {
    const noon = parseHours('12:00-13:30', 'Asia/Kolkata');
    expect(isOpenAt(noon, at('2026-01-15T06:29:59Z'))).toBe(false);
    expect(isOpenAt(noon, at('2026-01-15T06:30:00Z'))).toBe(true);
    expect(isOpenAt(noon, at('2026-01-15T08:00:00Z'))).toBe(false);
  });
});

describe('the next opening', () => {
  test('is the same evening, or now when it is open already', () => {
    expect(nextOpening(night, at('2026-01-15T12:34:56.789Z'))).toEqual(at('2026-01-15T21:00:00Z'));
    expect(nextOpening(night, at('2026-01-15T23:00:00Z'))).toEqual(at('2026-01-15T23:00:00Z'));
    expect(describeClosed(night, at('2026-01-15T12:34:56.789Z'))).toBe(
      'outside its hours 22:00-06:00 Europe/Berlin; goes on at 2026-01-15T21:00:00Z',
    );
  });

  test('follows a clock that is put forward or back before it', () => {
    // Berlin: forward on 29 March 2026, back on 25 October 2026, both at 01:00 UTC.
    const morning = parseHours('04:00-05:00', 'Europe/Berlin');
    expect(nextOpening(morning, at('2026-03-28T23:30:00Z'))).toEqual(at('2026-03-29T02:00:00Z'));
    expect(nextOpening(morning, at('2026-10-24T23:30:00Z'))).toEqual(at('2026-10-25T03:00:00Z'));
  });

  test('is the change itself where the clock jumps into the hours', () => {
    const skipped = parseHours('02:30-04:00', 'Europe/Berlin');
    expect(nextOpening(skipped, at('2026-03-29T00:00:00Z'))).toEqual(at('2026-03-29T01:00:00Z'));
  });

  test('comes on the next day where the clock skips the hours altogether', () => {
    const gone = parseHours('02:10-02:50', 'Europe/Berlin');
    expect(nextOpening(gone, at('2026-03-29T00:00:00Z'))).toEqual(at('2026-03-30T00:10:00Z'));
  });

  test('comes twice where the clock shows the hours twice', () => {
    const twice = parseHours('02:30-02:40', 'Europe/Berlin');
    expect(nextOpening(twice, at('2026-10-25T00:00:00Z'))).toEqual(at('2026-10-25T00:30:00Z'));
    expect(nextOpening(twice, at('2026-10-25T00:40:00Z'))).toEqual(at('2026-10-25T01:30:00Z'));
  });

  test('is open, comes within two days, and nothing before it is open, for any hours, zone and moment', () => {
    const minutes = fc.integer({ min: 0, max: 24 * 60 - 1 });
    const time = (minute: number): string =>
      `${String(Math.floor(minute / 60)).padStart(2, '0')}:${String(minute % 60).padStart(2, '0')}`;
    const hours: fc.Arbitrary<OpeningHours> = fc
      .tuple(
        minutes,
        minutes,
        fc.constantFrom('UTC', 'Europe/Berlin', 'America/New_York', 'Australia/Lord_Howe', 'Asia/Kathmandu'),
      )
      .filter(([from, to]) => from !== to)
      .map(([from, to, zone]) => parseHours(`${time(from)}-${time(to)}`, zone));
    const moments = fc.date({ min: at('2026-01-01T00:00:00Z'), max: at('2027-01-01T00:00:00Z'), noInvalidDate: true });
    fc.assert(
      fc.property(hours, moments, (open, now) => {
        const next = nextOpening(open, now);
        expect(isOpenAt(open, next)).toBe(true);
        const waitMs = next.getTime() - now.getTime();
        expect(waitMs).toBeLessThanOrEqual(48 * 3_600_000);
        expect(isOpenAt(open, now)).toBe(waitMs === 0);
        const before = Array.from(
          { length: 16 },
          (_, part) => new Date(now.getTime() + Math.floor((waitMs * part) / 16)),
        );
        expect(
          [...before, new Date(next.getTime() - 1)].filter(
            (moment) => moment >= now && moment < next && isOpenAt(open, moment),
          ),
        ).toEqual([]);
      }),
    );
  });
});
