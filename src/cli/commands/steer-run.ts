// run pause, resume, cancel, retry, limit.
import { Option, type Command } from 'commander';
import type { RunReport } from '../../control/runs.js';
import { cancelRun, limitRun, pauseAllRuns, pauseRun, resumeRun, retryRun } from '../../control/steer-runs.js';
import { KeyturnError } from '../../errors.js';
import { idArgument, parseRunId } from '../arguments.js';
import type { Cli, Running } from '../cli.js';
import { teach } from '../help.js';
import { addLimitOptions, steeringOf, type LimitOptions } from '../limit-options.js';
import { liftedWords, limitWords } from '../run-words.js';
import { noteMissingRunners, noteUnsettled } from '../staff.js';
import { countOf } from '../table.js';

interface SteeringOptions {
  readonly reason?: string;
  readonly json?: true;
}

interface PauseOptions extends SteeringOptions {
  readonly all?: true;
}

export function addSteeringCommands(run: Command, cli: Cli): void {
  addPause(run, cli);
  addSteering({
    run,
    cli,
    name: 'resume',
    description: 'Let a paused run go on where it stopped.',
    verb: resumeRun,
    said: (report) => [`run ${report.run_id} is ${stateWords(report)}`, '', `next: keyturn run watch ${report.run_id}`],
    changes:
      'the state of the run; nothing is moved twice. A pause that nobody has settled yet is taken back; a run that goes on already stays as it is.',
    refusal: 'the run is over, or is being cancelled',
  });
  addSteering({
    run,
    cli,
    name: 'cancel',
    description: 'End a run for good after the slices in hand.',
    verb: cancelRun,
    said: (report) => [
      `run ${report.run_id} is ${stateWords(report)}`,
      'what was moved stays moved, and everything stays readable',
      '',
      'next: keyturn status',
    ],
    changes:
      'the state of the run, for good; another run goes on from where the rows are. A live supervisor settles it.',
    refusal: 'the run is over',
  });
  addRetry(run, cli);
  addLimit(run, cli);
}

function addPause(run: Command, cli: Cli): void {
  teach(
    run
      .command('pause')
      .description('Ask a run to stop after the slices in hand; it keeps its place.')
      .argument('[id]', idArgument[1], parseRunId)
      .addOption(new Option('--all', 'every unfinished run at once'))
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((id: number | undefined, options: PauseOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async (running) => {
          if ((id === undefined) !== (options.all === true))
            throw new KeyturnError('USAGE', 'expected the number of a run, or --all; see: keyturn run list');
          if (id === undefined) return pauseAll(running, options);
          const report = await pauseRun(running.context, id, options.reason);
          await noteUnsettled(running, [report]);
          running.output.report(report, () => [
            `run ${id} is ${stateWords(report)}`,
            ...pausingWords([report]),
            '',
            `next: keyturn run resume ${id}`,
          ]);
        }),
      ),
    {
      changes:
        'the state of the run. What was moved stays moved; everything stays readable. Workers stop by themselves, with or without a supervisor and a queue; a live supervisor settles it. --all pauses the runs there are; runs ordered later start as ever.',
      examples: [
        ['keyturn run pause 3 --reason "month end"', ''],
        ['keyturn run pause --all --reason "the database is struggling"', 'the stop button'],
      ],
      exits: { 3: 'there is no such run', 4: 'a run in its state cannot pause' },
    },
  );
}

async function pauseAll(running: Running, { reason }: PauseOptions): Promise<void> {
  const paused = await pauseAllRuns(running.context, reason);
  const { runs, left_alone: others } = paused;
  await noteUnsettled(running, [...runs, ...others]);
  running.output.report(paused, () => [
    runs.length === 0
      ? 'no run is there to pause'
      : `${countOf(runs.length, 'run')} asked to pause: ${runs.map((report) => report.run_id).join(', ')}`,
    ...(others.length === 0
      ? []
      : [`left alone: ${others.map((report) => `${report.run_id} is ${stateWords(report)}`).join(', ')}`]),
    ...pausingWords(runs),
    'runs ordered from now on start as ever',
    '',
    `next: ${runs[0] === undefined ? 'keyturn status' : `keyturn run resume ${runs[0].run_id}`}`,
  ]);
}

function pausingWords(reports: readonly RunReport[]): readonly string[] {
  return reports.some((report) => report.state === 'pausing')
    ? ['it is paused as soon as no batch is in the hands of a worker']
    : [];
}

interface Steering {
  readonly run: Command;
  readonly cli: Cli;
  readonly name: 'resume' | 'cancel';
  readonly description: string;
  readonly verb: (context: Running['context'], id: number, reason: string | undefined) => Promise<RunReport>;
  readonly said: (report: RunReport) => readonly string[];
  readonly changes: string;
  readonly refusal: string;
}

function addSteering({ run, cli, name, description, verb, said, changes, refusal }: Steering): void {
  teach(
    run
      .command(name)
      .description(description)
      .argument(...idArgument, parseRunId)
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((id: number, options: SteeringOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async (running) => {
          const report = await verb(running.context, id, options.reason);
          await (name === 'cancel' ? noteUnsettled(running, [report]) : noteMissingRunners(running));
          running.output.report(report, () => said(report));
        }),
      ),
    {
      changes,
      examples: [[`keyturn run ${name} 3 --reason "month end"`, '']],
      exits: { 3: 'there is no such run', 4: refusal },
    },
  );
}

interface RetryOptions extends SteeringOptions {
  readonly acceptFailures?: true;
}

function addRetry(run: Command, cli: Cli): void {
  teach(
    run
      .command('retry')
      .description(
        'Order a run that takes up what a finished one left: cells that failed, stayed stale or were not reached.',
      )
      .argument(...idArgument, parseRunId)
      .option('--accept-failures', 'order it although a dry run since has found cells that would fail')
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((id: number, { reason, acceptFailures, json }: RetryOptions) =>
        cli.run({ isJson: json, file: 'none' }, async (running) => {
          const report = await retryRun(running.context, id, { reason, acceptFailures: acceptFailures === true });
          await noteMissingRunners(running);
          running.output.report(report, () => [
            `run ${report.run_id} ordered: retries run ${report.retries}, ${report.targets.join(', ')}`,
            '',
            `next: keyturn run watch ${report.run_id}`,
          ]);
        }),
      ),
    {
      changes:
        'orders a run of the same kind over the same rows, under the same limits, toward the key that is active now; what names that key already is passed over. The earlier run stays as it is.',
      examples: [['keyturn run retry 3 --reason "after mending"', '']],
      exits: {
        3: 'there is no such run',
        4: 'the run succeeded or is not finished, another covers the same, or a dry run found cells that would fail',
      },
    },
  );
}

function addLimit(run: Command, cli: Cli): void {
  const limit = run
    .command('limit')
    .description('Change how fast a run may go, in which hours, and before which others, while it is on.')
    .argument(...idArgument, parseRunId);
  teach(
    addLimitOptions(limit)
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((id: number, options: LimitOptions & SteeringOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const change = steeringOf(options);
          if (Object.values(change).every((value) => value === undefined)) {
            throw new KeyturnError(
              'USAGE',
              'expected what to limit: --rows-per-second, --workers, --hours, --zone, --priority or --emergency',
            );
          }
          const report = await limitRun(context, id, { ...change, reason: options.reason });
          const lifted = liftedWords(report.lifted_limits);
          if (lifted !== undefined) output.note(lifted);
          output.report(report, () => [
            `run ${id}: ${limitWords(report) ?? 'no limits'}`,
            '',
            `next: keyturn run show ${id}`,
          ]);
        }),
      ),
    {
      changes:
        'the limits of the run, from the next slice on; those not named stay. Outside its hours it waits, and goes on by itself. Rows per second are shared by its workers, whatever their number, and hold for its scan too.',
      examples: [
        ['keyturn run limit 3 --rows-per-second 500', 'slow it down now'],
        ['keyturn run limit 3 --hours 22:00-06:00 --zone Europe/Berlin', 'at night only'],
        ['keyturn run limit 3 --rows-per-second none --workers 2', 'as fast as two workers go'],
        ['keyturn run limit 3 --priority 5', 'before runs of a lower priority'],
        ['keyturn run limit 3 --emergency', 'before all others, and without the limits it had'],
      ],
      exits: {
        2: 'wrong usage or configuration, or a limit that makes no sense',
        3: 'there is no such run',
        4: 'the run is over, or is being cancelled',
      },
    },
  );
}

function stateWords(report: RunReport): string {
  return report.state.replaceAll('_', ' ');
}
