// The pace of all workers together, as every door tells it.
import { paceValidSeconds } from '../rotation/standing.js';
import type { Queryable } from '../store/database.js';
import { readPace } from '../store/pace.js';

export interface PaceReport {
  /** Batches that workers may have at a time; null for as many as there are workers. */
  readonly target_workers: number | null;
  /** Rest per time of work. */
  readonly nice: number;
  /** In words, what holds the workers back. */
  readonly reason: string | null;
  /** In words, what was measured, and what is not looked at since it cannot be seen. */
  readonly seen: readonly string[];
  readonly unseen: readonly string[];
}

/** Null where no supervisor measures. */
export async function readPaceReport(database: Queryable): Promise<PaceReport | null> {
  const pace = await readPace(database);
  if (pace === undefined || pace.ageSeconds > paceValidSeconds) return null;
  return {
    target_workers: pace.targetWorkers ?? null,
    nice: pace.nice,
    reason: pace.reason ?? null,
    seen: wordsOf(pace.signals['seen']),
    unseen: wordsOf(pace.signals['unseen']),
  };
}

function wordsOf(value: unknown): readonly string[] {
  return Array.isArray(value) ? value.map(String) : [];
}
