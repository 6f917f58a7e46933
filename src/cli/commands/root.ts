// root status, prepare, finalize, rollback, rotate.
import { Option, type Command } from 'commander';
import { rootStatus, type RootListing, type RootStatus } from '../../control/root-status.js';
import { finalizeRoot, prepareRoot, rollbackRoot, rotateRoot, type RootChangeReport } from '../../control/roots.js';
import { beyondRotation } from '../../control/compromise.js';
import { placeNewRootKey } from '../../control/new-root-key.js';
import { argumentKey, readKeyDescriptor, readKeyFile } from '../../control/secret-input.js';
import { replaceExposedKeys } from '../../control/replace-exposed.js';
import { unbackedWords } from '../backup-words.js';
import type { Cli, Running } from '../cli.js';
import { emergencyLines, endEmergency, leftWords, type EmergencyEnd } from '../end-emergency.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { staffFor, type Staff, type Waiting } from '../staff.js';
import { parseDescriptor } from '../arguments.js';
import { countOf, formatCount, formatTime, tableLines } from '../table.js';
import { containedLines } from './compromise.js';
import { localOption } from './reencrypt.js';

interface RootOptions extends Waiting {
  readonly to: string;
  readonly keyring?: string;
  readonly without?: readonly string[];
  readonly reason?: string;
  readonly reencrypt?: true;
  readonly newKey?: string;
  readonly newKeyFile?: string;
  readonly newKeyFd?: number;
  readonly json?: true;
}

const refusals = {
  4: 'a live member could not start afterwards (the message names it), or another change is prepared',
  6: 'a data key does not open, or the key tables are mixed; nothing was written',
  7: 'the database is away, or a root key is not where its URI says',
  8: 'the wrong root key; nothing was written',
} as const;

const reencryptChanges =
  'With --reencrypt whatever the former root key ever wrapped is replaced, for others may hold it: a new audit key, new data keys that only the new root key wraps, an emergency run over everything that names older ones, which are marked compromised and retire when nothing names them. Repeating it goes on where it stopped.';

const runRefusals = {
  6: 'a data key does not open, or the key tables are mixed, and nothing was written; or cells failed or stayed stale',
  7: 'the database is away, or a root key is not where its URI says; or nobody is there to move the values',
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
    replacing(ending(root.command('finalize').description('Remove the wraps under the former root key.'))).action(
      (options: RootOptions) => change(cli, options, finalizeRoot),
    ),
    {
      changes: `removes every wrap under the former root key, once every live member reports that it can open the new one and every data key was opened with it. The former root key opens nothing of this database any more; backups of it still need it. ${reencryptChanges}`,
      examples: [
        ['keyturn root finalize', 'when root status shows no member behind'],
        ['keyturn root finalize --without billing --reason "switched off on Friday"', 'leaves a member behind'],
        ['keyturn root finalize --reencrypt --wait --reason "laptop stolen"', 'others may hold the former root key'],
      ],
      exits: { ...refusals, ...runRefusals },
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
    replacing(
      ending(
        aimed(
          root
            .command('rotate')
            .description('Prepare and finalize in one transaction, where nobody would be locked out.'),
          false,
        ),
      ),
    )
      .addOption(
        new Option(
          '--new-key <hex>',
          'the new root key itself, written to the file of --to; an argument is public, so better:',
        ).conflicts(['newKeyFile', 'newKeyFd']),
      )
      .addOption(
        new Option('--new-key-file <file>', 'read it from the first line of a private file').conflicts('newKeyFd'),
      )
      .option('--new-key-fd <n>', 'read it from this open descriptor (0: stdin)', parseDescriptor)
      .action((options: RootOptions) => change(cli, options, rotateRoot)),
    {
      changes: `what root prepare and root finalize change, at once. Refused while a live member could not start with the new root key: prepare gives members the time. Repeating it after success changes nothing and exits 0. ${reencryptChanges}`,
      examples: [
        ['keyturn root rotate --to env:NEW_ROOT', 'with no application and no worker running'],
        ['keyturn root rotate --to env:NEW_ROOT --reencrypt --local 2', 'the same after a leak, to its end'],
        ['keyturn root rotate --new-key-fd 0 --to file:/etc/keyturn/root-2027.key', 'writes the key it reads there'],
      ],
      exits: { ...refusals, ...runRefusals },
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

/** Options of the verbs after which the former root key opens nothing here. */
function replacing(command: Command): Command {
  return command
    .option('--reencrypt', 'others may hold the former root key: replace all that it ever wrapped, and move every row')
    .option('--wait', 'with --reencrypt: wait for the emergency run, then retire; needs a live supervisor and worker')
    .addOption(localOption())
    .hook('preAction', (command_) => {
      const options: RootOptions = command_.opts();
      if (options.reencrypt !== true && (options.wait === true || options.local !== undefined))
        command_.error('error: --wait and --local wait for a run, so they need --reencrypt', {
          code: 'commander.conflictingOption',
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
  return cli.run({ isJson: options.json, file: 'if there' }, async (running) => {
    const { context, output } = running;
    const isLeak = options.reencrypt === true;
    const staff = staffFor(cli, running, options);
    if (isLeak) await staff.supply.require();
    if (options.newKey !== undefined) output.note(publicArgument);
    const newKey = newKeyFrom(options);
    if (newKey !== undefined) await placeNewRootKey(context, options.to, newKey);
    const report = await verb(context, {
      to: options.to,
      keyring: options.keyring,
      without: options.without ?? [],
      reason: options.reason,
      isLeak,
    });
    if (report.note !== null) output.note(report.note);
    const lines = [...reportLines(report), ...unbackedWords(report.unbackedKeys)];
    if (!isLeak) return output.report(report, () => [...lines, '', `next: ${report.next}`]);
    output.note(lines.join('\n'));
    return replaceKeys(running, staff, { report, reason: options.reason });
  });
}

const publicArgument =
  'WARNING: an argument is public: processes of this machine show it to every user, and shells keep it in their history. Give a root key with --new-key-file or --new-key-fd.';

function newKeyFrom({ newKey, newKeyFile, newKeyFd }: RootOptions): ReturnType<typeof argumentKey> | undefined {
  if (newKey !== undefined) return argumentKey(newKey);
  if (newKeyFile !== undefined) return readKeyFile(newKeyFile);
  return newKeyFd === undefined ? undefined : readKeyDescriptor(newKeyFd);
}

/** The cascade of a leaked root key, once another one is in its place. */
async function replaceKeys(
  running: Running,
  staff: Staff,
  { report, reason = `root key ${report.root.id} replaced one that others may hold` }: Cascade,
): Promise<void> {
  const { context, output } = running;
  const replaced = await replaceExposedKeys(context, { keyrings: report.keyrings, reason });
  for (const { active, keyring } of replaced.keyrings)
    output.note(`keyring ${keyring}: ${active.title} encrypts, which no root key that others may hold ever wrapped`);
  const ends: EmergencyEnd[] = [];
  for (const contained of replaced.keyrings) ends.push(await endEmergency(running, staff, { ...contained, reason }));
  const left = ends.map(leftWords).filter((words) => words !== undefined);
  const next = [...left, ...(report.outcome === 'unchanged' ? [] : [report.next])].join('; ');
  const keyrings = replaced.keyrings.map((contained, at) => ({
    ...contained,
    run: ends[at]?.run ?? null,
    retired: ends[at]?.retired ?? [],
  }));
  output.report(
    {
      ...report,
      auditKey: replaced.auditKey,
      replaced: keyrings,
      beyondRotation,
      next: next === '' ? 'keyturn status' : next,
    },
    () => [
      ...(replaced.auditKey === null ? [] : [`audit key ${replaced.auditKey} makes seals from here on`]),
      ...(replaced.keyrings.length === 0 ? ['no data key was ever wrapped under a root key that others may hold'] : []),
      ...replaced.keyrings.flatMap((contained, at) => [
        `${contained.active.title} is active; compromised: ${contained.keys.map(({ title }) => title).join(', ')}`,
        ...containedLines(contained),
        ...(ends[at] === undefined ? [] : emergencyLines(ends[at])),
      ]),
      '',
      `what rotation cannot undo: ${beyondRotation}`,
      '',
      `next: ${next === '' ? 'keyturn status' : next}`,
    ],
  );
}

interface Cascade {
  readonly report: RootChangeReport;
  readonly reason: string | undefined;
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
    root.suspect ? `${root.state}, suspect` : root.state,
    formatCount(root.dataKeys),
    root.keyrings.join(', '),
    formatTime(root.createdAt),
    root.uri,
  ];
}
