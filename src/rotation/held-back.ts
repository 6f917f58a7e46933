// What holds a run back: in words for people, and as one of few reasons for a metric, whose labels must not grow with every
// number that a sentence names.
import { whyPaused } from './breaker.js';
import { isOpenAt } from './limits.js';
import { whyItRests, type Contender } from './precedence.js';
import type { RunState } from './run.js';

export type HeldReason =
  | 'hours' // outside its hours
  | 'emergency' // an emergency run goes first
  | 'member' // a live member does not write with the target key yet
  | 'no_worker' // no worker is live
  | 'pace' // the database's health, or that nobody measures it
  | 'locks' // the application keeps the last rows locked
  | 'trouble' // its step was refused, say because its table changed
  | 'paused' // an operator paused it
  | PauseCause; // Keyturn paused it for that

/** As batches and cells name it: `KEY_RETIRED`, `REFUSED_23514`. */
export type PauseCause = Uppercase<string>;

export interface HeldBack {
  readonly reason: HeldReason;
  readonly words: string;
}

/** As `whyItRests`. */
export function restOf(run: Contender, all: readonly Contender[], now: Date): HeldBack | undefined {
  const words = whyItRests(run, all, now);
  if (words === undefined) return undefined;
  const { hours } = run.limits;
  return { reason: hours !== undefined && !isOpenAt(hours, now) ? 'hours' : 'emergency', words };
}

/** `words`: those that the run was paused with. */
export function pauseOf(
  run: { readonly id: number; readonly state: RunState },
  words: string | undefined,
): HeldBack | undefined {
  if (run.state !== 'pausing' && run.state !== 'paused') return undefined;
  const cause = words?.split(';')[0] ?? '';
  const code = cause.split(' ')[0] ?? '';
  return { reason: words === whyPaused(cause, run.id) && isCode(code) ? code : 'paused', words: words ?? '' };
}

function isCode(word: string): word is PauseCause {
  return /^[A-Z][A-Z0-9_]{0,63}$/.test(word);
}

/** It waits for something that comes about without it: no work of it waits for a worker, and standing still is no trouble. */
export function doesRest(reason: HeldReason | undefined): boolean {
  return reason === 'hours' || reason === 'emergency' || reason === 'member';
}
