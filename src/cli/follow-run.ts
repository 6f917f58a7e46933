// Waits for the end of a run and shows its progress, with the runners of `--local` where there are any.
import type { ControlContext } from '../control/context.js';
import { findRunners, watchRun, type RunReport } from '../control/runs.js';
import type { LocalRunners } from './local-runners.js';
import type { Output } from './output.js';
import { progressPhase, progressWords } from './run-words.js';

const checkEveryMs = 5_000;

export interface Following {
  readonly context: ControlContext;
  readonly output: Output;
  readonly runners: LocalRunners | undefined;
}

/** The last report: finished or paused. Throws RunnerEnded when a local runner ends before. */
export async function followRun(following: Following, id: number): Promise<RunReport> {
  const over = new AbortController();
  try {
    const ended = untilEnded(following, id, over.signal);
    return await (following.runners === undefined ? ended : Promise.race([ended, following.runners.failed]));
  } finally {
    over.abort();
  }
}

async function untilEnded({ context, output, runners }: Following, id: number, over: AbortSignal): Promise<RunReport> {
  let checkedAtMs = performance.now();
  let missing: string | null = null;
  let last: RunReport | undefined;
  for await (const report of watchRun(context, id)) {
    last = report;
    if (over.aborted || hasEnded(report)) break;
    if (performance.now() - checkedAtMs >= checkEveryMs) {
      checkedAtMs = performance.now();
      missing = await findMissing(context, runners);
    }
    const heldBackBy = missing ?? report.held_back_by;
    output.progress(progressWords(report, heldBackBy), progressPhase(report, heldBackBy));
  }
  // Unreachable: a watch begins with a report.
  if (last === undefined) throw new Error(`the watch of run ${id} said nothing`);
  return last;
}

/** As the watch sees it: the end itself is for the report to tell. */
function hasEnded(report: RunReport): boolean {
  return report.finished_at !== null || report.state === 'paused';
}

/** A run without a supervisor stands still and cannot say so itself. */
async function findMissing(context: ControlContext, runners: LocalRunners | undefined): Promise<string | null> {
  if (runners !== undefined) {
    await runners.keepSupervised(context);
    return null;
  }
  return (await findRunners(context)).hasSupervisor ? null : 'no live supervisor; start one with: keyturn supervisor';
}
