// backup create, inspect, verify, restore: everything about keys in one locked file, and back.
import { Option, type Command } from 'commander';
import {
  createBackup,
  generatePassphrase,
  inspectBackup,
  restoreBackup,
  type BackupLock,
  type BackupOpener,
  type BackupSummary,
  type CreatedBackup,
  type RestoreReport,
} from '../../control/backups.js';
import { refuseUnlessOpened, verifyBackup, type BackupVerification } from '../../control/verify-backup.js';
import {
  readIdentityFile,
  readPassphraseDescriptor,
  readPassphraseFile,
  typedPassphrase,
} from '../../control/secret-input.js';
import { KeyturnError } from '../../errors.js';
import { askSecret } from '../ask-secret.js';
import { parseDescriptor } from '../arguments.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import type { Surroundings } from '../surroundings.js';
import { countOf, formatCount, formatTime, tableLines } from '../table.js';

interface PassphraseOptions {
  readonly passphraseFile?: string;
  readonly passphraseFd?: number;
}

interface CreateOptions extends PassphraseOptions {
  readonly output: string;
  readonly recipient?: readonly string[];
  readonly askPassphrase?: true;
  readonly includeRoots?: true;
  readonly force?: true;
  readonly reason?: string;
  readonly json?: true;
}

interface OpenOptions extends PassphraseOptions {
  readonly identity?: string;
  readonly json?: true;
}

interface InputOptions extends OpenOptions {
  readonly input: string;
}

interface RestoreOptions extends InputOptions {
  readonly apply?: true;
  readonly rootsTo?: string;
  readonly reason?: string;
}

const damagedOrRefused = {
  4: 'another cluster, equal ids with other keys, or a passphrase that does not open it; nothing was written',
  6: 'the file is damaged or a key in it does not open; nothing was written',
} as const;

export function addBackupCommands(program: Command, cli: Cli): void {
  const backup = program.command('backup').description('Keys in one locked file: make it, look into it, restore it.');

  teach(
    lockedBy(backup.command('create').description('Write every data key, wrapped, into a file in the age format.'))
      .requiredOption('--output <file>', 'the file to write, mode 0600')
      .addOption(
        new Option('--recipient <key>', 'lock it to this age public key (age1…) in place of a passphrase; repeatable')
          .argParser((key: string, keys: readonly string[] | undefined) => [...(keys ?? []), key])
          .conflicts(['passphraseFile', 'passphraseFd', 'askPassphrase']),
      )
      .addOption(
        new Option('--ask-passphrase', 'ask for the passphrase on the terminal').conflicts([
          'passphraseFile',
          'passphraseFd',
        ]),
      )
      .option('--include-roots', 'put the root keys in as well: the file and its passphrase then open everything')
      .option('--force', 'replace a file that is there')
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: CreateOptions) => runCreate(cli, options)),
    {
      changes:
        'one file, and the record of backups that rotations and status look at. Without another choice a passphrase is made and printed once, on stderr. Opens every data key whose root key is at hand before it writes, and reads the file back.',
      examples: [
        ['keyturn backup create --output keys.age', 'keep file and passphrase apart from each other and the database'],
        ['keyturn backup create --output keys.age --recipient age1…', 'unattended; opened with the identity file'],
        ['keyturn backup create --output all.age --include-roots', 'for the safe'],
      ],
      exits: {
        4: 'the file is there already',
        6: 'a data key does not open',
        8: 'wrong root key; nothing was written',
      },
    },
  );

  teach(
    fromInput(backup.command('inspect').description('Open a backup, check it and show what is in it, without secrets.'))
      .option('--json', 'print one JSON object')
      .action((options: InputOptions) =>
        cli.runAlone({ isJson: options.json }, async (output) => {
          const summary = await inspectBackup(options.input, await openerFor(cli.surroundings, options.input, options));
          output.report(summary, () => summaryLines(summary, output));
        }),
      ),
    {
      changes: 'nothing. Connects to nothing.',
      examples: [['keyturn backup inspect --input keys.age', 'asks for the passphrase']],
      exits: damagedOrRefused,
    },
  );

  teach(
    fromInput(
      backup
        .command('verify')
        .description('Decrypt some values of every column with the keys of a backup and no others.'),
    )
      .option('--json', 'print one JSON object')
      .action((options: InputOptions) => runVerify(cli, options)),
    {
      changes:
        'nothing. Counts the values of every registered column by the key that they name, in one pass over the table, and decrypts up to 20 under each. A backup that carries root keys is opened with those alone, any other with the root key at hand.',
      examples: [['keyturn backup verify --input keys.age', 'would it bring back what is stored now?']],
      exits: {
        4: 'another cluster, or a passphrase that does not open it',
        5: 'this database login may not read the tables',
        6: 'values name a key that is not in it, did not open, or the file is damaged',
        7: 'the database cannot be reached, or there is no root key to try',
        8: 'wrong root key',
      },
    },
  );

  teach(
    fromInput(backup.command('restore').description('Say what restoring a backup would change; with --apply, do it.'))
      .addOption(new Option('--dry-run', 'change nothing; as without --apply').conflicts('apply'))
      .option('--apply', 'merge it into this database')
      .addOption(
        new Option(
          '--roots-to <folder>',
          'with --apply: write the root keys that are in it to root-N.key there; a file that holds the same key stays',
        ).conflicts('dryRun'),
      )
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: RestoreOptions) => runRestore(cli, options)),
    {
      changes:
        'with --apply the key tables, in one transaction: what is missing comes in, what is newer in the backup comes forward, nothing newer here is taken back, and no count of encryptions is too low: an aes-256-gcm key whose encryptions after the backup nobody counted encrypts no more. A database without the control schema gets it, so that an application restored with pg_dump needs nothing else. Opens every data key whose root key is at hand before it writes.',
      examples: [
        ['keyturn backup restore --input keys.age', 'what would it do?'],
        ['keyturn backup restore --input keys.age --apply --reason "new machine"', 'then: keyturn init'],
      ],
      exits: { ...damagedOrRefused, 8: 'wrong root key; nothing was written' },
    },
  );
}

function lockedBy(command: Command): Command {
  return command
    .addOption(
      new Option('--passphrase-file <file>', 'its first line is the passphrase; nobody else may read it').conflicts(
        'passphraseFd',
      ),
    )
    .option('--passphrase-fd <n>', 'read the passphrase from this open descriptor (0: stdin)', parseDescriptor);
}

function openedBy(command: Command): Command {
  return lockedBy(command).addOption(
    new Option('--identity <file>', 'age identity file of a recipient, where it was locked to one').conflicts([
      'passphraseFile',
      'passphraseFd',
    ]),
  );
}

function fromInput(command: Command): Command {
  return openedBy(command.requiredOption('--input <file>', 'the backup'));
}

function passphraseFrom(options: PassphraseOptions): ReturnType<typeof typedPassphrase> | undefined {
  if (options.passphraseFile !== undefined) return readPassphraseFile(options.passphraseFile);
  return options.passphraseFd === undefined ? undefined : readPassphraseDescriptor(options.passphraseFd);
}

async function openerFor(surroundings: Surroundings, input: string, options: OpenOptions): Promise<BackupOpener> {
  if (options.identity !== undefined) return { kind: 'identities', file: readIdentityFile(options.identity) };
  const given = passphraseFrom(options);
  return {
    kind: 'passphrase',
    passphrase: given ?? typedPassphrase(await askSecret(surroundings, `passphrase of ${input}`)),
  };
}

async function askTwice(surroundings: Surroundings, file: string): Promise<ReturnType<typeof typedPassphrase>> {
  const first = await askSecret(surroundings, `passphrase for ${file}`);
  if (first !== (await askSecret(surroundings, 'once more')))
    throw new KeyturnError('USAGE', 'the two passphrases differ; nothing was written');
  return typedPassphrase(first);
}

/** A generated passphrase is shown before anything is written: a file that nobody can open is no backup. */
async function lockFor(cli: Cli, options: CreateOptions, output: Output): Promise<BackupLock> {
  if (options.recipient !== undefined) return { kind: 'recipients', recipients: options.recipient };
  const given =
    options.askPassphrase === true ? await askTwice(cli.surroundings, options.output) : passphraseFrom(options);
  if (given !== undefined) return { kind: 'passphrase', passphrase: given };
  const made = generatePassphrase();
  output.note(`passphrase of ${options.output}, shown this once: ${made}`);
  return { kind: 'passphrase', passphrase: typedPassphrase(made) };
}

function runCreate(cli: Cli, options: CreateOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
    if (options.includeRoots === true)
      output.note(
        'WARNING: this backup will hold the root keys in clear behind its lock: whoever opens it reads every value of every copy of the database. Keep it off-line, and its passphrase elsewhere.',
      );
    const created = await createBackup(context, {
      output: options.output,
      lock: await lockFor(cli, options, output),
      includeRoots: options.includeRoots === true,
      force: options.force === true,
      reason: options.reason,
    });
    output.report(created, () => createdLines(created, output));
  });
}

function createdLines(created: CreatedBackup, output: Output): readonly string[] {
  return [
    `${output.paint('good', 'written')} ${created.file}: ${formatCount(created.bytes)} bytes, locked ${created.locked_by === 'passphrase' ? 'with a passphrase' : 'to recipients'}, sha256 ${created.file_hash}`,
    ...summaryLines(created, output),
    ...unopenedLines(created.unopened_keys, output),
    '',
    `next: keyturn backup inspect --input ${created.file}, on another machine`,
  ];
}

function unopenedLines(ids: readonly number[], output: Output): readonly string[] {
  return ids.length === 0
    ? []
    : [output.paint('watch', `not tried, no root key at hand: ${countOf(ids.length, 'data key')} (${ids.join(', ')})`)];
}

function summaryLines(summary: BackupSummary, output: Output): readonly string[] {
  const roots = summary.root_keys.map(
    ({ id, fingerprint, in_file }) => `${id} (${fingerprint}${in_file ? ', its bytes are in the file' : ''})`,
  );
  return [
    `  cluster     ${summary.cluster}, as of ${formatTime(summary.taken_at)}`,
    `  root keys   ${roots.join(', ') || 'none'}`,
    `  targets     ${summary.targets.join(', ') || 'none'}`,
    `  audit keys  ${summary.audit_keys.join(', ') || 'none'}`,
    `  record      ${summary.audit_checkpoint}`,
    ...summary.keyrings.flatMap(({ keyring, generation, keys }) => [
      '',
      `${output.paint('strong', keyring)}, generation ${generation}`,
      ...tableLines(
        ['key', 'id', 'state', 'fingerprint', 'under root key'],
        keys.map((key) => [
          `v${key.version}`,
          String(key.id),
          `${key.state}${key.compromised ? ' (compromised)' : ''}`,
          key.fingerprint,
          key.root_keys.join(', '),
        ]),
      ),
    ]),
  ];
}

function runVerify(cli: Cli, options: InputOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'if there' }, async ({ context, output }) => {
    const opener = await openerFor(cli.surroundings, options.input, options);
    const report = await verifyBackup(context, { input: options.input, opener });
    output.report(report, () => verificationLines(report, output));
    refuseUnlessOpened(report);
  });
}

function verificationLines(report: BackupVerification, output: Output): readonly string[] {
  return [
    `cluster ${report.cluster}, as of ${formatTime(report.taken_at)}; opened with ${report.has_root_keys ? 'the root keys in the file' : 'a root key at hand'}`,
    ...tableLines(
      ['key', 'state', 'values', 'tried', 'opened'],
      report.keys.map((key) => [
        key.key,
        key.state,
        formatCount(key.cells),
        formatCount(key.values_tried),
        key.is_opened ? formatCount(key.values_opened) : 'no root key at hand',
      ]),
    ),
    ...report.missing_keys.map(({ key_id: id, cells }) =>
      output.paint('bad', `key ${id} is not in the backup; values that name it: ${formatCount(cells)}`),
    ),
    ...report.missing_columns.map((title) =>
      output.paint('bad', `column ${title} is not in the backup, and its values are bound to its id`),
    ),
    ...report.failures.map(({ target, field, key_id: id, cause, values }) =>
      output.paint('bad', `${target}.${field}: ${countOf(values, 'value')} under key ${id} did not open (${cause})`),
    ),
    ...(report.cells_without_key === 0
      ? []
      : [
          `${countOf(report.cells_without_key, 'value')} in another format, or no envelope: no key of a backup opens them`,
        ]),
  ];
}

function runRestore(cli: Cli, options: RestoreOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'if there', anySchema: true }, async ({ context, output }) => {
    const report = await restoreBackup(context, {
      input: options.input,
      opener: await openerFor(cli.surroundings, options.input, options),
      apply: options.apply === true,
      rootsTo: options.rootsTo,
      reason: options.reason,
    });
    output.report(report, () => restoreLines(report, options.input, output));
  });
}

function restoreLines(report: RestoreReport, input: string, output: Output): readonly string[] {
  const lines = [
    ...(report.creates_cluster ? [`cluster ${report.backup.cluster}`] : []),
    ...named('root key', report.root_keys_added),
    ...named('keyring', report.keyrings_added),
    ...named('data key', report.keys_added),
    ...named('target', report.targets_added),
  ];
  const forward = report.keys_brought_forward.map((id) => `data key ${id}: what the backup says is newer`);
  const spent = report.keys_counted_as_spent;
  const verb = report.applied ? 'restored' : 'would be restored';
  return [
    lines.length + forward.length === 0
      ? output.paint('good', 'everything in the backup is here already')
      : output.paint('strong', `${verb}, from ${formatTime(report.backup.taken_at)}`),
    ...[...lines, ...forward].map((line) => `  ${line}`),
    ...report.targets_waiting.map((target) => `  table ${target} is not there yet; run keyturn init once it is`),
    ...report.root_files.map((file) => `  root key written to ${file}`),
    ...unopenedLines(report.unopened_keys, output),
    ...(spent.length === 0
      ? []
      : [
          output.paint(
            'watch',
            `${countOf(spent.length, 'data key')} (${spent.join(', ')}) ${report.applied ? `count${spent.length === 1 ? 's' : ''}` : 'would count'} as spent: nobody counted the encryptions after the backup; no value is written until: keyturn key rotate`,
          ),
        ]),
    '',
    report.applied
      ? `next: keyturn init, ${spent.length === 0 ? '' : 'keyturn key rotate, '}then keyturn verify --deep`
      : `next: keyturn backup restore --input ${input} --apply`,
  ];
}

function named(noun: string, names: readonly (number | string)[]): readonly string[] {
  return names.length === 0 ? [] : [`${countOf(names.length, noun)}: ${names.join(', ')}`];
}
