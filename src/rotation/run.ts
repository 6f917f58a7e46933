// The run: its kinds, its states and their legal moves as one literal table. A request and its settlement differ
// (pausing, paused), since work stops only between slices.

export type RunKind = 'reencrypt' | 'dry_run' | 'verify';

export type RunState =
  | 'pending'
  | 'running'
  | 'verifying'
  | 'pausing'
  | 'paused'
  | 'cancelling'
  | 'cancelled'
  | 'succeeded'
  | 'completed_with_failures'
  | 'failed';

export const runMoves: Readonly<Record<RunState, readonly RunState[]>> = {
  pending: [
    'running', // every live member writes with the target key
    'verifying', // a verify run has nothing to move first
    'pausing', // pause was asked for
    'cancelling', // cancel was asked for
    'failed', // its target key is no longer active
  ],
  running: [
    'verifying', // every batch of the pass is done
    'succeeded', // a dry run, or a retry of quarantined cells, is done and nothing failed
    'completed_with_failures', // likewise, and some cells failed
    'pausing', // pause was asked for, a key was retired, or one cause failed batch after batch
    'cancelling', // cancel was asked for
    'failed', // its target key is no longer active and rounds are spent
  ],
  verifying: [
    'running', // stale cells were found, or the active key changed (at most three rounds)
    'succeeded', // the second scan found nothing stale and nothing failed
    'completed_with_failures', // quarantined cells, or cells still stale after the last round
    'pausing', // as above
    'cancelling', // as above
    'failed', // its target key is no longer active and rounds are spent
  ],
  pausing: [
    'paused', // no batch of the run is in a worker's hands
    'pending', // resume, before anybody settled the pause of a run that had not begun
    'running', // resume, likewise
    'verifying', // resume, likewise during the second scan
    'cancelling', // cancel was asked for
  ],
  paused: [
    'pending', // resume, before it had begun
    'running', // resume
    'verifying', // resume, during the second scan
    'cancelling', // cancel was asked for
  ],
  cancelling: [
    'cancelled', // no batch of the run is in a worker's hands
  ],
  cancelled: [],
  succeeded: [],
  completed_with_failures: [],
  failed: [],
};

export function mayMoveRun(from: RunState, to: RunState): boolean {
  return runMoves[from].includes(to);
}

export function isFinished(state: RunState): boolean {
  return runMoves[state].length === 0;
}

/** Workers take and go on with batches only in these. */
export function isWorking(state: RunState): boolean {
  return state === 'running' || state === 'verifying';
}

export const maxRounds = 3;
