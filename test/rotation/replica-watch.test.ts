// How far replicas are behind, from what is seen of them look by look.
import { describe, expect, test } from 'vitest';
import type { Reading } from '../../src/rotation/health.js';
import { noReplicaWatch, watchReplicas, type SeenReplica } from '../../src/rotation/replica-watch.js';

const megabyte = 1_048_576;

function replica(written: number, replayed: number, more: Partial<SeenReplica> = {}): SeenReplica {
  return {
    name: 'r1',
    bytesBehind: written - replayed,
    measuredSeconds: undefined,
    replayed,
    isPhysical: true,
    ...more,
  };
}

interface Look {
  readonly second: number;
  readonly written: number;
  readonly replicas: readonly SeenReplica[];
}

/** The readings of the last look. */
function watched(looks: readonly Look[]): readonly Reading[] {
  let watch = noReplicaWatch;
  let readings: readonly Reading[] = [];
  for (const { second, ...seen } of looks) ({ watch, readings } = watchReplicas(watch, seen, second * 1_000));
  return readings;
}

describe('replicas', () => {
  test('that have replayed everything are no time behind, whatever was measured once', () => {
    const [time, bytes] = watched([{ second: 0, written: 100, replicas: [replica(100, 100, { measuredSeconds: 9 })] }]);
    expect([time?.value, bytes?.value]).toEqual([0, 0]);
  });

  test('that fall silent grow old, although the time they measured last stands still', () => {
    const looks = [0, 1, 2, 3, 4, 5, 6].map((second) => ({
      second,
      written: 100 + second * megabyte,
      replicas: [replica(100 + second * megabyte, 100, { measuredSeconds: 0.01 })],
    }));
    const [time, bytes] = watched(looks);
    expect(time).toMatchObject({ value: 5, words: 'replica r1 is 5 s behind' });
    expect(bytes).toMatchObject({ value: 6 * megabyte, words: 'replica r1 is 6 MB behind' });
    expect(time?.value).toBeGreaterThanOrEqual(time?.limits.hard ?? Infinity);
  });

  test('that replay late but steadily are as far behind as what they lack is old', () => {
    const looks = [0, 1, 2, 3, 4, 5, 6].map((second) => ({
      second,
      written: second * 100,
      replicas: [replica(second * 100, Math.max(0, (second - 2) * 100))],
    }));
    expect(watched(looks)[0]?.value).toBe(1);
  });

  test('that report when they like are judged by what they measure alone', () => {
    const looks = [0, 9].map((second) => ({
      second,
      written: 100 + second,
      replicas: [replica(100 + second, 50, { isPhysical: false, measuredSeconds: 0.5 })],
    }));
    expect(watched(looks)[0]?.value).toBe(0.5);
  });

  test('that were there and are gone count as over the hard limit, until ten minutes have passed or they are back', () => {
    const there = { second: 0, written: 1, replicas: [replica(1, 1)] };
    const goneAt = (second: number): Look => ({ second, written: 1, replicas: [] });
    const [reading] = watched([there, goneAt(30)]);
    expect(reading?.words).toBe('replica r1 was there 30 s ago and is gone; taken as removed in 10 min');
    expect(reading?.value).toBeGreaterThanOrEqual(reading?.limits.hard ?? Infinity);
    expect(watched([there, goneAt(30), goneAt(601)])).toEqual([]);
    expect(watched([there, goneAt(30), { ...there, second: 31 }]).map(({ value }) => value)).toEqual([0, 0]);
  });
});
