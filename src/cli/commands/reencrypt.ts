// reencrypt and verify: order a run over the rows, and wait for it.
import { Option, type Command } from 'commander';
import { beginReencrypt } from '../../control/rotate-and-reencrypt.js';
import { writeVerificationSql } from '../../control/verification-sql.js';
import { parseCount } from '../arguments.js';
import type { Cli } from '../cli.js';
import { endBegun } from '../finish-run.js';
import { teach } from '../help.js';
import { addLimitOptions, steeringOf, type LimitOptions } from '../limit-options.js';
import { staffFor, type Waiting } from '../staff.js';

interface ReencryptOptions extends Waiting, LimitOptions {
  readonly keyring?: string;
  readonly target?: string;
  readonly scope?: string;
  readonly dryRun?: true;
  readonly acceptFailures?: true;
  readonly reason?: string;
  readonly json?: true;
}

interface VerifyOptions extends Waiting {
  readonly keyring?: string;
  readonly target?: string;
  readonly scope?: string;
  readonly deep?: true;
  readonly sql?: true;
  readonly reason?: string;
  readonly json?: true;
}

export const localOption = (): Option =>
  new Option(
    '--local <n>',
    'start a supervisor, unless one is live, and n workers for the duration of this command, and wait',
  ).argParser(parseCount('a number of workers', 64));

export function addRunningCommands(program: Command, cli: Cli): void {
  const reencrypt = program.command('reencrypt').description('Move every stored value of a keyring to its active key.');
  teach(
    addLimitOptions(reencrypt)
      .option('--keyring <name>', 'which keyring; may be left out where there is only one')
      .option('--target <table>', 'only this table')
      .option('--scope <value>', 'only this tenant, as the scope column prints it')
      .option(
        '--dry-run',
        'read, decrypt and encrypt, but write no row: counts what would move and finds what would fail',
      )
      .option('--wait', 'wait for the end and report it; needs a live supervisor and worker')
      .addOption(localOption())
      .option(
        '--accept-failures',
        'exit 0 although cells failed, and begin although the last dry run found some; they are reported all the same',
      )
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: ReencryptOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async (running) => {
          const staff = staffFor(cli, running, options);
          const kind = options.dryRun === true ? 'dry_run' : 'reencrypt';
          const { keyring, target, scope, reason } = options;
          const steering = steeringOf(options);
          const begun = await beginReencrypt(
            running.context,
            {
              kind,
              keyring,
              target,
              scope,
              deep: false,
              steering,
              reason,
              acceptFailures: options.acceptFailures === true,
            },
            staff.supply,
          );
          await endBegun({ running, staff, acceptFailures: options.acceptFailures === true }, begun);
        }),
      ),
    {
      changes:
        'the encrypted columns of registered tables, through workers, while the application goes on; each row only if it still is as it was read. No other column is touched. An unfinished run that does the same is joined, not doubled, and takes over the limits that are given; one that pauses refuses, one that is being cancelled is left to end. Needs no root key itself; with --local its workers do.',
      examples: [
        ['keyturn reencrypt --local 2', 'all of it, with two workers of its own'],
        ['keyturn reencrypt --dry-run --local 1', 'what would happen'],
        ['keyturn reencrypt --scope tenant-7 --wait', 'one tenant, by workers that run already'],
        ['keyturn reencrypt', 'order it and return at once; see: keyturn run watch'],
        ['keyturn reencrypt --emergency --wait', 'a key has leaked: before all other runs'],
        ['keyturn reencrypt --hours 22:00-06:00 --zone Europe/Berlin', 'at night only; goes on by itself'],
      ],
      exits: {
        2: 'wrong usage or configuration, or a limit that makes no sense',
        3: 'no such keyring or target',
        4: 'a table cannot be handled, the last dry run found cells that would fail, or the run was paused or cancelled',
        6: 'cells failed or stayed stale',
        7: 'nobody is there to do the work, or the database cannot be reached',
        8: 'the local workers have the wrong root key',
      },
    },
  );

  teach(
    program
      .command('verify')
      .description('Count the values that do not name the active key; --deep decrypts every one.')
      .option('--keyring <name>', 'which keyring; may be left out where there is only one')
      .option('--target <table>', 'only this table')
      .addOption(new Option('--scope <value>', 'only this tenant, as the scope column prints it').conflicts('sql'))
      .addOption(new Option('--deep', 'decrypt every value once instead of reading headers').conflicts('sql'))
      .option('--no-wait', 'print the number of the run and return at once')
      .addOption(localOption().conflicts('sql'))
      .addOption(new Option('--sql', 'print the statements to run yourself, one per column; runs nothing'))
      .addOption(new Option('--reason <text>', 'why, for the audit record').conflicts('sql'))
      .option('--json', 'print one JSON object')
      .action((options: VerifyOptions) =>
        options.sql === true ? printVerification(cli, options) : runVerify(cli, options),
      ),
    {
      changes:
        'nothing in application tables; rows are read in read-only transactions. The counts are kept as a run of its own.',
      examples: [
        ['keyturn verify', 'by headers, fast'],
        ['keyturn verify --deep --local 2', 'decrypts everything, with two workers of its own'],
        ['keyturn verify --sql | psql "$DATABASE_URL"', 'trust nobody'],
      ],
      exits: {
        3: 'no such keyring or target',
        4: 'the run was paused or cancelled',
        6: 'stale values were found, or some do not decrypt, or the active key changed meanwhile',
        7: 'nobody is there to do the work, or the database cannot be reached',
      },
    },
  );
}

function runVerify(cli: Cli, options: VerifyOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'none' }, async (running) => {
    const staff = staffFor(cli, running, options);
    const { keyring, target, scope, reason } = options;
    const begun = await beginReencrypt(
      running.context,
      { kind: 'verify', keyring, target, scope, deep: options.deep === true, reason },
      staff.supply,
    );
    await endBegun({ running, staff }, begun);
  });
}

function printVerification(cli: Cli, options: VerifyOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
    const statements = await writeVerificationSql(context, { keyring: options.keyring, target: options.target });
    output.report({ statements }, () =>
      statements.flatMap(({ target, column, key, sql }) => [
        `-- ${target}.${column}: cells, and those that do not name ${key}`,
        `${sql};`,
      ]),
    );
  });
}
