// What small statements take while a run moves rows, against what is usual for them: what they took while nothing of ours
// moved. Two judgements: the middle of the last few, for a database that has become slow; and the share of them that take
// longer than is usual for one in twenty, for an application whose slowest statements have become slower, long before the
// middle moves. Memory and samples in, memory and readings out.
import { canaryLimits, slowShare, usualOf, usualShare, type Reading } from './health.js';

export interface CanaryWatch {
  /** Milliseconds, newest last: all samples, and those taken while no run moved anything. */
  readonly all: readonly number[];
  readonly calm: readonly number[];
  /** Those taken while a run moved, since the pace last changed: what came before says nothing about this pace. */
  readonly moving: readonly number[];
  readonly paceChanges: number;
  /** Milliseconds that 95 % of the calm ones stay below; what an earlier leader knew, until enough was seen. */
  readonly usual: number | undefined;
}

export function openCanaryWatch(usual: number | undefined): CanaryWatch {
  return { all: [], calm: [], moving: [], paceChanges: 0, usual };
}

export interface CanarySample {
  /** One for each statement of a look. */
  readonly milliseconds: readonly number[];
  readonly isMoving: boolean;
  /** How often the pace has changed so far. */
  readonly paceChanges: number;
}

/** Some five minutes of samples. */
const keptSamples = 1_000;
/** Some ten seconds. */
const keptMoving = 80;
/** One slow answer is no trouble; the middle of some is. */
const judgedSamples = 8;
/**
 * What stands in for samples that are not there yet: as if that many had been seen, of which a tenth was slow, which is
 * neither calm for long nor too slow. Three slow ones of the first eight are then evidence, two are not.
 */
const assumedSamples = 24;
const assumedSlowShare = 0.1;

export function watchCanary(
  before: CanaryWatch,
  { milliseconds, isMoving, paceChanges }: CanarySample,
): { readonly watch: CanaryWatch; readonly readings: readonly Reading[] } {
  const known = usualOf(before.calm) ?? before.usual;
  const usual = known ?? usualOf(before.all);
  const goesOn = isMoving && paceChanges === before.paceChanges;
  const watch: CanaryWatch = {
    all: [...before.all, ...milliseconds].slice(-keptSamples),
    calm: isMoving ? before.calm : [...before.calm, ...milliseconds].slice(-keptSamples),
    moving: isMoving ? [...(goesOn ? before.moving : []), ...milliseconds].slice(-keptMoving) : [],
    paceChanges,
    usual: known,
  };
  const readings = [middleReading(watch.all, usual)];
  if (known !== undefined && isMoving) readings.push(shareReading(watch.moving, known));
  return { watch, readings };
}

function middleReading(all: readonly number[], usual: number | undefined): Reading {
  const value = middleOf(all.slice(-judgedSamples));
  const limits = canaryLimits(usual);
  const against = usual === undefined ? '' : `, usually at most ${limits.show(usual)}`;
  return { source: 'canary', value, limits, words: `a small statement takes ${limits.show(value)}${against}` };
}

function shareReading(moving: readonly number[], usual: number): Reading {
  const slow = moving.filter((milliseconds) => milliseconds > usual).length;
  const value = (slow + assumedSlowShare * assumedSamples) / (moving.length + assumedSamples);
  const words = `${slow} of the last ${moving.length} small statements took over ${Math.round(usual * 100) / 100} ms, as usually 1 of ${Math.round(1 / (1 - usualShare))} does`;
  return { source: 'canary', value, limits: slowShare, words };
}

/** The lower one of two. */
export function middleOf(samples: readonly number[]): number {
  return samples.toSorted((a, b) => a - b)[Math.floor((samples.length - 1) / 2)] ?? 0;
}
