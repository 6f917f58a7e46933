// What small reads, and small commits, take while a run moves rows, against what is usual for them: what they took while
// nothing of ours moved. A read meets the processors and the cache, a commit the disk that a run's WAL goes to. Two
// judgements: the middle of the last few, for a database that has become slow; and the share of them that take longer than is
// usual for one in twenty, for an application whose slowest statements have become slower, long before the middle moves.
// Memory and samples in, memory and readings out.
import { canaryLimits, slowShare, usualOf, usualShare, type Reading } from './health.js';

export const canaryKinds = ['read', 'commit'] as const;
export type CanaryKind = (typeof canaryKinds)[number];

export interface CanaryWatch {
  readonly kind: CanaryKind;
  /** Milliseconds, newest last: all samples, and those taken while no run moved anything. */
  readonly all: readonly number[];
  readonly calm: readonly number[];
  /** Those taken while a run moved, since the pace last changed: what came before says nothing about this pace. */
  readonly moving: readonly number[];
  readonly paceChanges: number;
  /** Milliseconds that 95 % of the calm ones stay below; what an earlier leader knew, until enough was seen. */
  readonly usual: number | undefined;
}

export function openCanaryWatch(kind: CanaryKind, usual: number | undefined): CanaryWatch {
  return { kind, all: [], calm: [], moving: [], paceChanges: 0, usual };
}

export interface CanarySample {
  /** One for each read, or commit, of a look. */
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
  const { kind } = before;
  const watch: CanaryWatch = {
    kind,
    all: [...before.all, ...milliseconds].slice(-keptSamples),
    calm: isMoving ? before.calm : [...before.calm, ...milliseconds].slice(-keptSamples),
    moving: isMoving ? [...(goesOn ? before.moving : []), ...milliseconds].slice(-keptMoving) : [],
    paceChanges,
    usual: known,
  };
  const readings = [middleReading(watch, usual)];
  if (known !== undefined && isMoving) readings.push(shareReading(watch, known));
  return { watch, readings };
}

function middleReading({ kind, all }: CanaryWatch, usual: number | undefined): Reading {
  const value = middleOf(all.slice(-judgedSamples));
  const limits = canaryLimits(usual);
  const against = usual === undefined ? '' : `, usually at most ${limits.show(usual)}`;
  return { source: 'canary', value, limits, words: `a small ${kind} takes ${limits.show(value)}${against}` };
}

function shareReading({ kind, moving }: CanaryWatch, usual: number): Reading {
  const slow = moving.filter((milliseconds) => milliseconds > usual).length;
  const value = (slow + assumedSlowShare * assumedSamples) / (moving.length + assumedSamples);
  const words = `${slow} of the last ${moving.length} small ${kind}s took over ${Math.round(usual * 100) / 100} ms, as usually 1 of ${Math.round(1 / (1 - usualShare))} does`;
  return { source: 'canary', value, limits: slowShare, words };
}

/** The lower one of two. */
export function middleOf(samples: readonly number[]): number {
  return samples.toSorted((a, b) => a - b)[Math.floor((samples.length - 1) / 2)] ?? 0;
}
