// run list, show, watch, pause, resume, cancel.
import type { Command } from 'commander';
import { cancelRun, listRuns, pauseRun, resumeRun, showRun, type RunReport } from '../../control/runs.js';
import { parseCount, parseRunId } from '../arguments.js';
import type { Cli, Running } from '../cli.js';
import { endWatched } from '../finish-run.js';
import { teach } from '../help.js';
import { kindTitle, runLines } from '../run-words.js';
import { staffFor } from '../staff.js';
import { formatCount, formatTime, tableLines } from '../table.js';

const shownRuns = 20;
const idArgument = ['<id>', 'the number of the run'] as const;

export function addRunCommands(program: Command, cli: Cli): void {
  const run = program
    .command('run')
    .description('Runs: list, look, wait, pause, go on, cancel. All need the database alone.');

  teach(
    run
      .command('list')
      .description('List the newest runs.')
      .option('--limit <n>', 'how many', parseCount('a number of runs', 1_000), shownRuns)
      .option('--json', 'print one JSON object')
      .action((options: { limit: number; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const runs = await listRuns(context, options.limit);
          output.report({ runs }, () =>
            runs.length === 0
              ? ['no run yet', '', 'next: keyturn status']
              : tableLines(['run', 'kind', 'state', 'toward', 'rows', 'failed', 'ordered', ''], runs.map(listRow)),
          );
        }),
      ),
    { changes: 'nothing.', examples: [['keyturn run list --limit 5', 'the newest five']] },
  );

  teach(
    run
      .command('show')
      .description('Show all counters of a run, and what failed, with remedies.')
      .argument(...idArgument, parseRunId)
      .option('--json', 'print one JSON object')
      .action((id: number, options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const report = await showRun(context, id);
          output.report(report, () => runLines(report, output));
        }),
      ),
    { changes: 'nothing.', examples: [['keyturn run show 3', '']], exits: { 3: 'there is no such run' } },
  );

  teach(
    run
      .command('watch')
      .description('Show the progress of a run until it ends or pauses, then report it.')
      .argument(...idArgument, parseRunId)
      .option('--json', 'print one JSON object, at the end')
      .action((id: number, options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async (running) => {
          // A run that does not exist is told before anything is waited for.
          await showRun(running.context, id);
          await endWatched({ running, staff: staffFor(cli, running, { wait: true }) }, id);
        }),
      ),
    {
      changes: 'nothing; the run goes on when this command ends.',
      examples: [['keyturn run watch 3', 'progress goes to stderr, the report to stdout']],
      exits: { 3: 'there is no such run', 4: 'it was paused or cancelled', 6: 'cells failed or stayed stale' },
    },
  );

  addSteering({
    run,
    cli,
    name: 'pause',
    description: 'Ask a run to stop after the slices in hand; it keeps its place.',
    verb: pauseRun,
    said: (report) => [
      report.state === 'pausing' ? 'it is paused as soon as no batch is in the hands of a worker' : '',
      '',
      `next: keyturn run resume ${report.run_id}`,
    ],
    changes:
      'the state of the run. What was moved stays moved; everything stays readable. A live supervisor settles it.',
  });
  addSteering({
    run,
    cli,
    name: 'resume',
    description: 'Let a paused run go on where it stopped.',
    verb: resumeRun,
    said: (report) => ['', `next: keyturn run watch ${report.run_id}`],
    changes: 'the state of the run; nothing is moved twice.',
  });
  addSteering({
    run,
    cli,
    name: 'cancel',
    description: 'End a run for good after the slices in hand.',
    verb: cancelRun,
    said: () => ['what was moved stays moved, and everything stays readable', '', 'next: keyturn status'],
    changes:
      'the state of the run, for good; another run goes on from where the rows are. A live supervisor settles it.',
  });
}

interface Steering {
  readonly run: Command;
  readonly cli: Cli;
  readonly name: 'pause' | 'resume' | 'cancel';
  readonly description: string;
  readonly verb: (context: Running['context'], id: number, reason: string | undefined) => Promise<RunReport>;
  readonly said: (report: RunReport) => readonly string[];
  readonly changes: string;
}

function addSteering({ run, cli, name, description, verb, said, changes }: Steering): void {
  teach(
    run
      .command(name)
      .description(description)
      .argument(...idArgument, parseRunId)
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((id: number, options: { reason?: string; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const report = await verb(context, id, options.reason);
          output.report(report, () =>
            [`run ${id} is ${report.state.replaceAll('_', ' ')}`, ...said(report)].filter(
              (line, at, lines) => line !== '' || lines[at - 1] !== '',
            ),
          );
        }),
      ),
    {
      changes,
      examples: [[`keyturn run ${name} 3 --reason "month end"`, '']],
      exits: { 3: 'there is no such run', 4: `a run in its state cannot ${name}` },
    },
  );
}

function listRow(report: RunReport): readonly string[] {
  return [
    String(report.run_id),
    kindTitle(report.kind),
    report.state.replaceAll('_', ' '),
    report.target_key,
    formatCount(report.rows_examined),
    formatCount(report.fields_failed),
    formatTime(report.created_at),
    report.held_back_by ?? '',
  ];
}
