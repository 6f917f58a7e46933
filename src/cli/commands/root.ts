// root status, prepare, finalize, rollback, rotate.
import type { Command } from 'commander';
import { rootStatus, type RootListing, type RootStatus } from '../../control/root-status.js';
import { finalizeRoot, prepareRoot, rollbackRoot, rotateRoot, type RootChangeReport } from '../../control/roots.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { countOf, formatCount, formatTime, tableLines } from '../table.js';

interface RootOptions {
  readonly to: string;
  readonly keyring?: string;
  readonly without?: readonly string[];
  readonly reason?: string;
  readonly json?: true;
}

const refusals = {
  4: 'a live member could not start afterwards (the message names it), or another change is prepared',
  6: 'a data key does not open, or the key tables are mixed; nothing was written',
  7: 'the database is away, or a root key is not where its URI says',
  8: 'the wrong root key; nothing was written',
} as const;

export function addRootCommands(program: Command, cli: Cli): void {
  const root = program
    .command('root')
    .description('Root keys: change the key that wraps the data keys, without touching a row.');

  teach(
    root
      .command('status')
      .description('Show root keys, a change that is prepared, and members that could not start with either.')
      .option('--json', 'print one JSON object')
      .action((options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'if there' }, async ({ context, output }) => {
          const status = await rootStatus(context);
          output.report(status, () => statusLines(status, output));
        }),
      ),
    {
      changes: 'nothing. Needs no root key; shows fingerprints, never keys.',
      examples: [['keyturn root status', 'also names the next safe command']],
    },
  );

  teach(
    aimed(root.command('prepare').description('Wrap every data key under a second root key as well.')).action(
      (options: RootOptions) => change(cli, options, prepareRoot),
    ),
    {
      changes:
        'adds a wrap under the new root key to every data key, retired ones too, and its verification token, in one transaction. Afterwards processes start with either root key. No row is touched. Repeating it adds what is missing.',
      examples: [
        ['keyturn root prepare --to file:/etc/keyturn/root-2027.key', 'then restart processes with it, one at a time'],
        ['keyturn root prepare --to env:NEW_ROOT --reason "yearly change"', ''],
      ],
      exits: refusals,
    },
  );

  teach(
    ending(root.command('finalize').description('Remove the wraps under the former root key.')).action(
      (options: RootOptions) => change(cli, options, finalizeRoot),
    ),
    {
      changes:
        'removes every wrap under the former root key, once every live member reports that it can open the new one and every data key was opened with it. The former root key opens nothing of this database any more; backups of it still need it.',
      examples: [
        ['keyturn root finalize', 'when root status shows no member behind'],
        ['keyturn root finalize --without billing --reason "switched off on Friday"', 'leaves a member behind'],
      ],
      exits: refusals,
    },
  );

  teach(
    ending(
      root.command('rollback').description('Give up a prepared change: remove the wraps under the new root key.'),
    ).action((options: RootOptions) => change(cli, options, rollbackRoot)),
    {
      changes:
        'removes every wrap under the new root key; everything is as it was before root prepare. After root finalize, go back with root prepare --to the former root key.',
      examples: [['keyturn root rollback --reason "HSM delayed"', 'before root finalize']],
      exits: refusals,
    },
  );

  teach(
    ending(
      aimed(
        root
          .command('rotate')
          .description('Prepare and finalize in one transaction, where nobody would be locked out.'),
        false,
      ),
    ).action((options: RootOptions) => change(cli, options, rotateRoot)),
    {
      changes:
        'what root prepare and root finalize change, at once. Refused while a live member could not start with the new root key: prepare gives members the time. Repeating it after success changes nothing and exits 0.',
      examples: [['keyturn root rotate --to env:NEW_ROOT', 'with no application and no worker running']],
      exits: refusals,
    },
  );
}

/** Options of the verbs that name a new root key. */
function aimed(command: Command, withReason = true): Command {
  command
    .requiredOption(
      '--to <uri>',
      'where the new root key is (env:NAME, file:PATH, vault:…, aws-kms:…, pkcs11:…); never the key itself',
    )
    .option('--keyring <name>', 'where keyrings have different root keys: change that of this one');
  return withReason ? reported(command) : command;
}

/** Options of the verbs that could lock a member out. */
function ending(command: Command): Command {
  return reported(
    command.option(
      '--without <member>',
      'do not wait for this member; it reads on with the keys it holds, and cannot start again',
      (name: string, earlier: readonly string[]) => [...earlier, name],
      [] as readonly string[],
    ),
  ).hook('preAction', (command_) => {
    const options: RootOptions = command_.opts();
    if ((options.without ?? []).length > 0 && options.reason === undefined)
      command_.error('error: --without leaves a member behind, so it needs --reason', {
        code: 'commander.missingMandatoryOptionValue',
      });
  });
}

function reported(command: Command): Command {
  return command.option('--reason <text>', 'why, for the audit record').option('--json', 'print one JSON object');
}

function change(
  cli: Cli,
  options: RootOptions,
  verb: (
    context: Parameters<typeof rotateRoot>[0],
    wanted: Parameters<typeof rotateRoot>[1],
  ) => Promise<RootChangeReport>,
): Promise<void> {
  return cli.run({ isJson: options.json, file: 'if there' }, async ({ context, output }) => {
    const report = await verb(context, {
      to: options.to,
      keyring: options.keyring,
      without: options.without ?? [],
      reason: options.reason,
    });
    if (report.note !== null) output.note(report.note);
    output.report(report, () => [...reportLines(report), '', `next: ${report.next}`]);
  });
}

function reportLines({ outcome, root, dataKeys, keyrings }: RootChangeReport): readonly string[] {
  const where = `of ${countOf(keyrings.length, 'keyring')}`;
  const title = `root key ${root.id} (${root.fingerprint}, ${root.uri})`;
  switch (outcome) {
    case 'prepared':
      return [`${countOf(dataKeys, 'data key')} ${where}: wrapped under ${title} as well; both root keys open them`];
    case 'finalized':
      return [`${countOf(dataKeys, 'data key')} ${where}: wrapped under ${title} alone`];
    case 'rolled_back':
      return [`${countOf(dataKeys, 'data key')} ${where}: wrapped under ${title} alone, as before`];
    case 'unchanged':
      return [`${countOf(dataKeys, 'data key')} ${where}: wrapped under ${title}; nothing was written`];
  }
}

function statusLines({ roots, change: pair, next }: RootStatus, output: Output): readonly string[] {
  const laggardLines =
    pair === null
      ? []
      : [
          '',
          `${output.paint('strong', `root key ${pair.from.id} is being changed to ${pair.to.id}`)}; processes start with either`,
          ...pair.laggards.map(({ member, why }) => `  finalize would wait: ${member} ${why}`),
          ...pair.laggardsOfRollback.map(({ member, why }) => `  rollback would wait: ${member} ${why}`),
        ];
  return [
    ...tableLines(['root', 'fingerprint', 'state', 'data keys', 'keyrings', 'since', 'where'], roots.map(rootLine)),
    ...laggardLines,
    '',
    `next: ${next}`,
  ];
}

function rootLine(root: RootListing): readonly string[] {
  return [
    String(root.id),
    root.fingerprint,
    root.state,
    formatCount(root.dataKeys),
    root.keyrings.join(', '),
    formatTime(root.createdAt),
    root.uri,
  ];
}
