// The canary's latency against what is usual for it.
import { describe, expect, test } from 'vitest';
import { middleOf, noCanaryWatch, watchCanary, type CanaryWatch } from '../../src/rotation/canary.js';
import { canaryLimits, usualOf, type Reading } from '../../src/rotation/health.js';

function watched(
  samples: readonly number[],
  isMoving = false,
  before = noCanaryWatch,
): { watch: CanaryWatch; reading: Reading } {
  let watch = before;
  let reading: Reading | undefined;
  for (const milliseconds of samples) {
    const next = watchCanary(watch, { milliseconds, isMoving });
    ({ watch } = next);
    [reading] = next.readings;
  }
  if (reading === undefined) throw new Error('no sample');
  return { watch, reading };
}

const usual = Array.from({ length: 100 }, (_, at) => 0.2 + (at % 10) / 100);

describe('the canary', () => {
  test('takes 0.2 ms to 0.5 ms for noise, and 50 ms more than usual for a reason to stop', () => {
    const { watch } = watched(usual);
    const slower = watched([0.5, 0.5, 0.5], true, watch).reading;
    expect(slower.value).toBeLessThan(0.7 * slower.limits.soft);
    const slow = watched([6, 6, 6], true, watch).reading;
    expect(slow.value).toBeGreaterThanOrEqual(slow.limits.soft);
    const verySlow = watched([60, 60, 60], true, watch).reading;
    expect(verySlow.value).toBeGreaterThanOrEqual(verySlow.limits.hard);
    expect(verySlow.words).toBe('a small statement takes 60 ms, usually at most 0.3 ms');
  });

  test('is slow by a quarter and too slow by double where answers take long anyway', () => {
    expect(canaryLimits(100)).toMatchObject({ soft: 125, hard: 200 });
    expect(canaryLimits(1)).toMatchObject({ soft: 6, hard: 51 });
  });

  test('one slow answer among three says nothing', () => {
    expect(watched([1, 900, 1]).reading.value).toBe(1);
    expect(middleOf([])).toBe(0);
  });

  test('what a run makes of it does not become usual once calm was seen', () => {
    const { watch } = watched(usual);
    const { reading } = watched(
      Array.from({ length: 400 }, () => 40),
      true,
      watch,
    );
    expect(reading.value).toBeGreaterThanOrEqual(reading.limits.soft);
  });

  test('knows nothing usual before half a minute, and then only a quarter of a second stops', () => {
    expect(usualOf(usual.slice(0, 29))).toBeUndefined();
    expect(usualOf(usual)).toBeCloseTo(0.29, 5);
    expect(canaryLimits(undefined)).toMatchObject({ soft: 5, hard: 250 });
  });
});
