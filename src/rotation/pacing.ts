// How many workers may work, and how long they rest: additive increase, multiplicative decrease, with hysteresis. A hard
// limit stops the fleet and holds it, longer each time; a soft limit halves it, the last worker by longer rests; calm while it
// works lets it grow step by step. What cannot be seen counts as over the hard limit, unless it was declared optional. State and observation in,
// decision out; no clock of its own.
import type { RestBeside } from './beside-application.js';
import type { HealthSource, Limits, Reading } from './health.js';

/** A source at one moment: what it said last and how long ago, or why it says nothing. */
export type Gauge =
  | {
      readonly source: HealthSource;
      /** None where there is nothing to judge, as without a replica. */
      readonly readings: readonly Reading[];
      readonly ageMs: number;
      readonly isOptional: boolean;
    }
  | { readonly source: HealthSource; readonly unavailable: string; readonly isOptional: boolean };

export interface Observation {
  readonly gauges: readonly Gauge[];
  /** Live workers: the most there is to limit. */
  readonly workers: number;
  /** Some run moves rows now. Calm while none does says nothing about this pace. */
  readonly isMoving: boolean;
  /** What workers rest at least while a run moves; undefined for nothing. */
  readonly beside: RestBeside | undefined;
  /** An emergency run is working: soft limits doubled, recovery after 5 s; hard limits stay. */
  readonly isEmergency: boolean;
}

export interface PaceState {
  /** Undefined while nothing limits: every worker, also one that starts now. */
  readonly target: number | undefined;
  /** A worker rests `nice` times as long as it worked. */
  readonly nice: number;
  readonly heldUntilMs: number | undefined;
  /** How long the hold in force lasts, and the next one would. */
  readonly heldForMs: number;
  readonly holdMs: number;
  /** Since when every reading is below 0.7 of its soft limit while some run moves; begins anew with each step up. */
  readonly calmSinceMs: number | undefined;
  /** Since when no run moves. */
  readonly atRestSinceMs: number | undefined;
  /** Of the last time something was over a limit, while its effect lasts. */
  readonly reason: string | undefined;
}

export interface PaceDecision {
  readonly state: PaceState;
  /** Undefined for as many as there are. */
  readonly targetWorkers: number | undefined;
  readonly nice: number;
  /** In words, what holds the fleet back; undefined at full pace. */
  readonly reason: string | undefined;
  /** In words, what is not looked at, since it cannot be seen and need not be. */
  readonly unseen: readonly string[];
}

/** As far as the first hold; it doubles with every hard limit that comes before the fleet has recovered one step. */
const firstHoldMs = 10_000;
const longestHoldMs = 600_000;
const oldestReadingMs = 5_000;
const calmShare = 0.7;
const calmMs = 30_000;
const emergencyCalmMs = 5_000;
/** What was learnt of a pace is kept from one run to the next, but not for long: the application's load changes. */
export const forgetMs = 300_000;
const softNice = 1;
/** A ninth of the time at work. Slower than that, a run would outlast every window it is given. */
const maxNice = 8;
const niceStep = 0.25;
/** Long rests shrink faster than short ones. */
const niceStepShare = 1 / 8;
const emergencyFactor = 2;

export const initialPaceState: PaceState = {
  target: undefined,
  nice: 0,
  heldUntilMs: undefined,
  heldForMs: 0,
  holdMs: firstHoldMs,
  calmSinceMs: undefined,
  atRestSinceMs: undefined,
  reason: undefined,
};

type Grade = 'calm' | 'steady' | 'soft' | 'hard';

interface Judged {
  readonly grade: Grade;
  readonly words: string;
}

export function decidePace(before: PaceState, observation: Observation, nowMs: number): PaceDecision {
  const judged = observation.gauges.flatMap((gauge) => judge(gauge, observation.isEmergency));
  const state = nextState(before, judged, observation, nowMs);
  const { beside } = observation;
  const nice = Math.max(state.nice, beside?.nice ?? 0);
  return {
    state,
    targetWorkers: state.target,
    nice,
    reason: reasonOf(state, nice, observation.workers) ?? beside?.reason,
    unseen: observation.gauges.flatMap((gauge) => (gauge.isOptional ? (unseenWords(gauge) ?? []) : [])),
  };
}

function judge(gauge: Gauge, isEmergency: boolean): readonly Judged[] {
  const unseen = unseenWords(gauge);
  if (unseen === undefined && 'readings' in gauge)
    return gauge.readings.map((reading) => judgeReading(reading, isEmergency));
  return gauge.isOptional ? [] : [{ grade: 'hard', words: `${unseen}; what is unseen counts as over its limit` }];
}

/** Undefined for a source that was seen a moment ago. */
function unseenWords(gauge: Gauge): string | undefined {
  if ('unavailable' in gauge) return `${gauge.source} not seen: ${gauge.unavailable}`;
  if (gauge.ageMs <= oldestReadingMs) return undefined;
  return `${gauge.source} not seen for ${Math.round(gauge.ageMs / 1_000)} s`;
}

function judgeReading({ value, limits, words }: Reading, isEmergency: boolean): Judged {
  const soft = softLimit(limits, isEmergency);
  if (value >= limits.hard) return { grade: 'hard', words: `${words} (hard limit ${limits.show(limits.hard)})` };
  if (value >= soft) return { grade: 'soft', words: `${words} (soft limit ${limits.show(soft)})` };
  return { grade: value < calmShare * soft ? 'calm' : 'steady', words };
}

/** Never above the hard limit. */
function softLimit(limits: Limits, isEmergency: boolean): number {
  return isEmergency ? Math.min(limits.soft * emergencyFactor, limits.hard) : limits.soft;
}

function nextState(before: PaceState, judged: readonly Judged[], observation: Observation, nowMs: number): PaceState {
  const wordsOf = (grade: Grade): string | undefined =>
    judged
      .filter((one) => one.grade === grade)
      .map((one) => one.words)
      .join('; ') || undefined;
  const hard = wordsOf('hard');
  const isHeld = before.heldUntilMs !== undefined && nowMs < before.heldUntilMs;
  // A hold that has begun is not prolonged before it is over; its words follow what is over the limit now.
  if (isHeld) return hard === undefined ? before : { ...before, reason: hard };
  if (hard !== undefined) return hold(before, hard, nowMs);
  const soft = wordsOf('soft');
  const released = before.heldUntilMs === undefined ? before : release(before);
  if (soft !== undefined) return slowDown(released, soft, observation);
  if (!judged.every((one) => one.grade === 'calm')) return { ...released, calmSinceMs: undefined };
  return observation.isMoving ? recover(released, observation, nowMs) : wait(released, nowMs);
}

function hold(before: PaceState, reason: string, nowMs: number): PaceState {
  return {
    target: 0,
    nice: Math.max(softNice, before.nice),
    heldUntilMs: nowMs + before.holdMs,
    heldForMs: before.holdMs,
    holdMs: Math.min(longestHoldMs, 2 * before.holdMs),
    calmSinceMs: undefined,
    atRestSinceMs: undefined,
    reason,
  };
}

/** After a hold one worker tries. */
function release(before: PaceState): PaceState {
  return { ...before, target: 1, heldUntilMs: undefined };
}

/** Where there is no worker there is nothing to halve: the first one that starts is no reason to let only one. */
function slowDown(before: PaceState, reason: string, { workers }: Observation): PaceState {
  const target = Math.min(before.target ?? workers, workers);
  const isAlone = before.target !== undefined && target <= 1;
  return {
    ...before,
    target: workers === 0 ? before.target : Math.max(1, Math.floor(target / 2)),
    nice: isAlone ? Math.max(softNice, Math.min(maxNice, 2 * before.nice)) : Math.max(softNice, before.nice),
    calmSinceMs: undefined,
    atRestSinceMs: undefined,
    reason,
  };
}

/** While nothing moves; after five minutes of it, whatever comes next begins anew. */
function wait(before: PaceState, nowMs: number): PaceState {
  const since = before.atRestSinceMs ?? nowMs;
  return nowMs - since < forgetMs ? { ...before, calmSinceMs: undefined, atRestSinceMs: since } : initialPaceState;
}

function recover(before: PaceState, observation: Observation, nowMs: number): PaceState {
  const since = before.calmSinceMs ?? nowMs;
  const patienceMs = observation.isEmergency ? emergencyCalmMs : calmMs;
  if (nowMs - since < patienceMs) return { ...before, calmSinceMs: since, atRestSinceMs: undefined };
  const grown = before.target === undefined ? undefined : before.target + 1;
  const target = grown === undefined || grown >= observation.workers ? undefined : grown;
  const nice = Math.max(0, before.nice - Math.max(niceStep, before.nice * niceStepShare));
  return {
    target,
    nice,
    heldUntilMs: undefined,
    heldForMs: 0,
    holdMs: firstHoldMs,
    calmSinceMs: nowMs,
    atRestSinceMs: undefined,
    reason: target === undefined && nice === 0 ? undefined : before.reason,
  };
}

function reasonOf(state: PaceState, nice: number, workers: number): string | undefined {
  if (state.reason === undefined) return undefined;
  if (state.heldUntilMs !== undefined) return `${state.reason}; held for ${Math.round(state.heldForMs / 1_000)} s`;
  const pace = `${Math.min(state.target ?? workers, workers)} of ${workers} workers, resting ${Math.round(nice * 100) / 100} times as long as they work`;
  return state.calmSinceMs === undefined ? `${state.reason}; ${pace}` : `recovering from: ${state.reason}; ${pace}`;
}
