import { describe, expect, test } from 'vitest';
import { adviseBulkRun, refill } from '../../src/rotation/gradual.js';

describe('the allowance of a process', () => {
  test('it starts with a second’s worth, grows with time, and never beyond that', () => {
    const full = refill(undefined, 1_000, 40);
    expect(full).toEqual({ rows: 40, atMs: 1_000 });
    const spent = { ...full, rows: 0 };
    expect(refill(spent, 1_250, 40).rows).toBe(10);
    expect(refill(spent, 60_000, 40).rows).toBe(40);
    expect(refill(full, 1_100, 5).rows).toBe(5);
  });
});

describe('when a bulk run is wise', () => {
  const seen = { staleCells: 1_000, cellsThisWeek: 700, keyAgeDays: 20, isLazyOn: true };

  test('not while reads move the rest within a month, nor on the first day, nor with nothing left', () => {
    expect(adviseBulkRun(seen)).toBeUndefined();
    expect(adviseBulkRun({ ...seen, cellsThisWeek: 0, keyAgeDays: 0.5 })).toBeUndefined();
    expect(adviseBulkRun({ ...seen, staleCells: 0, isLazyOn: false })).toBeUndefined();
  });

  test('when reads are too slow, have stopped, or are switched off', () => {
    expect(adviseBulkRun({ ...seen, staleCells: 3_100 })).toBe(
      'at the pace of the last 7 days reads need 31 days more',
    );
    expect(adviseBulkRun({ ...seen, cellsThisWeek: 0 })).toBe('reads move nothing');
    expect(adviseBulkRun({ ...seen, isLazyOn: false })).toMatch(/^lazy upgrades are off/);
    expect(adviseBulkRun({ ...seen, keyAgeDays: 2, cellsThisWeek: 20 })).toMatch(/last 2 days reads need 100 days/);
  });
});
