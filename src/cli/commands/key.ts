// key list, rotate, stage, activate, retire, restore; compromise, destroy and lazy stand in files of their own.
import { Option, type Command } from 'commander';
import {
  activate,
  listKeys,
  restore,
  retire,
  rotateKey,
  stageKey,
  type Activated,
  type KeyringListing,
  type Rotated,
} from '../../control/keys.js';
import { rotateAndReencrypt } from '../../control/rotate-and-reencrypt.js';
import { unbackedWords } from '../backup-words.js';
import type { Cli } from '../cli.js';
import { parseDuration } from '../duration.js';
import { endBegun } from '../finish-run.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { staffFor, type Waiting } from '../staff.js';
import { countOf, formatCount, formatTime, tableLines } from '../table.js';
import { addDestroyCommand } from './destroy-key.js';
import { localOption } from './reencrypt.js';
import { addLazyCommand } from './lazy.js';

interface KeyOptions {
  readonly keyring?: string;
  readonly reason?: string;
  readonly json?: true;
}

interface ActivateOptions extends KeyOptions {
  readonly without?: readonly string[];
}

interface RotateOptions extends ActivateOptions, Waiting {
  readonly ifOlderThan?: number;
  readonly reencrypt?: true;
  readonly acceptFailures?: true;
}

const wrongRoot = { 8: 'wrong root key; nothing was written' } as const;

/** Answers the command that the verbs stand under. */
export function addKeyCommands(program: Command, cli: Cli): Command {
  const key = program.command('key').description('Data keys: list, rotate, and the single steps of a rotation.');

  teach(
    key
      .command('list')
      .description('List the data keys of every keyring, with their states.')
      .option('--keyring <name>', 'only this keyring')
      .option('--json', 'print one JSON object')
      .action((options: KeyOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const keyrings = await listKeys(context, options.keyring);
          output.report({ keyrings }, () => keyrings.flatMap((keyring) => keyringLines(keyring, output)));
        }),
      ),
    {
      changes: 'nothing. Shows fingerprints, never keys.',
      examples: [['keyturn key list', 'a key is named by its id (17) or its version (v3)']],
      exits: { 3: 'no such keyring' },
    },
  );

  const rotate = teach(
    changing(
      key
        .command('rotate')
        .description('Activate the standby and make the next one; with --reencrypt, move every row to it as well.'),
    )
      .option('--if-older-than <age>', 'leave an active key alone that is younger (80d, 12h, 30m)', parseDuration)
      .addOption(withoutOption())
      .option('--reencrypt', 'order a run that moves every row to the active key')
      .option('--wait', 'with --reencrypt: wait for its end and report it; needs a live supervisor and worker')
      .addOption(localOption())
      .option(
        '--accept-failures',
        'with --reencrypt: exit 0 although cells failed, and begin although the last dry run found some; they are reported all the same',
      )
      .action((options: RotateOptions) => rotateCommand(cli, options)),
    {
      changes:
        'makes the standby the active key once every live member can decrypt with it (where there is none, makes one first), and leaves a new standby. No row is touched without --reencrypt. Repeating it after any failure goes on where it stopped: a rotation that was cut short is finished, an unfinished run is joined; with --if-older-than it never makes a second rotation, and of several at once one makes it and the others go on with the same run.',
      examples: [
        ['keyturn key rotate --if-older-than 80d --reencrypt --wait', 'unattended, from cron, every day'],
        ['keyturn key rotate --reencrypt --local 2', 'with a supervisor and two workers of its own'],
        ['keyturn key rotate --reason "yearly"', 'the key alone; rows follow with: keyturn reencrypt'],
      ],
      exits: {
        4: 'a live member is behind, the run is paused, or the last dry run found cells that would fail; that one changes nothing',
        6: 'cells failed or stayed stale',
        7: 'nobody is there to do the work, or the database cannot be reached; nothing was changed',
        ...wrongRoot,
      },
    },
  );
  rotate.hook('preAction', () => {
    const options: RotateOptions = rotate.opts();
    const isAboutRun = options.wait === true || options.local !== undefined || options.acceptFailures === true;
    if (options.reencrypt !== true && isAboutRun)
      rotate.error('error: --wait, --local and --accept-failures are about a run, so they need --reencrypt', {
        code: 'commander.conflictingOption',
      });
  });

  teach(
    changing(key.command('stage').description('Make a new data key that decrypts and does not encrypt yet.')).action(
      (options: KeyOptions) =>
        cli.run({ isJson: options.json, file: 'read' }, async ({ context, output }) => {
          const staged = await stageKey(context, options.keyring, options.reason);
          output.report(staged, () => [
            staged.isNew
              ? `${staged.key.title} is staged: the standby for the next rotation`
              : `${staged.key.title} was staged already; there is never a second`,
            ...unbackedWords(staged.unbackedKeys),
            '',
            'next: keyturn status',
          ]);
        }),
    ),
    {
      changes: 'adds one key: random, wrapped under the root key, read back and compared. Nothing encrypts with it.',
      examples: [['keyturn key stage', 'the first step of keyturn key rotate']],
      exits: wrongRoot,
    },
  );

  teach(
    changing(
      key
        .command('activate')
        .description('Make a staged key, or an earlier one, the key that encrypts, and leave a standby.')
        .argument('[key]', 'id (17) or version (v3); the staged key where left out'),
    )
      .addOption(withoutOption())
      .action((name: string | undefined, options: ActivateOptions) =>
        cli.run({ isJson: options.json, file: 'read' }, async ({ context, output }) => {
          const activated = await activate(context, options.keyring, name, options.reason, options.without);
          output.report(activated, () => [
            activatedWords(activated),
            ...withoutLines(activated),
            ...unbackedWords(activated.unbackedKeys),
            '',
            `next: keyturn reencrypt --keyring ${activated.keyring} --wait`,
          ]);
        }),
      ),
    {
      changes:
        'the active key, once every live member can decrypt with it; the key it replaces goes on decrypting. No row is touched.',
      examples: [
        ['keyturn key activate', 'the staged key'],
        ['keyturn key activate v1', 'back to an earlier key'],
        ['keyturn key activate --without billing --reason "down until Monday"', 'not waiting for one member'],
      ],
      exits: {
        3: 'no such key',
        4: 'a live or expected member is behind (the message names it), or the key is in no state to be activated',
        ...wrongRoot,
      },
    },
  );

  teach(
    changing(
      key
        .command('retire')
        .description('Keep a key out of every table, prove that no value names it, then refuse to load it any more.')
        .argument('<key>', 'id (17) or version (v3)'),
    ).action((name: string, options: KeyOptions) =>
      cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
        const retired = await retire(context, options.keyring, name, options.reason);
        const cells = retired.proof.columns.reduce((sum, column) => sum + column.cells, 0);
        output.report(retired, () => [
          `${retired.key.title} is retired: none of ${countOf(cells, 'cell')} names it`,
          `  scanned      ${formatTime(retired.proof.scannedAt)}, snapshot ${retired.proof.snapshot}, after every older transaction had ended`,
          `  registered   ${countOf(retired.proof.columns.length, 'column')}, all cells`,
          `  others       ${countOf(retired.proof.unregistered.columns, 'unregistered column')} in ${countOf(retired.proof.unregistered.tables, 'table')}, no envelope in them`,
          '  fenced       every registered table refuses new values that name it',
          '',
          `undo: keyturn key restore ${retired.key.id} --keyring ${retired.keyring}`,
          `end:  keyturn key destroy ${retired.key.id} --keyring ${retired.keyring} --reason "..."`,
        ]);
      }),
    ),
    {
      changes:
        'the state of one key; members stop loading it. Puts two triggers on every registered table, which refuse new values that name the key and touch nothing else; needs the rights of the owners of the tables, or prints the statements for them. Its row and wraps stay, so that key restore can undo it. Scans every registered table, and every other text, bytea and jsonb column for envelopes; needs no root key.',
      examples: [['keyturn key retire v1 --reason "all rows moved"', 'after a run that succeeded']],
      exits: {
        3: 'no such key',
        4: 'a value still names it, a member could still write with it, or an older transaction does not end; the fence is taken down again',
        5: 'a table has another owner; the statements for it are printed',
      },
    },
  );

  teach(
    changing(
      key
        .command('restore')
        .description('Undo a retirement: the key decrypts again.')
        .argument('<key>', 'id (17) or version (v3)'),
    ).action((name: string, options: KeyOptions) =>
      cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
        const restored = await restore(context, options.keyring, name, options.reason);
        output.report(restored, () => [
          `${restored.key.title} decrypts again; live members load it within seconds`,
          '',
          `next: keyturn reencrypt --keyring ${restored.keyring} --wait`,
        ]);
      }),
    ),
    {
      changes: 'takes the fence against the key down, and its state. Needs no root key.',
      examples: [['keyturn key restore v1', 'when a run pauses because of a retired key']],
      exits: { 3: 'no such key', 4: 'the key is not retired' },
    },
  );

  addLazyCommand(key, cli);
  addDestroyCommand(key, cli);
  return key;
}

/** Options of every verb that changes a keyring. */
export function changing(command: Command): Command {
  return command
    .option('--keyring <name>', 'which keyring; may be left out where there is only one')
    .option('--reason <text>', 'why, for the audit record')
    .option('--json', 'print one JSON object');
}

function rotateCommand(cli: Cli, options: RotateOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'read' }, async (running) => {
    const { context, output } = running;
    const rotation = {
      keyring: options.keyring,
      ifOlderThanMs: options.ifOlderThan,
      reason: options.reason,
      without: options.without ?? [],
    };
    if (options.reencrypt !== true) {
      const rotated = await rotateKey(context, rotation);
      output.report(rotated, () => [
        rotatedWords(rotated),
        ...withoutLines(rotated),
        ...unbackedWords(rotated.unbackedKeys),
        '',
        `next: ${rotated.isNew ? `keyturn reencrypt --keyring ${rotated.keyring} --wait` : 'keyturn status'}`,
      ]);
      return;
    }
    const staff = staffFor(cli, running, options);
    const acceptFailures = options.acceptFailures === true;
    const order = { ...rotation, acceptFailures, supply: staff.supply };
    const { begin, report, dryRun, ...rotated } = await rotateAndReencrypt(context, order);
    const words = [rotatedWords(rotated), ...unbackedWords(rotated.unbackedKeys)];
    if (staff.waits) output.note(words.join('\n'));
    for (const line of withoutLines(rotated)) output.note(line);
    await endBegun(
      {
        running,
        staff,
        acceptFailures,
        before: {
          value: {
            key: rotated.key,
            isNew: rotated.isNew,
            without: rotated.without,
            unbackedKeys: rotated.unbackedKeys,
          },
          lines: staff.waits ? [] : words,
        },
      },
      // Nobody watches it: that there was no dry run is no news.
      { begin, report, ...(dryRun ? { dryRun } : {}) },
    );
  });
}

function rotatedWords(rotated: Rotated): string {
  return rotated.isNew ? activatedWords(rotated) : `${rotated.key.title} stays active: it is young enough`;
}

function activatedWords({ key, without }: Activated): string {
  return `${key.title} is active; every ${without.length === 0 ? '' : 'other '}live member writes with it`;
}

export function withoutLines({ without }: Pick<Activated, 'without'>): readonly string[] {
  return without.map(({ member, why, fails }) => `without ${member}, which ${why}: ${fails}`);
}

/** Repeatable. */
function withoutOption(): Option {
  return new Option(
    '--without <member>',
    'do not wait for this member (name or id); repeatable, needs --reason, and says what will fail there',
  ).argParser((word: string, earlier: readonly string[] | undefined) => [...(earlier ?? []), word]);
}

function keyringLines(keyring: KeyringListing, output: Output): readonly string[] {
  const rows = keyring.keys
    .toReversed()
    .map((key) => [
      `v${key.version}`,
      formatCount(key.id),
      `${key.state}${key.compromised ? ' (compromised)' : ''}`,
      key.algorithm,
      formatTime(key.retiredAt ?? key.activatedAt ?? key.createdAt),
      key.fingerprint,
    ]);
  return [
    `${output.paint('strong', keyring.keyring)}, generation ${keyring.generation}, new keys are ${keyring.algorithm}`,
    ...tableLines(['key', 'id', 'state', 'algorithm', 'since', 'fingerprint'], rows),
  ];
}
