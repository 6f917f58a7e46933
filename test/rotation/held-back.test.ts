// What holds a run back, as the reasons of a metric.
import { expect, test } from 'vitest';
import { whyPaused } from '../../src/rotation/breaker.js';
import { doesRest, pauseOf, restOf } from '../../src/rotation/held-back.js';
import { noLimits, parseHours } from '../../src/rotation/limits.js';
import { emergencyPriority, type Contender } from '../../src/rotation/precedence.js';
import { runMoves, type RunState } from '../../src/rotation/run.js';

const noon = new Date('2026-01-15T12:00:00Z');
const nights = { ...noLimits, hours: parseHours('22:00-06:00', 'UTC') };
const emergency: Contender = { id: 7, state: 'running', limits: noLimits, priority: emergencyPriority };

test('a run that rests says whether for its hours or for an emergency, in the words of the rule', () => {
  const run: Contender = { id: 1, state: 'running', limits: noLimits, priority: 0 };
  expect(restOf(run, [run, emergency], noon)).toEqual({ reason: 'emergency', words: 'run 7 (emergency) goes first' });
  expect(restOf({ ...run, limits: nights }, [run, emergency], noon)).toEqual({
    reason: 'hours',
    words: 'outside its hours 22:00-06:00 UTC; goes on at 2026-01-15T22:00:00Z',
  });
  expect(restOf(run, [run], noon)).toBeUndefined();
});

test('a run that Keyturn paused shows the code of the cause, without the number of a key, and one that an operator paused does not', () => {
  const paused = { id: 3, state: 'paused' as const };
  for (const [cause, reason] of [
    ['KEY_RETIRED 17', 'KEY_RETIRED'],
    ['NOT_AN_ENVELOPE', 'NOT_AN_ENVELOPE'],
    ['REFUSED_23514', 'REFUSED_23514'],
  ] as const)
    expect(pauseOf(paused, whyPaused(cause, 3))).toEqual({ reason, words: whyPaused(cause, 3) });
  for (const words of [
    'peak hours',
    'KEY_RETIRED',
    'KEY_RETIRED 17; the key is needed',
    whyPaused('KEY_RETIRED 1', 4),
    undefined,
  ])
    expect(pauseOf(paused, words)).toEqual({ reason: 'paused', words: words ?? '' });
});

test('only a run that is paused or about to be is held by a pause', () => {
  const states = Object.keys(runMoves) as RunState[];
  expect(states.filter((state) => pauseOf({ id: 3, state }, 'peak hours') !== undefined)).toEqual([
    'pausing',
    'paused',
  ]);
});

test('a run rests for what comes about without it; for want of workers, health or a step that works it does not', () => {
  const reasons = [
    'hours',
    'emergency',
    'member',
    'no_worker',
    'pace',
    'locks',
    'trouble',
    'paused',
    'KEY_RETIRED',
  ] as const;
  expect(reasons.filter((reason) => doesRest(reason))).toEqual(['hours', 'emergency', 'member']);
  expect(doesRest(undefined)).toBe(false);
});
