// The two ways a command that began a run ends: it says that the run is on, or it waits for its end and reports it.
import type { BegunRun } from '../control/rotate-and-reencrypt.js';
import { estimateAfterDryRun } from '../control/estimate.js';
import { refuseUnlessComplete } from '../control/rotate-and-reencrypt.js';
import type { RunReport } from '../control/runs.js';
import { readStatus } from '../control/status.js';
import type { Running } from './cli.js';
import { dryRunWords, estimateLines } from './estimate-words.js';
import { followRun } from './follow-run.js';
import { kindTitle, liftedWords, runLines } from './run-words.js';
import { noteMissingRunners, type Staff } from './staff.js';

export interface Ending {
  readonly running: Running;
  readonly staff: Staff;
  readonly acceptFailures?: boolean;
  /** Goes before the counters in `--json`, and its lines before the report. */
  readonly before?: { readonly value: object; readonly lines: readonly string[] };
}

export async function endBegun(ending: Ending, begun: BegunRun): Promise<void> {
  const { running, staff, before } = ending;
  const { report } = begun;
  if (begun.dryRun !== undefined) running.output.note(dryRunWords(begun.dryRun));
  if (begun.begin === 'joined') noteJoined(running, begun);
  if (begun.begin === 'done') {
    const next = await nextAfter(running, report);
    running.output.report({ ...before?.value, begin: begun.begin, ...report, next }, () => [
      ...(before?.lines ?? []),
      `run ${report.run_id} has moved and verified everything already; nothing to do`,
      '',
      `next: ${next}`,
    ]);
    return;
  }
  if (!staff.waits) {
    await noteMissingRunners(running);
    const next = `keyturn run watch ${report.run_id}`;
    const value = { ...before?.value, begin: begun.begin, ...besideReport(begun), ...report, next };
    running.output.report(value, () => [
      ...(before?.lines ?? []),
      `run ${report.run_id} ${begun.begin}: ${kindTitle(report.kind)} toward ${report.target_key}, ${report.targets.join(', ')}`,
      '',
      `next: ${next}`,
    ]);
    return;
  }
  await endWatched(
    {
      ...ending,
      before: {
        value: { ...before?.value, begin: begun.begin, ...besideReport(begun) },
        lines: before?.lines ?? [],
      },
    },
    report.run_id,
  );
}

function besideReport({ dryRun, lifted }: BegunRun): object {
  return {
    ...(dryRun === undefined ? {} : { last_dry_run: dryRun }),
    ...(lifted === undefined ? {} : { lifted_limits: lifted }),
  };
}

export function noteJoined({ output }: Running, { report, lifted }: BegunRun): void {
  output.note(`run ${report.run_id}, ordered earlier, is not finished; going on with it`);
  const words = liftedWords(lifted);
  if (words !== undefined) output.note(words);
}

/** Waits, reports, and throws what keeps the run from being a success. */
export async function endWatched({ running, staff, before, acceptFailures }: Ending, id: number): Promise<void> {
  const { context, output } = running;
  running.hintIfInterrupted(
    staff.runners === undefined
      ? `run ${id} goes on without this command; see it with: keyturn run watch ${id}`
      : `run ${id} is not finished; repeat the command to go on with it`,
  );
  const report = await followRun({ context, output, runners: staff.runners }, id);
  const next = await nextAfter(running, report);
  const estimates = report.kind === 'dry_run' ? await estimateAfterDryRun(context, id) : undefined;
  output.report({ ...before?.value, ...report, ...(estimates && { estimates }), next }, () => [
    ...(before?.lines ?? []),
    ...runLines(report, output),
    ...(estimates === undefined ? [] : ['', 'the run it stands for', ...estimateLines(estimates)]),
    '',
    `next: ${next}`,
  ]);
  refuseUnlessComplete(report, { acceptFailures: acceptFailures === true });
}

/** The next safe command: what the run's own answer asks for, else what `status` says of its keyring. */
async function nextAfter({ context }: Running, report: RunReport): Promise<string> {
  const only = [
    `--keyring ${report.keyring}`,
    ...(report.scope === null ? [] : [`--scope ${shellWord(report.scope)}`]),
  ];
  const reencrypt = `keyturn reencrypt ${only.join(' ')} --wait`;
  if (report.kind === 'verify' && report.fields_stale > 0) return reencrypt;
  if (report.kind === 'dry_run' && report.failures.length > 0)
    return `keyturn quarantine list --run ${report.run_id}, mend what would fail, then keyturn reencrypt ${only.join(' ')} --dry-run --wait`;
  if (report.kind !== 'reencrypt' && report.failures.length > 0) return `mend what failed, then ${reencrypt}`;
  if (report.kind === 'dry_run' && report.fields_reencrypted > 0) return reencrypt;
  const { keyrings, next } = await readStatus(context);
  return keyrings.find((keyring) => keyring.keyring === report.keyring)?.next ?? next;
}

function shellWord(value: string): string {
  return /^[\w./:@-]+$/.test(value) ? value : `'${value.replaceAll("'", `'\\''`)}'`;
}
