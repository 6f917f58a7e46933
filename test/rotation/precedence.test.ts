// Which runs rest while others go first.
import { expect, test } from 'vitest';
import { noLimits, parseHours } from '../../src/rotation/limits.js';
import { emergencyPriority, whyItRests, type Contender } from '../../src/rotation/precedence.js';
import { isWorking, runMoves, type RunState } from '../../src/rotation/run.js';

const noon = new Date('2026-01-15T12:00:00Z');
const closed = { ...noLimits, hours: parseHours('22:00-06:00', 'UTC') };

function contender(id: number, given: Partial<Contender> = {}): Contender {
  return { id, state: 'running', limits: noLimits, priority: 0, ...given };
}

test('a run rests outside its hours and says until when', () => {
  const run = contender(1, { limits: closed });
  expect(whyItRests(run, [run], noon)).toBe('outside its hours 22:00-06:00 UTC; goes on at 2026-01-15T22:00:00Z');
  expect(whyItRests(run, [run], new Date('2026-01-15T23:00:00Z'))).toBeUndefined();
});

test('every other run rests while an emergency run is at work, whatever its priority', () => {
  const emergency = contender(7, { priority: emergencyPriority });
  const others = [contender(1), contender(2, { priority: 9 }), contender(3, { state: 'pending' })];
  const all = [...others, emergency];
  expect(others.map((run) => whyItRests(run, all, noon))).toEqual(others.map(() => 'run 7 (emergency) goes first'));
  expect(whyItRests(emergency, all, noon)).toBeUndefined();
});

test('two emergency runs go side by side', () => {
  const both = [7, 8].map((id) => contender(id, { priority: emergencyPriority }));
  expect(both.map((run) => whyItRests(run, both, noon))).toEqual([undefined, undefined]);
});

test('an emergency run that cannot go on itself holds nobody back', () => {
  const run = contender(1);
  const restingFor = (given: Partial<Contender>): string | undefined =>
    whyItRests(run, [run, contender(7, { priority: emergencyPriority, ...given })], noon);
  const states = Object.keys(runMoves) as RunState[];
  expect(states.filter((state) => restingFor({ state }) !== undefined)).toEqual(states.filter(isWorking));
  expect(restingFor({ limits: closed })).toBeUndefined();
});

test('a lower priority alone is no reason to rest', () => {
  const runs = [contender(1), contender(2, { priority: 9 })];
  expect(runs.map((run) => whyItRests(run, runs, noon))).toEqual([undefined, undefined]);
});
