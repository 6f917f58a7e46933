// What one cheap statement takes, against what is usual for it. Usual is what it took while nothing of ours moved; until
// that was seen often enough, what it takes of late. Memory and a sample in, memory and reading out.
import { canaryLimits, usualOf, type Reading } from './health.js';

export interface CanaryWatch {
  /** Milliseconds, newest last: all samples, and those taken while no run moved anything. */
  readonly all: readonly number[];
  readonly calm: readonly number[];
}

export const noCanaryWatch: CanaryWatch = { all: [], calm: [] };

/** Five minutes of samples. */
const keptSamples = 300;
/** One slow answer is no trouble; the middle of three is. */
const judgedSamples = 3;

export function watchCanary(
  before: CanaryWatch,
  sample: { readonly milliseconds: number; readonly isMoving: boolean },
): { readonly watch: CanaryWatch; readonly readings: readonly Reading[] } {
  const usual = usualOf(before.calm) ?? usualOf(before.all);
  const watch = {
    all: kept([...before.all, sample.milliseconds]),
    calm: sample.isMoving ? before.calm : kept([...before.calm, sample.milliseconds]),
  };
  const value = middleOf(watch.all.slice(-judgedSamples));
  const limits = canaryLimits(usual);
  const against = usual === undefined ? '' : `, usually at most ${limits.show(usual)}`;
  return {
    watch,
    readings: [{ source: 'canary', value, limits, words: `a small statement takes ${limits.show(value)}${against}` }],
  };
}

function kept(samples: readonly number[]): readonly number[] {
  return samples.slice(-keptSamples);
}

/** The lower one of two. */
export function middleOf(samples: readonly number[]): number {
  return samples.toSorted((a, b) => a - b)[Math.floor((samples.length - 1) / 2)] ?? 0;
}
