// What a worker makes of the ledger's word: when it hands its batch back, how it rests, how small its slices are.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { noLimits, parseHours } from '../../src/rotation/limits.js';
import { runMoves, type RunState } from '../../src/rotation/run.js';
import {
  exceedsShare,
  mayGoOn,
  mostSliceRows,
  paceInForce,
  paceReason,
  restAfter,
  type Standing,
} from '../../src/rotation/standing.js';

const free: Standing = {
  runState: 'running',
  now: new Date('2026-01-15T12:00:00Z'),
  limits: noLimits,
  sharers: 1,
  aheadInRun: 0,
  ahead: 0,
  pace: undefined,
};

const leaseMs = 15_000;

describe('going on with a batch', () => {
  test('ends with the run’s states of work', () => {
    const states = Object.keys(runMoves) as RunState[];
    expect(states.filter((runState) => mayGoOn({ ...free, runState }))).toEqual(['running', 'verifying']);
  });

  test('ends with the hours', () => {
    const day = { ...free, limits: { ...noLimits, hours: parseHours('08:00-13:00', 'UTC') } };
    expect(mayGoOn(day)).toBe(true);
    expect(mayGoOn({ ...day, now: new Date('2026-01-15T13:00:00Z') })).toBe(false);
  });

  test('is for the first batches of a run that is limited to some workers', () => {
    const two = { ...free, limits: { ...noLimits, workers: 2 } };
    expect([0, 1, 2, 3].map((aheadInRun) => mayGoOn({ ...two, aheadInRun }))).toEqual([true, true, false, false]);
  });

  test('is for the first batches of all when the fleet’s pace is lowered, and for none at 0', () => {
    const paced = (targetWorkers: number | undefined, ahead: number): boolean =>
      mayGoOn({ ...free, ahead, pace: { targetWorkers, nice: 0, ageSeconds: 1 } });
    expect([0, 1, 2].map((ahead) => paced(2, ahead))).toEqual([true, true, false]);
    expect(paced(0, 0)).toBe(false);
    expect(paced(undefined, 200)).toBe(true);
  });

  test('is for one batch where the pace that stopped all is older than 15 s: unmeasured means slow, not stopped for good', () => {
    const held = (ageSeconds: number, ahead: number): boolean =>
      mayGoOn({ ...free, ahead, pace: { targetWorkers: 0, nice: 1, ageSeconds } });
    expect([15, 15.1, 86_400].map((ageSeconds) => [held(ageSeconds, 0), held(ageSeconds, 1)])).toEqual([
      [false, false],
      [true, false],
      [true, false],
    ]);
  });
});

describe('the pace in force', () => {
  test('is the measured one for 15 s, and from then on slow', () => {
    const pace = { targetWorkers: 3, nice: 0.5, ageSeconds: 15 };
    expect(paceInForce(undefined)).toEqual({ targetWorkers: undefined, nice: 0 });
    expect(paceInForce(pace)).toMatchObject({ targetWorkers: 3, nice: 0.5 });
    expect(paceInForce({ ...pace, ageSeconds: 16 })).toEqual({ targetWorkers: 3, nice: 1 });
    expect(paceInForce({ targetWorkers: 0, nice: 2, ageSeconds: 16 })).toEqual({ targetWorkers: 1, nice: 2 });
    expect(paceInForce({ targetWorkers: undefined, nice: 0, ageSeconds: 16 })).toEqual({
      targetWorkers: undefined,
      nice: 1,
    });
  });

  test('says what holds the workers back, and when nobody has measured for over 15 s that', () => {
    expect(paceReason(undefined)).toBeUndefined();
    expect(paceReason({ reason: undefined, ageSeconds: 15 })).toBeUndefined();
    expect(paceReason({ reason: 'replica r1 lags', ageSeconds: 15 })).toBe('replica r1 lags');
    for (const reason of ['replica r1 lags', undefined])
      expect(paceReason({ reason, ageSeconds: 15.1 })).toMatch(
        /^nobody has measured the database's health for over 15 s/,
      );
  });
});

describe('the rest after a slice', () => {
  test('is none by default', () => {
    expect(restAfter(free, { rows: 1_000, workMs: 200 })).toBe(0);
    expect(restAfter({ ...free, pace: { targetWorkers: 4, nice: 0, ageSeconds: 1 } }, { rows: 9, workMs: 200 })).toBe(
      0,
    );
  });

  test('is the fleet’s nice times the work', () => {
    const nice = { ...free, pace: { targetWorkers: undefined, nice: 1.5, ageSeconds: 1 } };
    expect(restAfter(nice, { rows: 100, workMs: 200 })).toBe(300);
  });

  test('is at least as long as the work when nobody has renewed the pace for 15 s', () => {
    const pace = { targetWorkers: undefined, nice: 0, ageSeconds: 15.1 };
    expect(restAfter({ ...free, pace }, { rows: 100, workMs: 200 })).toBe(200);
    expect(restAfter({ ...free, pace: { ...pace, nice: 2 } }, { rows: 100, workMs: 200 })).toBe(400);
    expect(restAfter({ ...free, pace: { ...pace, ageSeconds: 15 } }, { rows: 100, workMs: 200 })).toBe(0);
  });

  test('fills up the time in which the worker’s share of the limit is as many rows', () => {
    const limited = { ...free, limits: { ...noLimits, rowsPerSecond: 100 } };
    expect(restAfter(limited, { rows: 50, workMs: 200 })).toBe(300);
    expect(restAfter({ ...limited, sharers: 2 }, { rows: 50, workMs: 200 })).toBe(800);
    expect(restAfter(limited, { rows: 10, workMs: 200 })).toBe(0);
  });

  test('never outlasts the lease, and is never negative, whatever is asked', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 1_000_000 }),
        fc.integer({ min: 1, max: 500 }),
        fc.double({ min: 0, max: 1_000, noNaN: true }),
        fc.nat(5_000),
        fc.double({ min: 0, max: 60_000, noNaN: true }),
        (rowsPerSecond, sharers, nice, rows, workMs) => {
          const standing: Standing = {
            ...free,
            limits: { ...noLimits, rowsPerSecond },
            sharers,
            pace: { targetWorkers: undefined, nice, ageSeconds: 0 },
          };
          const restMs = restAfter(standing, { rows, workMs });
          expect(restMs).toBeGreaterThanOrEqual(0);
          expect(restMs).toBeLessThan(leaseMs / 2);
        },
      ),
    );
  });
});

describe('slices under a limit', () => {
  test('are a second of the worker’s share, at least one row, and unbounded without a limit', () => {
    const limited = { ...free, limits: { ...noLimits, rowsPerSecond: 100 } };
    expect(mostSliceRows(free)).toBe(Infinity);
    expect(mostSliceRows(limited)).toBe(100);
    expect(mostSliceRows({ ...limited, sharers: 3 })).toBe(33);
    expect(mostSliceRows({ ...limited, sharers: 500 })).toBe(1);
  });

  test('that were read before the limit came, and are more than twice as large, are read anew', () => {
    const limited = { ...free, limits: { ...noLimits, rowsPerSecond: 100 } };
    expect(exceedsShare(free, 1_000)).toBe(false);
    expect(exceedsShare(limited, 200)).toBe(false);
    expect(exceedsShare(limited, 201)).toBe(true);
    // One row cannot be made smaller.
    expect(exceedsShare({ ...limited, sharers: 1_000 }, 1)).toBe(false);
  });

  test('with their rests never exceed the limit over all workers that share it', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 10_000 }),
        fc.integer({ min: 1, max: 20 }),
        fc.double({ min: 0, max: 2_000, noNaN: true }),
        (rowsPerSecond, workers, workMs) => {
          const sharers = Math.min(workers, rowsPerSecond);
          const standing: Standing = { ...free, limits: { ...noLimits, rowsPerSecond }, sharers };
          const rows = mostSliceRows(standing);
          const cycleMs = workMs + restAfter(standing, { rows, workMs });
          expect((sharers * rows * 1_000) / cycleMs).toBeLessThanOrEqual(rowsPerSecond * 1.000_001);
        },
      ),
    );
  });
});
