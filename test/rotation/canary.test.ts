// The canary's latency against what is usual for it.
import { describe, expect, test } from 'vitest';
import {
  middleOf,
  openCanaryWatch,
  watchCanary,
  type CanarySample,
  type CanaryWatch,
} from '../../src/rotation/canary.js';
import { canaryLimits, usualOf, type Reading } from '../../src/rotation/health.js';

interface Watched {
  readonly watch: CanaryWatch;
  readonly latest: Reading;
  /** Undefined where it is not judged. */
  readonly share: Reading | undefined;
}

/** `samples` in looks of eight. */
function watched(
  samples: readonly number[],
  more: Partial<CanarySample> = {},
  before = openCanaryWatch('read', undefined),
): Watched {
  let watch = before;
  let readings: readonly Reading[] = [];
  for (let at = 0; at < samples.length; at += 8)
    ({ watch, readings } = watchCanary(watch, {
      isMoving: false,
      paceChanges: 0,
      ...more,
      milliseconds: samples.slice(at, at + 8),
    }));
  const [latest, share] = readings;
  if (latest === undefined) throw new Error('no sample');
  return { watch, latest, share };
}

/** Usually at most 0.29 ms. */
const usual = Array.from({ length: 200 }, (_, at) => 0.2 + (at % 10) / 100);
const moving = { isMoving: true };

/** Of `total` samples the first `slow` are over what is usual. */
function partlySlow(total: number, slow: number): number[] {
  return Array.from({ length: total }, (_, at) => (at % total < slow ? 0.6 : 0.25));
}

describe('the middle of small reads and commits', () => {
  test('takes 0.2 ms to 0.5 ms for noise, and 50 ms more than usual for a reason to stop', () => {
    const { watch } = watched(usual);
    const at = (milliseconds: number): Reading => watched(Array<number>(8).fill(milliseconds), moving, watch).latest;
    expect(at(0.5).value).toBeLessThan(0.7 * at(0.5).limits.soft);
    expect(at(6).value).toBeGreaterThanOrEqual(at(6).limits.soft);
    expect(at(60).value).toBeGreaterThanOrEqual(at(60).limits.hard);
    expect(at(60).words).toBe('a small read takes 60 ms, usually at most 0.3 ms');
  });

  test('is slow by a quarter and too slow by double where answers take long anyway', () => {
    expect(canaryLimits(100)).toMatchObject({ soft: 125, hard: 200 });
    expect(canaryLimits(1)).toMatchObject({ soft: 6, hard: 51 });
  });

  test('some slow answers among eight say nothing', () => {
    expect(watched([1, 900, 1, 1, 900, 900, 1, 1]).latest.value).toBe(1);
    expect(middleOf([])).toBe(0);
  });

  test('what a run makes of it does not become usual once calm was seen', () => {
    const { watch } = watched(usual);
    const { latest } = watched(Array<number>(2_000).fill(40), moving, watch);
    expect(latest.value).toBeGreaterThanOrEqual(latest.limits.soft);
  });

  test('nothing is usual before eighty samples, and until then 50 ms slow a run and a quarter of a second stops it', () => {
    expect(usualOf(usual.slice(0, 79))).toBeUndefined();
    expect(usualOf(usual)).toBeCloseTo(0.29, 5);
    expect(canaryLimits(undefined)).toMatchObject({ soft: 50, hard: 250 });
  });
});

describe('the share of slow reads and commits', () => {
  const { watch } = watched(usual);
  const shareOf = (samples: readonly number[], more: Partial<CanarySample> = {}, before = watch): Watched =>
    watched(samples, { ...moving, ...more }, before);

  test('is judged while a run moves, and only where it is known what is usual', () => {
    expect(watched(usual).share).toBeUndefined();
    expect(watched(usual, moving).share).toBeUndefined();
    expect(shareOf(partlySlow(80, 4)).share?.words).toBe(
      '4 of the last 80 small reads took over 0.29 ms, as usually 1 of 20 does',
    );
  });

  test('is judged from the first look on where an earlier leader knew what is usual', () => {
    const inherited = watched(partlySlow(8, 3), moving, openCanaryWatch('read', 0.29));
    expect(inherited.share?.value).toBeGreaterThanOrEqual(Number(inherited.share?.limits.soft));
  });

  test('is calm at the usual one in twenty, slow at one in six, and never stops a run', () => {
    const calm = shareOf(partlySlow(80, 4)).share;
    expect(calm?.value).toBeLessThan(0.7 * Number(calm?.limits.soft));
    const slow = shareOf(partlySlow(80, 14)).share;
    expect(slow?.value).toBeGreaterThanOrEqual(Number(slow?.limits.soft));
    expect(shareOf(partlySlow(80, 80)).share?.limits.hard).toBe(Infinity);
  });

  test('takes three slow ones of the first eight for evidence, and two for chance', () => {
    const two = shareOf(partlySlow(8, 2)).share;
    expect(two?.value).toBeLessThan(Number(two?.limits.soft));
    const three = shareOf(partlySlow(8, 3)).share;
    expect(three?.value).toBeGreaterThanOrEqual(Number(three?.limits.soft));
  });

  test('begins anew when the pace changes, and after a time at rest', () => {
    const slow = shareOf(partlySlow(80, 80));
    const slower = shareOf(partlySlow(8, 0), { paceChanges: 1 }, slow.watch);
    expect(slower.share?.words).toContain('0 of the last 8');
    const rested = watched(usual.slice(0, 8), {}, slow.watch);
    expect(shareOf(partlySlow(8, 1), {}, rested.watch).share?.words).toContain('1 of the last 8');
  });
});
