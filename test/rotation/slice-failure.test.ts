// What a failed slice asks for: locks are waited for, trouble of rows is narrowed down, trouble of all gives the batch back.
import { describe, expect, test } from 'vitest';
import { isLockState, judgeSlice, maxAttempts, quarantineCause } from '../../src/rotation/slice-failure.js';

const fresh = { rows: 100, tries: 1, attempts: 0 };

describe('a slice that failed', () => {
  test.each(['55P03', '40P01', '40001'])(
    'with %s waits for the application and never splits or quarantines',
    (sqlstate) => {
      expect(isLockState(sqlstate)).toBe(true);
      for (const rows of [1, 100]) {
        for (const attempts of [0, maxAttempts, 100]) {
          expect(judgeSlice({ sqlstate, rows, tries: 1, attempts })).toBe('repeat');
          expect(judgeSlice({ sqlstate, rows, tries: 6, attempts })).toBe('hand back');
        }
      }
    },
  );

  test('with a timeout is tried once more, then split, then quarantined', () => {
    const timeout = { ...fresh, sqlstate: '57014' };
    expect(judgeSlice(timeout)).toBe('repeat');
    expect(judgeSlice({ ...timeout, tries: 2 })).toBe('split');
    expect(judgeSlice({ ...timeout, tries: 2, rows: 1 })).toBe('quarantine');
    expect(quarantineCause('57014')).toBe('TIMEOUT');
  });

  test.each(['22001', '23514', 'P0001'])('with %s is narrowed down at once', (sqlstate) => {
    expect(judgeSlice({ ...fresh, sqlstate })).toBe('narrow');
    expect(judgeSlice({ ...fresh, sqlstate, rows: 1 })).toBe('quarantine');
    expect(quarantineCause(sqlstate)).toBe(`REFUSED_${sqlstate}`);
  });

  test.each(['42501', '53100', '25006', '57P01', '08006', 'KTF01', undefined])(
    'with %s concerns every row alike: it never blames one',
    (sqlstate) => {
      for (const attempts of [0, maxAttempts - 1, 100])
        expect(judgeSlice({ sqlstate, rows: 1, tries: 9, attempts })).toBe('hand back');
    },
  );

  test('with anything else is handed back until its attempts are spent, then split down to the row', () => {
    const odd = { ...fresh, sqlstate: 'XX001' };
    expect(judgeSlice({ ...odd, attempts: maxAttempts - 2 })).toBe('hand back');
    expect(judgeSlice({ ...odd, attempts: maxAttempts - 1 })).toBe('split');
    expect(judgeSlice({ ...odd, attempts: maxAttempts - 1, rows: 1 })).toBe('quarantine');
  });
});
