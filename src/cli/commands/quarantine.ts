// quarantine list, retry, resolve.
import { Option, type Command } from 'commander';
import {
  beginRetry,
  listQuarantine,
  resolveQuarantined,
  type QuarantineFilter,
  type QuarantineListing,
} from '../../control/quarantine.js';
import { parseCount, parseRunId } from '../arguments.js';
import type { Cli } from '../cli.js';
import { endBegun } from '../finish-run.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { remedyFor } from '../remedies.js';
import { staffFor, type Waiting } from '../staff.js';
import { countOf, formatCount, formatTime, tableLines } from '../table.js';
import { localOption } from './reencrypt.js';

interface Filtered extends Partial<QuarantineFilter> {
  readonly json?: true;
}

interface ListOptions extends Filtered {
  readonly limit: number;
}

interface RetryOptions extends Filtered, Waiting {
  readonly reason?: string;
}

interface ResolveOptions extends Filtered {
  readonly reason: string;
}

const shownRows = 50;

export function addQuarantineCommands(program: Command, cli: Cli): void {
  const quarantine = program
    .command('quarantine')
    .description('Cells that could not be moved: find their rows, try them again, declare them dealt with.');

  teach(
    filtered(quarantine.command('list'))
      .description('List the cells that failed and are not resolved, with the primary keys of their rows.')
      .option('--limit <n>', 'how many rows to show', parseCount('a number of rows', 100_000), shownRows)
      .option('--json', 'print one JSON object')
      .action((options: ListOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const listing = await listQuarantine(context, filterOf(options), options.limit);
          output.report(listing, () => listingLines(listing, output));
        }),
      ),
    {
      changes:
        'nothing. A cell that is listed was left as it was. Primary keys are shown here and in no log, metric or queue.',
      examples: [
        ['keyturn quarantine list', 'all that is unresolved'],
        ['keyturn quarantine list --run 3 --cause MALFORMED', 'of one run and cause'],
        ['keyturn quarantine list --target customer --limit 1000 --json', 'for a script that mends them'],
      ],
      exits: { 3: 'no such run or target' },
    },
  );

  teach(
    filtered(quarantine.command('retry'))
      .description('Order a run over exactly the cells that failed, all of them or some.')
      .option('--wait', 'wait for the end and report it; needs a live supervisor and worker')
      .addOption(localOption())
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: RetryOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async (running) => {
          const staff = staffFor(cli, running, options);
          const filter = { ...filterOf(options), reason: options.reason };
          await endBegun({ running, staff }, await beginRetry(running.context, filter, staff.supply));
        }),
      ),
    {
      changes:
        'the selected cells and nothing else, each only if it still is as it was read. A cell that is moved, that was mended meanwhile, or that is gone, is resolved. Needs no root key itself; with --local its workers do.',
      examples: [
        ['keyturn quarantine retry --wait', 'after the rows were mended'],
        ['keyturn quarantine retry --cause TIMEOUT --local 1', 'after the trigger was'],
      ],
      exits: {
        3: 'no unresolved cell fits, or no such run or target',
        4: 'a table cannot be handled, or the run was paused or cancelled',
        6: 'cells failed again',
        7: 'nobody is there to do the work, or the database cannot be reached',
      },
    },
  );

  teach(
    filtered(quarantine.command('resolve'))
      .description('Declare cells that failed dealt with, without changing them.')
      .requiredOption('--reason <text>', 'what was done about them, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: ResolveOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const resolved = await resolveQuarantined(context, { ...filterOf(options), reason: options.reason });
          output.report(resolved, () => [`${countOf(resolved.cells, 'cell')} resolved`, '', 'next: keyturn status']);
        }),
      ),
    {
      changes:
        'the quarantine only. A key that one of the cells still names does not retire all the same, and the next run that finds a cell failing lists it again. Takes one of --run, --target, --cause.',
      examples: [
        ['keyturn quarantine resolve --run 3 --reason "test rows, deleted"', ''],
        ['keyturn quarantine resolve --cause KEY_DESTROYED --reason "lost on purpose, ticket 12"', ''],
      ],
      exits: { 3: 'no unresolved cell fits, or no such run or target' },
    },
  );
}

function filtered(command: Command): Command {
  return command
    .addOption(new Option('--run <id>', 'only what this run found').argParser(parseRunId))
    .option('--target <table>', 'only of this table')
    .option('--cause <code>', 'only with this cause');
}

function filterOf({ run, target, cause }: Filtered): QuarantineFilter {
  return { run, target, cause };
}

function listingLines(listing: QuarantineListing, output: Pick<Output, 'paint'>): readonly string[] {
  if (listing.cells === 0) return ['no unresolved cell fits', '', 'next: keyturn status'];
  const groups = listing.failures.map((failure) => [
    `${failure.target}.${failure.field}`,
    failure.cause,
    keyWords(failure.key_id),
    formatCount(failure.cells),
  ]);
  const rows = listing.rows.map((row) => [
    `${row.target}.${row.field}`,
    Object.entries(row.primary_key)
      .map(([name, value]) => `${name}=${value}`)
      .join(' '),
    row.cause,
    String(row.run_id),
    formatTime(row.seen_at),
  ]);
  const causes = [...new Set(listing.failures.map((failure) => failure.cause))];
  const rest = listing.cells - listing.rows.length;
  return [
    output.paint('strong', `${countOf(listing.cells, 'cell')} in quarantine, left as they were`),
    ...tableLines(['column', 'cause', 'names', 'cells'], groups),
    ...causes.map((cause) => `  ${cause}: ${remedyFor(cause)}`),
    '',
    output.paint('strong', 'rows'),
    ...tableLines(['column', 'row', 'cause', 'run', 'seen'], rows),
    ...(rest > 0 ? [`  and ${formatCount(rest)} more; see them with --limit`] : []),
    '',
    'next: mend them, then keyturn quarantine retry --wait',
  ];
}

function keyWords(keyId: number | null): string {
  return keyId === null ? '-' : `key ${keyId}`;
}
