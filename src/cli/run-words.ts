// A run in words: the line that tells its progress, and the report at its end.
import type { LimitsReport, RunReport } from '../control/runs.js';
import { describeSeconds } from './duration.js';
import type { Output } from './output.js';
import { remedyFor } from './remedies.js';
import { countOf, formatCount, formatTime, tableLines } from './table.js';

const barWidth = 20;

/**
 * The number of rows is the planner's estimate, so percent and time left carry a `~`, and a pass that is not over never
 * shows 100 %. `heldBackBy` overrules what the report knows.
 */
export function progressWords(report: RunReport, heldBackBy: string | null = report.held_back_by): string {
  const parts = [`run ${report.run_id} ${phaseOf(report)}`];
  const { pass_rows: rows, pass_estimated_rows: estimate, rows_per_second: rate } = report;
  const isMoving = report.state === 'running' || report.state === 'verifying';
  if (isMoving && estimate > 0) {
    const share = Math.min(rows / estimate, 0.99);
    const filled = Math.floor(share * barWidth);
    parts.push(
      `[${'#'.repeat(filled)}${'-'.repeat(barWidth - filled)}] ~${Math.floor(share * 100)} %`,
      `${formatCount(rows)} of ~${formatCount(Math.max(rows, estimate))} rows`,
    );
  } else if (isMoving && rows > 0) {
    parts.push(`${formatCount(rows)} rows`);
  }
  if (rate !== null && rate > 0) {
    parts.push(`${formatCount(rate)} rows/s`);
    if (estimate > rows) parts.push(`~${describeSeconds(Math.max(1, Math.round((estimate - rows) / rate)))} left`);
  }
  if (heldBackBy !== null) parts.push(`held back: ${heldBackBy}`);
  return parts.join('  ');
}

/** What, when it changes, is worth a line of its own where lines are rare. */
export function progressPhase(report: RunReport, heldBackBy: string | null = report.held_back_by): string {
  // What is measured changes every second and is no news.
  return `${phaseOf(report)} ${heldBackBy?.replaceAll(/[\d.]+/g, '0') ?? ''}`;
}

function phaseOf(report: RunReport): string {
  const round = report.round > 0 ? `, round ${report.round + 1}` : '';
  switch (report.state) {
    case 'pending':
      return 'waiting to begin';
    case 'running':
      return `${report.kind === 'dry_run' ? 'trying' : 'moving'}${round}`;
    case 'verifying':
      return `verifying${round}`;
    default:
      return report.state.replaceAll('_', ' ');
  }
}

const kindWords: Readonly<Record<RunReport['kind'], string>> = {
  reencrypt: 'reencrypt',
  dry_run: 'dry run',
  verify: 'verify',
};

export function kindTitle(kind: RunReport['kind']): string {
  return kindWords[kind];
}

export function runLines(report: RunReport, output: Pick<Output, 'paint'>): readonly string[] {
  const verified = report.verified_at === null ? '' : `, verified ${formatTime(report.verified_at)}`;
  const lines = [
    `run ${report.run_id}: ${kindTitle(report.kind)} toward ${report.target_key}: ${output.paint(toneOf(report), phaseOf(report))}${verified}`,
    `  tables       ${report.targets.join(', ') || 'none'}${report.scope === null ? '' : `, scope ${report.scope} only`}`,
    `  ordered      ${formatTime(report.created_at)} by ${report.requested_by}${report.reason === null ? '' : `: ${report.reason}`}`,
  ];
  if (report.retries !== null) lines.push(`  retries      run ${report.retries}`);
  const limits = limitWords(report);
  if (limits !== undefined) lines.push(`  limits       ${limits}`);
  if (report.started_at !== null && report.finished_at !== null) {
    lines.push(`  took         ${tookWords(report, Date.parse(report.finished_at) - Date.parse(report.started_at))}`);
  }
  if (report.held_back_by !== null) {
    lines.push(`  ${report.finished_at === null ? 'held back   ' : 'because     '} ${report.held_back_by}`);
  }
  if (report.pace !== null) lines.push(`  pace         ${paceWords(report.pace)}`);
  return [...lines, '', ...counterLines(report), ...failureLines(report)];
}

/** `500 rows/s, 2 workers, 22:00-06:00 Europe/Berlin, priority 5`; undefined where nothing is limited. */
export function limitWords({ limits, priority, emergency }: RunReport): string | undefined {
  const parts = [
    ...(emergency ? ['emergency: before every other run'] : []),
    ...partsOf(limits),
    ...(emergency || priority === 0 ? [] : [`priority ${priority}`]),
  ];
  return parts.length === 0 ? undefined : parts.join(', ');
}

/** Undefined where an emergency took no limit away. */
export function liftedWords(limits: LimitsReport | null | undefined): string | undefined {
  if (limits === null || limits === undefined) return undefined;
  return `taken away for the emergency: ${partsOf(limits).join(', ')}`;
}

function partsOf(limits: LimitsReport): readonly string[] {
  return [
    ...(limits.rows_per_second === null ? [] : [`${formatCount(limits.rows_per_second)} rows/s`]),
    ...(limits.workers === null ? [] : [countOf(limits.workers, 'worker')]),
    ...(limits.hours === null ? [] : [`${limits.hours} ${limits.zone ?? ''}`]),
  ];
}

/** How much of the workers is in use, and what is not watched. */
export function paceWords({ target_workers: target, nice, unseen }: NonNullable<RunReport['pace']>): string {
  const workers = target === null ? 'all workers' : `at most ${countOf(target, 'worker')}`;
  const rest = nice === 0 ? 'without rest' : `resting ${nice} times as long as they work`;
  return [`${workers}, ${rest}`, ...unseen].join('; ');
}

function tookWords(report: RunReport, tookMs: number): string {
  const rate = report.rows_examined / Math.max(tookMs / 1_000, 0.001);
  return `${describeSeconds(tookMs / 1_000)}${report.rows_examined > 0 ? `, ${formatCount(Math.round(rate))} rows/s from beginning to end` : ''}`;
}

function toneOf(report: RunReport): 'good' | 'bad' | 'watch' {
  if (report.state === 'succeeded') return 'good';
  return report.state === 'completed_with_failures' || report.state === 'failed' ? 'bad' : 'watch';
}

/** Every counter; a verify run moves nothing, so it has no line for what was moved. */
function counterLines(report: RunReport): readonly string[] {
  const moved = report.kind === 'dry_run' ? 'would move' : 'moved';
  const rows: [string, number, number, string][] = [
    ['examined', report.rows_examined, report.fields_examined, ''],
    ...(report.kind === 'verify'
      ? []
      : [[moved, report.rows_updated, report.fields_reencrypted, ''] as [string, number, number, string]]),
    [
      'on the key',
      report.rows_skipped_all_on_target,
      report.fields_skipped_on_target,
      report.rows_skipped_all_on_target > 0 ? 'had nothing to move' : '',
    ],
    ['conflicted', report.rows_conflicted, report.fields_conflicted, conflictWords(report)],
    ['failed', report.rows_failed, report.fields_failed, ''],
  ];
  const table = tableLines(
    ['', 'rows', 'cells', ''],
    rows.map(([title, rowCount, cells, words]) => [title, formatCount(rowCount), formatCount(cells), words]),
  );
  const stale =
    report.fields_stale > 0
      ? [`  ${countOf(report.fields_stale, 'cell')} found that do not name ${report.target_key}`]
      : [];
  return [...table, ...stale];
}

function conflictWords(report: RunReport): string {
  if (report.fields_conflicted === 0) return '';
  return report.kind === 'verify' ? 'stale when looked at' : 'written by the application meanwhile, visited again';
}

function failureLines(report: RunReport): readonly string[] {
  if (report.failures.length === 0) return [];
  const causes = [...new Set(report.failures.map((failure) => failure.cause))];
  const rows = report.failures.map((failure) => [
    `${failure.target}.${failure.field}`,
    failure.cause,
    failure.key_id === null ? '-' : `key ${failure.key_id}`,
    countOf(failure.cells, 'cell'),
  ]);
  return [
    '',
    'cells that failed, left as they were',
    ...tableLines(['column', 'cause', 'names', ''], rows),
    ...causes.map((cause) => `  ${cause}: ${remedyFor(cause)}`),
  ];
}
