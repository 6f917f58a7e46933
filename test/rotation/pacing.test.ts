// The fleet's pace for any course of the signals: what stops it, what slows it, and that it comes back.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { Limits, Reading } from '../../src/rotation/health.js';
import {
  decidePace,
  initialPaceState,
  type Gauge,
  type Observation,
  type PaceDecision,
  type PaceState,
} from '../../src/rotation/pacing.js';

const limits: Limits = { soft: 1, hard: 5, show: (value) => `${value} s` };

function reading(value: number): Reading {
  return { source: 'replicas', value, limits, words: `replica r1 is ${value} s behind` };
}

function gauge(value: number, more: { ageMs?: number; isOptional?: boolean } = {}): Gauge {
  return { source: 'replicas', readings: [reading(value)], ageMs: 0, isOptional: false, ...more };
}

const unavailable: Gauge = { source: 'replicas', unavailable: 'grant pg_monitor', isOptional: false };

function seen(gauges: readonly Gauge[], more: Partial<Observation> = {}): Observation {
  return { gauges, workers: 8, isEmergency: false, isMoving: true, beside: undefined, ...more };
}

/** Looks once a second, `seconds` times, at the same. */
function after(state: PaceState, observation: Observation, seconds: number, fromMs = 0): PaceDecision {
  let decision = decidePace(state, observation, fromMs);
  for (let second = 1; second < seconds; second++)
    decision = decidePace(decision.state, observation, fromMs + second * 1_000);
  return decision;
}

const anyGauge: fc.Arbitrary<Gauge> = fc.oneof(
  fc
    .record({ value: fc.double({ min: 0, max: 10, noNaN: true }), ageMs: fc.nat(8_000), isOptional: fc.boolean() })
    .map(({ value, ...more }) => gauge(value, more)),
  fc.boolean().map((isOptional): Gauge => ({ ...unavailable, isOptional })),
);

const anyCourse = fc.array(
  fc.record({
    gauges: fc.array(anyGauge, { maxLength: 4 }),
    workers: fc.nat(50),
    isEmergency: fc.boolean(),
    isMoving: fc.boolean(),
    beside: fc.constant(undefined),
    seconds: fc.integer({ min: 1, max: 40 }),
  }),
  { minLength: 1, maxLength: 60 },
);

function isOverHard(one: Gauge): boolean {
  if (one.isOptional && ('unavailable' in one || one.ageMs > 5_000)) return false;
  return 'unavailable' in one || one.ageMs > 5_000 || one.readings.some(({ value }) => value >= limits.hard);
}

describe('the pace of the fleet', () => {
  test('is full from the beginning, without a word, where everything is calm or nothing is there to judge', () => {
    for (const gauges of [[], [gauge(0)], [{ ...unavailable, isOptional: true }]]) {
      const { targetWorkers, nice, reason } = decidePace(initialPaceState, seen(gauges), 0);
      expect({ targetWorkers, nice, reason }).toEqual({ targetWorkers: undefined, nice: 0, reason: undefined });
    }
    expect(decidePace(initialPaceState, seen([{ ...unavailable, isOptional: true }]), 0).unseen).toEqual([
      'replicas not seen: grant pg_monitor',
    ]);
  });

  test('over any course of signals: over a hard limit or unseen is a standstill, and the rest is never negative', () => {
    fc.assert(
      fc.property(anyCourse, (course) => {
        let state = initialPaceState;
        let nowMs = 0;
        for (const { seconds, ...observation } of course) {
          nowMs += seconds * 1_000;
          const decision = decidePace(state, observation, nowMs);
          const isOver = observation.gauges.some(isOverHard);
          expect(isOver && decision.targetWorkers !== 0).toBe(false);
          expect(decision.targetWorkers ?? 0).toBeGreaterThanOrEqual(0);
          expect(decision.targetWorkers ?? 0).toBeLessThanOrEqual(Math.max(1, observation.workers, state.target ?? 0));
          expect(decision.nice).toBeGreaterThanOrEqual(0);
          expect(decision.state.holdMs).toBeLessThanOrEqual(600_000);
          const isLimited = decision.targetWorkers !== undefined || decision.nice > 0;
          expect(isLimited && decision.reason === undefined).toBe(false);
          ({ state } = decision);
        }
      }),
    );
  });

  test('whatever happened, calm brings every worker back, without rest and without a word', () => {
    fc.assert(
      fc.property(anyCourse, fc.integer({ min: 1, max: 20 }), (course, workers) => {
        let state = initialPaceState;
        let nowMs = 0;
        for (const { seconds, ...observation } of course) {
          nowMs += seconds * 1_000;
          ({ state } = decidePace(state, observation, nowMs));
        }
        const recovered = after(state, seen([gauge(0)], { workers }), 600 + 31 * (workers + 32), nowMs + 1_000);
        expect(recovered).toMatchObject({ targetWorkers: undefined, nice: 0, reason: undefined });
      }),
      { numRuns: 30 },
    );
  });

  test('keeps the first worker of several from being the only one after a soft limit that was passed while there was none', () => {
    const { state, targetWorkers, nice } = decidePace(initialPaceState, seen([gauge(1)], { workers: 0 }), 0);
    expect({ targetWorkers, nice }).toEqual({ targetWorkers: undefined, nice: 1 });
    expect(decidePace(state, seen([gauge(1)], { workers: 8 }), 1_000).targetWorkers).toBe(4);
  });

  test('stops at a hard limit for 10 s, then twice as long each time, at most 10 min', () => {
    let state = initialPaceState;
    let nowMs = 0;
    const holds: number[] = [];
    for (let second = 0; second < 4_000; second++, nowMs += 1_000) {
      const decision = decidePace(state, seen([gauge(7)]), nowMs);
      expect(decision.targetWorkers).toBe(0);
      if (decision.state.heldUntilMs !== state.heldUntilMs) holds.push((decision.state.heldUntilMs ?? 0) - nowMs);
      ({ state } = decision);
    }
    expect(holds.slice(0, 8)).toEqual([10, 20, 40, 80, 160, 320, 600, 600].map((seconds) => seconds * 1_000));
  });

  test('says what it saw, the limit and how long it holds', () => {
    expect(decidePace(initialPaceState, seen([gauge(7)]), 0).reason).toBe(
      'replica r1 is 7 s behind (hard limit 5 s); held for 10 s',
    );
    expect(decidePace(initialPaceState, seen([gauge(2)]), 0).reason).toBe(
      'replica r1 is 2 s behind (soft limit 1 s); 4 of 8 workers, resting 1 times as long as they work',
    );
    expect(decidePace(initialPaceState, seen([unavailable]), 0).reason).toBe(
      'replicas not seen: grant pg_monitor; what is unseen counts as over its limit; held for 10 s',
    );
    expect(decidePace(initialPaceState, seen([gauge(0, { ageMs: 6_000 })]), 0).reason).toContain('not seen for 6 s');
  });

  test('begins with one worker after a hold, and a new hard limit before a step up holds twice as long', () => {
    const held = decidePace(initialPaceState, seen([gauge(7)]), 0);
    expect(after(held.state, seen([gauge(0)]), 9, 1_000).targetWorkers).toBe(0);
    const released = decidePace(held.state, seen([gauge(0)]), 10_000);
    expect(released).toMatchObject({ targetWorkers: 1, nice: 1 });
    expect(decidePace(released.state, seen([gauge(7)]), 11_000).reason).toContain('held for 20 s');
    const stepped = after(released.state, seen([gauge(0)]), 31, 11_000);
    expect(stepped).toMatchObject({ targetWorkers: 2, nice: 0.75 });
    expect(stepped.reason).toMatch(/^recovering from: replica r1 is 7 s behind .* 2 of 8 workers/);
    expect(decidePace(stepped.state, seen([gauge(7)]), 50_000).reason).toContain('held for 10 s');
  });

  test('halves at a soft limit with each look, down to one worker, which then rests twice as long each time, at most 8 times as long as it works', () => {
    const looks = [1, 2, 3, 4, 5, 6, 7].map((count) => after(initialPaceState, seen([gauge(2)]), count));
    expect(looks.map(({ targetWorkers }) => targetWorkers)).toEqual([4, 2, 1, 1, 1, 1, 1]);
    expect(looks.map(({ nice }) => nice)).toEqual([1, 1, 1, 2, 4, 8, 8]);
  });

  test('long rests shrink by an eighth with each half minute of calm, short ones by a quarter of the work', () => {
    let { state } = after(initialPaceState, seen([gauge(2)], { workers: 1 }), 4);
    const rests: number[] = [];
    for (let step = 0; step < 3; step++) {
      ({ state } = after(state, seen([gauge(0)], { workers: 1 }), 31, 10_000 + step * 31_000));
      rests.push(state.nice);
    }
    expect(rests).toEqual([7, 6.125, 5.359375]);
  });

  test('calm while nothing moves is no reason to go faster, and after five minutes of it the pace begins anew', () => {
    const slowed = after(initialPaceState, seen([gauge(2)]), 2);
    const atRest = after(slowed.state, seen([gauge(0)], { isMoving: false }), 300, 2_000);
    expect(atRest).toMatchObject({ targetWorkers: 2, nice: 1 });
    const goesOn = after(atRest.state, seen([gauge(0)]), 30, 302_000);
    expect(goesOn).toMatchObject({ targetWorkers: 2, nice: 1 });
    const forgotten = after(goesOn.state, seen([gauge(0)], { isMoving: false }), 301, 332_000);
    expect(forgotten).toMatchObject({ targetWorkers: undefined, nice: 0, reason: undefined });
  });

  test('between 0.7 of the soft limit and the limit it neither slows down nor recovers', () => {
    const slowed = after(initialPaceState, seen([gauge(2)]), 1);
    const steady = after(slowed.state, seen([gauge(0.8)]), 500, 1_000);
    expect(steady).toMatchObject({ targetWorkers: 4, nice: 1 });
    expect(after(steady.state, seen([gauge(0.6)]), 31, 600_000)).toMatchObject({ targetWorkers: 5, nice: 0.75 });
  });

  test('an emergency doubles soft limits, never beyond the hard ones, and recovers six times as fast', () => {
    const emergency = { isEmergency: true };
    expect(decidePace(initialPaceState, seen([gauge(1.3)], emergency), 0).targetWorkers).toBeUndefined();
    expect(decidePace(initialPaceState, seen([gauge(2)], emergency), 0).targetWorkers).toBe(4);
    expect(decidePace(initialPaceState, seen([gauge(5)], emergency), 0).targetWorkers).toBe(0);
    const slowed = after(initialPaceState, seen([gauge(2)], emergency), 1);
    expect(after(slowed.state, seen([gauge(0)], emergency), 6, 1_000).targetWorkers).toBe(5);
  });
});
