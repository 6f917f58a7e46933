// schedule list, set, remove.
import type { Command } from 'commander';
import {
  listScheduleReports,
  removeSchedule,
  setSchedule,
  type OccurrenceReport,
  type ScheduleReport,
} from '../../control/schedules.js';
import { parseCount } from '../arguments.js';
import type { Cli } from '../cli.js';
import { parseDuration } from '../duration.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { countOf, formatTime } from '../table.js';

interface SetOptions {
  readonly keyring?: string;
  readonly cron?: string;
  readonly timeZone?: string;
  readonly gradual?: number;
  readonly reason?: string;
  readonly json?: true;
}

const which = 'which keyring; may be left out where there is only one';

export function addScheduleCommands(program: Command, cli: Cli): void {
  const schedule = program
    .command('schedule')
    .description('Rotations that come by themselves: list what comes next, set, remove.');

  teach(
    schedule
      .command('list')
      .description('Show every schedule, what its newest time has come to, and the calendar of what comes next.')
      .option('--calendar <n>', 'how many of the next rotations', parseCount('a number of rotations', 50), 2)
      .option('--json', 'print one JSON object')
      .action((options: { calendar: number; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const schedules = await listScheduleReports(context, options.calendar);
          output.report({ schedules }, () =>
            schedules.length === 0
              ? ['no keyring has a schedule', '', 'next: keyturn schedule set']
              : schedules.flatMap((report) => scheduleLines(report, output)),
          );
        }),
      ),
    {
      changes: 'nothing.',
      examples: [['keyturn schedule list --calendar 8', 'two years of quarterly rotations']],
    },
  );

  teach(
    schedule
      .command('set')
      .description('Rotate a keyring by itself: new key, gradual days, run, verification, retirement of the old key.')
      .option('--keyring <name>', which)
      .option('--cron <fields>', 'minute hour day month weekday (default: quarterly, "0 3 1 */3 *")')
      .option('--time-zone <name>', 'a named zone, such as Europe/Berlin (default: UTC)')
      .option(
        '--gradual <time>',
        'how long rows follow only as they are used, before the run (default: 30d)',
        parseDuration,
      )
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: SetOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const set = await setSchedule(context, {
            keyring: options.keyring,
            cron: options.cron,
            timeZone: options.timeZone,
            gradualMs: options.gradual,
            reason: options.reason,
          });
          output.report(set, () => [
            ...scheduleLines(set.schedule, output),
            ...(set.warning === null ? [] : ['', `${output.paint('watch', 'to watch')}: ${set.warning}`]),
          ]);
        }),
      ),
    {
      changes:
        'the one schedule of the keyring; what is left out stays as it is. No key and no row is touched before its next time. A supervisor carries it out, which needs the root key and a database login that may change keys; without them it waits and says so.',
      examples: [
        ['keyturn schedule set --reason "policy 7"', 'quarterly, at 03:00 UTC, 30 gradual days'],
        ['keyturn schedule set --cron "0 3 * * 0" --gradual 2d', 'every Sunday'],
      ],
      exits: { 2: 'no cron expression, no time zone, or a policy that cannot be over in time', 3: 'no such keyring' },
    },
  );

  teach(
    schedule
      .command('remove')
      .description('Rotate a keyring by itself no longer.')
      .option('--keyring <name>', which)
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: { keyring?: string; reason?: string; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const removed = await removeSchedule(context, options.keyring, options.reason);
          output.report(removed, () => [
            `keyring ${removed.keyring} has no schedule any more`,
            ...(removed.cancelled === null
              ? []
              : [`its rotation was ${removed.cancelled.state} and is not gone on with; see: keyturn status`]),
          ]);
        }),
      ),
    {
      changes: 'the schedule. A run that it has ordered goes on; what would have followed it does not.',
      examples: [['keyturn schedule remove --reason "rotated by a timer now"', '']],
      exits: { 3: 'no such keyring, or it has no schedule' },
    },
  );
}

function scheduleLines(report: ScheduleReport, output: Output): readonly string[] {
  return [
    `${output.paint('strong', `keyring ${report.keyring}`)}  "${report.cron}" in ${report.time_zone}, ${countOf(report.gradual_days, 'gradual day')}, cryptoperiod ${countOf(report.cryptoperiod_days, 'day')}`,
    ...(report.latest === null ? [] : occurrenceLines(report.latest, output)),
    ...report.calendar.map(
      (entry) =>
        `  next    ${formatTime(entry.rotates_at)} new key, ${formatTime(entry.gradual_until)} run, over by ${formatTime(entry.over_by)}`,
    ),
  ];
}

function occurrenceLines(latest: OccurrenceReport, output: Output): readonly string[] {
  const end = latest.finished_at === null ? '' : ` ${formatTime(latest.finished_at)}`;
  const rest = [
    latest.key_id === null ? '' : `, key id ${latest.key_id}`,
    latest.run_id === null ? '' : `, run ${latest.run_id}`,
    latest.state === 'gradual' && latest.gradual_until !== null ? ` until ${formatTime(latest.gradual_until)}` : '',
    latest.over_by === null ? '' : `, to be over by ${formatTime(latest.over_by)}`,
  ].join('');
  return [
    `  latest  ${formatTime(latest.due_at)} ${latest.state}${end}${rest}${latest.is_late ? `: ${output.paint('bad', 'late')}` : ''}`,
    ...[latest.waits_for, latest.cause].flatMap((words) => (words === null ? [] : [`          ${words}`])),
  ];
}
