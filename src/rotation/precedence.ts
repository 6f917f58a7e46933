// Which runs go first. An emergency run that is at work goes before all others: they get no batch until it is through, and
// finish those in hand. Among the rest the higher priority is served first, and equals in turn.
import { describeClosed, isOpenAt, type RunLimits } from './limits.js';
import { isWorking, type RunState } from './run.js';

export const emergencyPriority = 10;

export interface Contender {
  readonly id: number;
  readonly state: RunState;
  readonly limits: RunLimits;
  readonly priority: number;
}

/** In words, why a run gets no batches for now; undefined when it may have some. `now` is the database's clock. */
export function whyItRests(run: Contender, all: readonly Contender[], now: Date): string | undefined {
  const { hours } = run.limits;
  if (hours !== undefined && !isOpenAt(hours, now)) return describeClosed(hours, now);
  if (run.priority === emergencyPriority) return undefined;
  const first = all.find((other) => other.priority === emergencyPriority && isAtWork(other, now));
  return first && `run ${first.id} (emergency) goes first`;
}

/** Not resting outside its hours. */
export function isAtWork(run: Pick<Contender, 'state' | 'limits'>, now: Date): boolean {
  return isWorking(run.state) && (run.limits.hours === undefined || isOpenAt(run.limits.hours, now));
}
