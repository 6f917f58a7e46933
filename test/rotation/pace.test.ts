// How much to do at once: bounds and directions that hold for any measurement.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import {
  batchRows,
  dispatchWindow,
  followUpDelayMs,
  followUpWindow,
  initialSlicePace,
  maxFollowUps,
  paceAfterTimeout,
  paceAfterWrite,
  type SlicePace,
} from '../../src/rotation/pace.js';

const plain = { isEmergency: false, nice: 0 };

const writeSeconds = fc.double({ min: 0, max: 60, noNaN: true });

/** As large as slices get: where instant writes let them grow to. */
const mostRows = paceAfterWrite(
  { ...initialSlicePace, rows: 1_000_000 },
  { rows: 1_000_000, writeSeconds: 0 },
  plain,
).rows;

const pace: fc.Arbitrary<SlicePace> = fc.record({
  rows: fc.integer({ min: 20, max: mostRows }),
  weightedRows: fc.double({ min: 0, max: 20_000, noNaN: true }),
  weightedSeconds: fc.double({ min: 0, max: 240, noNaN: true }),
});

describe('rows per slice', () => {
  test('begin with 200 and are at most some thousands', () => {
    expect(initialSlicePace.rows).toBe(200);
    expect(mostRows).toBeGreaterThanOrEqual(1_000);
    expect(mostRows).toBeLessThanOrEqual(5_000);
  });

  test('stay within their bounds, grow by at most a fifth and shrink by at most half, for any write time', () => {
    fc.assert(
      fc.property(pace, fc.nat(5_000), writeSeconds, (before, rows, seconds) => {
        const after = paceAfterWrite(before, { rows, writeSeconds: seconds }, plain).rows;
        expect(Number.isInteger(after)).toBe(true);
        expect(after).toBeGreaterThanOrEqual(Math.max(20, Math.floor(before.rows / 2)));
        expect(after).toBeLessThanOrEqual(Math.min(mostRows, Math.ceil(before.rows * 1.2)));
      }),
    );
  });

  test('settle where a write takes 200 ms, from above and from below', () => {
    for (const rowsPerSecond of [500, 2_000, 4_500]) {
      for (const start of [20, mostRows]) {
        let at: SlicePace = { ...initialSlicePace, rows: start };
        for (let slice = 0; slice < 60; slice++)
          at = paceAfterWrite(at, { rows: at.rows, writeSeconds: at.rows / rowsPerSecond }, plain);
        expect(at.rows / rowsPerSecond).toBeCloseTo(0.2, 2);
      }
    }
  });

  test('aim at 500 ms in an emergency, and still at no more rows than ever', () => {
    const settle = (rowsPerSecond: number): number => {
      let at: SlicePace = initialSlicePace;
      for (let slice = 0; slice < 60; slice++)
        at = paceAfterWrite(
          at,
          { rows: at.rows, writeSeconds: at.rows / rowsPerSecond },
          { ...plain, isEmergency: true },
        );
      return at.rows;
    };
    expect(settle(1_000) / 1_000).toBeCloseTo(0.5, 2);
    expect(settle(100_000)).toBe(mostRows);
  });

  test('shrink as the fleet rests longer, in the time of their write as in their number', () => {
    const settle = (rowsPerSecond: number, nice: number): number => {
      let at: SlicePace = initialSlicePace;
      for (let slice = 0; slice < 80; slice++)
        at = paceAfterWrite(at, { rows: at.rows, writeSeconds: at.rows / rowsPerSecond }, { ...plain, nice });
      return at.rows;
    };
    expect(settle(4_000, 3) / 4_000).toBeCloseTo(0.05, 2);
    expect(settle(1e9, 3)).toBe(mostRows / 4);
    expect(settle(1e9, 1_000)).toBe(20);
  });

  test('a timeout halves them, down to 20, and an instant write does not divide by zero', () => {
    expect(paceAfterTimeout(initialSlicePace).rows).toBe(100);
    expect(paceAfterTimeout({ ...initialSlicePace, rows: 30 }).rows).toBe(20);
    expect(paceAfterWrite(initialSlicePace, { rows: 200, writeSeconds: 0 }, plain).rows).toBe(240);
    expect(
      paceAfterWrite({ ...initialSlicePace, rows: mostRows }, { rows: mostRows, writeSeconds: 0 }, plain).rows,
    ).toBe(mostRows);
  });
});

describe('rows per batch', () => {
  test('are five seconds of the measured rate, from 1,000 to 50,000, and 4,000 before anything was measured', () => {
    expect(batchRows(undefined)).toBe(4_000);
    expect(batchRows(1_000)).toBe(5_000);
    expect(batchRows(0)).toBe(1_000);
    expect(batchRows(1e9)).toBe(50_000);
    fc.assert(
      fc.property(fc.double({ min: 0, max: 1e12, noNaN: true }), (rate) => {
        const rows = batchRows(rate);
        expect(Number.isInteger(rows) && rows >= 1_000 && rows <= 50_000).toBe(true);
      }),
    );
  });
});

describe('batches in the queue', () => {
  test('are two for each worker, from 4 to 200', () => {
    expect([0, 1, 2, 3, 50, 100, 10_000].map(dispatchWindow)).toEqual([4, 4, 4, 6, 100, 200, 200]);
  });

  test('leave room for follow-ups besides, more than for ranges', () => {
    expect([0, 1, 3, 100].map(followUpWindow)).toEqual([32, 32, 48, 1_600]);
  });
});

describe('the wait before a follow-up', () => {
  test('lies between nothing and 250 ms doubled with each visit, at most 30 s, for any depth', () => {
    fc.assert(
      fc.property(
        fc.nat(maxFollowUps),
        fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
        (depth, random) => {
          const ms = followUpDelayMs(depth, random);
          expect(ms).toBeGreaterThanOrEqual(0);
          expect(ms).toBeLessThanOrEqual(Math.min(30_000, 250 * 2 ** depth));
        },
      ),
    );
  });

  test('reaches its bounds', () => {
    expect(followUpDelayMs(0, 0)).toBe(0);
    expect([0, 1, 2].map((depth) => followUpDelayMs(depth, 1))).toEqual([250, 500, 1_000]);
    expect(followUpDelayMs(maxFollowUps, 1)).toBe(30_000);
  });
});
