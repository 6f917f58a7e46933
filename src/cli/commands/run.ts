// run list, show, watch. What steers runs stands in steer-run.ts.
import type { Command } from 'commander';
import { listRuns, showRun, type RunReport } from '../../control/runs.js';
import { idArgument, parseCount, parseRunId } from '../arguments.js';
import type { Cli } from '../cli.js';
import { endWatched } from '../finish-run.js';
import { teach } from '../help.js';
import { kindTitle, runLines } from '../run-words.js';
import { staffFor } from '../staff.js';
import { formatCount, formatTime, tableLines } from '../table.js';
import { addSteeringCommands } from './steer-run.js';

const shownRuns = 20;

export function addRunCommands(program: Command, cli: Cli): void {
  const run = program
    .command('run')
    .description('Runs: list, look, wait, pause, go on, cancel, retry, limit. All need the database alone.');

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

  addSteeringCommands(run, cli);
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
