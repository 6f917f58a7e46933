// adopt: bring a column into Keyturn's format from a foreign one, or out of it again, while the application goes on.
import { Option, type Command } from 'commander';
import { beginMove, finalizeMove, prepareMove, type MoveRequest } from '../../control/adopt.js';
import { KeyturnError } from '../../errors.js';
import type { Cli } from '../cli.js';
import { endBegun } from '../finish-run.js';
import { teach } from '../help.js';
import { staffFor, type Waiting } from '../staff.js';
import { localOption } from './reencrypt.js';

interface AdoptOptions extends Waiting {
  readonly target: string;
  readonly column: string;
  readonly from?: string;
  readonly to?: string;
  readonly secret?: string;
  readonly prepare?: true;
  readonly dryRun?: true;
  readonly finalize?: true;
  readonly reason?: string;
  readonly json?: true;
}

const steps = ['prepare', 'dryRun', 'finalize'];

export function addAdoptCommand(program: Command, cli: Cli): void {
  teach(
    program
      .command('adopt')
      .description('Bring a registered column into Keyturn’s format from another one, or out of it again.')
      .requiredOption('--target <table>', 'the table, registered by keyturn init')
      .requiredOption('--column <name>', 'the column, or column.path of a jsonb path')
      .addOption(new Option('--from <format>', 'what the column holds now').conflicts('to'))
      .addOption(new Option('--to <format>', 'what the column is to hold instead of envelopes'))
      .option('--secret <uri>', 'where every process finds the format’s secret: env:NAME or file:PATH')
      .addOption(
        new Option('--prepare', 'let readers accept both forms, and move nothing yet').conflicts(steps.slice(1)),
      )
      .addOption(
        new Option('--dry-run', 'prepare, and count what would move and what would fail').conflicts('finalize'),
      )
      .addOption(
        new Option('--finalize', 'refuse the old form from now on, once a scan finds none of it').conflicts([
          'wait',
          'local',
        ]),
      )
      .option('--wait', 'wait for the end and report it; needs a live supervisor and worker')
      .addOption(localOption())
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: AdoptOptions) => (options.finalize === true ? finalize(cli, options) : adopt(cli, options))),
    {
      changes:
        'the registry, so that every member reads both forms and writes the new one; then the column, through workers, each row only if it still is as it was read. Until --finalize the way back is open: the same command with --to in place of --from. docs/adopting.md goes through it.',
      examples: [
        ['keyturn adopt --target customer --column email --from plaintext --prepare', 'before the application changes'],
        ['keyturn adopt --target customer --column email --from plaintext --local 2', 'moves every value'],
        [
          'keyturn adopt --target customer --column email --finalize',
          'nothing of the old form is left, and none is read',
        ],
        [
          'keyturn adopt --target customer --column ssn --from typeorm-encrypted-cbc --secret env:OLD_KEY --wait',
          'with a secret',
        ],
        ['keyturn adopt --target customer --column email --to plaintext --local 2', 'out again'],
      ],
      exits: {
        3: 'no such target or column',
        4: 'refused: a member is behind, the column is too short, or values of the old form are left',
        6: 'cells failed or stayed in the old form',
        7: 'nobody is there to do the work, or the database cannot be reached',
        8: 'the local workers have the wrong root key',
      },
    },
  );
}

function adopt(cli: Cli, options: AdoptOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'if there' }, async (running) => {
    const request = requestOf(options);
    const { target, column } = options;
    if (options.prepare === true) {
      const prepared = await prepareMove(running.context, request);
      const next = `let the application use the column, then ${commandOf(options)}`;
      running.output.report({ ...prepared, next }, () => [
        `every live member reads ${request.format} beside keyturn in ${prepared.target}.${column} and writes ${request.move === 'adopting' ? 'keyturn' : request.format}`,
        '',
        `next: ${next}`,
      ]);
      return;
    }
    const staff = staffFor(cli, running, options);
    const kind = options.dryRun === true ? 'dry_run' : 'reencrypt';
    const { prepared, ...begun } = await beginMove(running.context, { ...request, kind }, staff.supply);
    running.output.note(`then: keyturn adopt --target ${target} --column ${column} --finalize`);
    await endBegun({ running, staff, before: { value: { prepared }, lines: [] } }, begun);
  });
}

function finalize(cli: Cli, options: AdoptOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'if there' }, async ({ context, output }) => {
    const { target, column, reason } = options;
    const done = await finalizeMove(context, { target, column, reason });
    output.report(done, () => [
      done.state === 'adopted'
        ? `all ${done.cells} cells of ${done.target}.${column} are envelopes; ${done.foreign_format} is refused from now on`
        : `all ${done.cells} cells of ${done.target}.${column} are in ${done.foreign_format}; the column is not registered any more, so take it out of keyturn.yaml`,
    ]);
  });
}

function requestOf({ target, column, from, to, secret, reason }: AdoptOptions): MoveRequest {
  const format = from ?? to;
  if (format === undefined)
    throw new KeyturnError('USAGE', 'say where the column comes from with --from, or where it goes with --to');
  return { target, column, move: to === undefined ? 'adopting' : 'leaving', format, secretUri: secret, reason };
}

function commandOf({ target, column, from, to, secret }: AdoptOptions): string {
  const direction = to === undefined ? `--from ${from ?? ''}` : `--to ${to}`;
  return `keyturn adopt --target ${target} --column ${column} ${direction}${secret === undefined ? '' : ` --secret ${secret}`} --wait`;
}
