// What a few looks at the sessions of others say.
import { describe, expect, test } from 'vitest';
import { noBlockingWatch, noSessionWatch, watchBlocking, watchSessions } from '../../src/rotation/session-watch.js';

describe('active sessions', () => {
  test('count as the mean of five looks, for each CPU', () => {
    let watch = noSessionWatch;
    const values = [40, 0, 0, 0, 0, 0].map((active) => {
      const next = watchSessions(watch, active, 4);
      ({ watch } = next);
      return next.readings[0]?.value;
    });
    expect(values).toEqual([10, 5, 40 / 3 / 4, 2.5, 2, 0]);
  });

  test('are shown as a number on so many CPUs, soft at one for each and hard at two', () => {
    expect(watchSessions(noSessionWatch, 9, 8).readings).toMatchObject([
      { source: 'sessions', words: '9 active sessions on 8 CPUs', limits: { soft: 1, hard: 2 } },
    ]);
  });
});

describe('sessions that wait for a lock of ours', () => {
  const counted = (...looks: readonly number[]): number | undefined => {
    let watch = noBlockingWatch;
    let value: number | undefined;
    for (const now of looks) {
      const next = watchBlocking(watch, now);
      ({ watch } = next);
      value = next.readings[0]?.value;
    }
    return value;
  };

  test('count when as many were there at the look before', () => {
    expect(counted(1)).toBe(0);
    expect(counted(1, 0)).toBe(0);
    expect(counted(3, 1)).toBe(1);
    expect(counted(1, 3)).toBe(1);
    expect(counted(3, 3)).toBe(3);
  });

  test('count at once from the hard limit on', () => {
    expect(counted(5)).toBe(0);
    expect(counted(6)).toBe(6);
    expect(watchBlocking(noBlockingWatch, 6).readings).toMatchObject([
      { source: 'blocking', words: '6 sessions wait for locks of the run', limits: { soft: 1, hard: 6 } },
    ]);
  });
});
