// key compromise: contains the key, orders the emergency run, and retires the key when the run is through.
import type { Command } from 'commander';
import { beyondRotation, containKey, type ContainedKey } from '../../control/compromise.js';
import { unbackedWords } from '../backup-words.js';
import type { Cli } from '../cli.js';
import { emergencyLines, endEmergency, leftWords, type EmergencyEnd } from '../end-emergency.js';
import { teach } from '../help.js';
import { staffFor, type Waiting } from '../staff.js';
import { changing, withoutLines } from './key.js';
import { localOption } from './reencrypt.js';

interface CompromiseCommandOptions extends Waiting {
  readonly keyring?: string;
  readonly reason?: string;
  readonly json?: true;
  readonly rootSuspect?: true;
}

export function addCompromiseCommand(key: Command, cli: Cli): void {
  teach(
    changing(
      key
        .command('compromise')
        .description('Others may hold this key: stop encrypting with it, move its values first of all, retire it.')
        .argument('<key>', 'id (17) or version (v3)'),
    )
      .option(
        '--root-suspect',
        'the root key may be known too: discard the standby and make another, and remember it until the root key is replaced',
      )
      .option('--wait', 'wait for the emergency run, then retire the key; needs a live supervisor and worker')
      .addOption(localOption())
      .action((name: string, options: CompromiseCommandOptions) => compromiseCommand(cli, name, options)),
    {
      changes:
        'marks the key; where it is the active one, makes the standby active in the same transaction, at once, and names members that do not hold it yet. Where a key has to be made first, members have 15 s to load it. Needs no root key where there is a standby. Orders an emergency run over everything that does not name the active key, or puts an unfinished one before all others without its limits, and retires the key when nothing names it; without --wait or --local a supervisor does, if its login may. Repeating it goes on where it stopped and never makes a second key. A compromised key is never active again.',
      examples: [
        ['keyturn key compromise v3 --reason "laptop stolen" --local 2', 'to the end, with workers of its own'],
        ['keyturn key compromise v3 --root-suspect --reason "dump and root leaked"', 'then change the root as well'],
      ],
      exits: {
        3: 'no such key',
        4: 'the run is paused, or something still stands in the way of the retirement',
        5: 'a table has another owner, so the key cannot be fenced and retired; the statements for it are printed',
        6: 'cells failed or stayed stale',
        7: 'the key is contained, and nobody is there to move its values; or there is no standby, and no root key to make one under',
        8: 'there is no standby, and the root key is another one',
      },
    },
  );
}

function compromiseCommand(cli: Cli, name: string, options: CompromiseCommandOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'read' }, async (running) => {
    const { context, output } = running;
    const { reason } = options;
    const isRootSuspect = options.rootSuspect === true;
    const staff = staffFor(cli, running, options);
    const contained = await containKey(context, { keyring: options.keyring, key: name, reason, isRootSuspect });
    output.note(`${contained.key.title} is contained; ${contained.active.title} encrypts`);
    const end = await endEmergency(running, staff, { ...contained, keys: [contained.key], reason });
    const [retired] = end.retired;
    const next = nextWords(contained, end, isRootSuspect);
    output.report(
      {
        ...contained,
        key: retired?.key ?? contained.key,
        run: end.run ?? null,
        proof: retired?.proof ?? null,
        beyondRotation,
        next,
      },
      () => [
        `${contained.key.title} is compromised: it never encrypts again; ${contained.active.title} is active`,
        ...containedLines(contained),
        ...emergencyLines(end),
        '',
        `what rotation cannot undo: ${beyondRotation}`,
        '',
        `next: ${next}`,
      ],
    );
  });
}

/** What an operator has to know about a keyring whose key was replaced in an emergency. */
export function containedLines(
  contained: Pick<ContainedKey, 'active' | 'without' | 'unbackedKeys' | 'successorTrouble' | 'standbyTrouble'>,
): readonly string[] {
  const { active, successorTrouble, standbyTrouble } = contained;
  return [
    ...withoutLines(contained),
    ...(successorTrouble === null
      ? []
      : [
          `${active.title} is the standby from before, which may be known too; no other could be made: ${successorTrouble}`,
        ]),
    ...(standbyTrouble === null ? [] : [`  standby       none, for now: ${standbyTrouble}`]),
    ...unbackedWords(contained.unbackedKeys),
  ];
}

function nextWords({ keyring, standbyTrouble }: ContainedKey, end: EmergencyEnd, isRootSuspect: boolean): string {
  const steps = [
    leftWords(end),
    isRootSuspect
      ? 'change the root key, and what it wrapped: keyturn root prepare --to URI and keyturn root finalize --reencrypt, or keyturn root rotate --to URI --reencrypt where nothing is live'
      : undefined,
    standbyTrouble === null || isRootSuspect
      ? undefined
      : `keyturn key stage --keyring ${keyring}, once the root key is there`,
  ].filter((step) => step !== undefined);
  return steps.length === 0 ? 'keyturn status' : steps.join('; ');
}
