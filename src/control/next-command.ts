// The one command that is safe and useful now for a keyring. What was begun goes first, then what keeps the rest from being
// moved, then what is left to move, then what may be cleared away.
import type { RunState } from '../rotation/run.js';
import type { Runners } from './runs.js';

export interface Standing {
  readonly keyring: string;
  /** A rotation has taken up the staged key and was cut short before it was activated. */
  readonly isRotationBegun: boolean;
  /** A key is staged, ready to be activated. */
  readonly hasStandby: boolean;
  /** Id of the oldest key that only decrypts. */
  readonly oldestDecryptOnly: string | undefined;
  readonly targets: number;
  /** A run that moves rows of the keyring and has not come to its end, a paused one before others. */
  readonly unfinished: { readonly id: number; readonly state: RunState } | undefined;
  /** The newest run of the whole keyring toward its active key. */
  readonly lastRun: { readonly id: number; readonly state: RunState } | undefined;
  /** A later scan found cells that do not name the active key. */
  readonly isStaleSince: boolean;
  /** Cells that failed and are not resolved. */
  readonly quarantined: number;
  readonly runners: Runners;
}

export const nothingToDo = 'nothing to do';

export function nextCommand(standing: Standing): string {
  const command = commandFor(standing);
  return command === nothingToDo && !standing.hasStandby ? `keyturn key stage --keyring ${standing.keyring}` : command;
}

function commandFor(standing: Standing): string {
  const { lastRun, unfinished, runners } = standing;
  const which = `--keyring ${standing.keyring}`;
  // Waiting needs somebody to wait for.
  const how = runners.hasSupervisor && runners.workers > 0 ? '--wait' : '--local 2';
  const reencrypt = `keyturn reencrypt ${which} ${how}`;
  if (standing.isRotationBegun) return `keyturn key activate ${which}`;
  if (unfinished?.state === 'paused')
    return `keyturn run show ${unfinished.id}, then keyturn run resume ${unfinished.id}`;
  if (unfinished !== undefined) return `${startWords(runners)}keyturn run watch ${unfinished.id}`;
  if (standing.targets === 0) return nothingToDo;
  const hasEnded = lastRun?.state === 'succeeded' || lastRun?.state === 'completed_with_failures';
  if (standing.oldestDecryptOnly !== undefined && !hasEnded) return reencrypt;
  if (standing.quarantined > 0)
    return `keyturn quarantine list, mend what failed, then keyturn quarantine retry ${how}`;
  if (standing.isStaleSince) return reencrypt;
  if (standing.oldestDecryptOnly === undefined) return nothingToDo;
  // What failed is resolved by now, and a scan that finds nothing has yet to say so.
  if (lastRun?.state === 'completed_with_failures') return reencrypt;
  return `keyturn key retire ${standing.oldestDecryptOnly} ${which}`;
}

function startWords({ hasSupervisor, workers }: Runners): string {
  const missing = [...(hasSupervisor ? [] : ['keyturn supervisor']), ...(workers > 0 ? [] : ['keyturn worker'])];
  return missing.length === 0 ? '' : `start ${missing.join(' and ')}, then `;
}
