// When a run must stop and ask: one cause failing more than half of the cells of three consecutive batches points at a key
// or a setting, not at data.

export interface BatchFailures {
  readonly cellsExamined: number;
  readonly failedByCause: ReadonlyMap<string, number>;
}

const consecutiveBatches = 3;

/** `latest`: finished batches, newest first. The cause to pause with, if any. */
export function causeToPauseFor(latest: readonly BatchFailures[]): string | undefined {
  const recent = latest.slice(0, consecutiveBatches);
  if (recent.length < consecutiveBatches) return undefined;
  const [first, ...others] = recent.map(dominantCause);
  return first !== undefined && others.every((cause) => cause === first) ? first : undefined;
}

function dominantCause(batch: BatchFailures): string | undefined {
  for (const [cause, cells] of batch.failedByCause) {
    if (cells * 2 > batch.cellsExamined) return cause;
  }
  return undefined;
}
