// Checkpoints that the WAL of a run has forced, over the last five minutes. The server counts requested checkpoints
// whoever asked; one was forced by WAL when about as much lies before it as the server allows between two. Those that
// came while nothing of ours moved are not ours.
import { forcedCheckpoints, type Reading } from './health.js';

export interface SeenCheckpoints {
  readonly requested: number;
  readonly redo: number;
  readonly walBetween: number;
}

export interface CheckpointWatch {
  readonly last: Pick<SeenCheckpoints, 'requested' | 'redo'> | undefined;
  readonly forcedAtMs: readonly number[];
}

export const noCheckpointWatch: CheckpointWatch = { last: undefined, forcedAtMs: [] };

const windowMs = 300_000;
/** A checkpoint begins a little before or after its share of WAL is full. */
const forcedShare = 0.5;

export function watchCheckpoints(
  before: CheckpointWatch,
  seen: SeenCheckpoints,
  now: { readonly ms: number; readonly isMoving: boolean },
): { readonly watch: CheckpointWatch; readonly readings: readonly Reading[] } {
  const isNew = before.last !== undefined && seen.redo > before.last.redo;
  const isForced =
    isNew &&
    seen.requested > (before.last?.requested ?? seen.requested) &&
    seen.redo - (before.last?.redo ?? seen.redo) >= forcedShare * seen.walBetween;
  const forcedAtMs = [
    ...before.forcedAtMs.filter((atMs) => now.ms - atMs < windowMs),
    ...(isForced && now.isMoving ? [now.ms] : []),
  ];
  return {
    watch: {
      last: before.last === undefined || isNew ? { requested: seen.requested, redo: seen.redo } : before.last,
      forcedAtMs,
    },
    readings: [
      {
        source: 'checkpoints',
        value: forcedAtMs.length,
        limits: forcedCheckpoints,
        words: `${forcedAtMs.length} checkpoints in five minutes were forced by the amount of WAL (see max_wal_size)`,
      },
    ],
  };
}
