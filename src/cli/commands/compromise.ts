// key compromise: contains the key, orders the emergency run, and retires the key when the run is through.
import type { Command } from 'commander';
import { beginEmergency, beyondRotation, containKey, type Contained } from '../../control/compromise.js';
import { retire } from '../../control/keys.js';
import { refuseUnlessComplete, type BegunRun } from '../../control/rotate-and-reencrypt.js';
import type { RunReport } from '../../control/runs.js';
import { unbackedWords } from '../backup-words.js';
import type { Cli, Running } from '../cli.js';
import { noteJoined } from '../finish-run.js';
import { followRun } from '../follow-run.js';
import { teach } from '../help.js';
import { noteMissingRunners, staffFor, type Staff, type Waiting } from '../staff.js';
import { countOf } from '../table.js';
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
      .option('--root-suspect', 'the root key may be known too: discard the standby and make another')
      .option('--wait', 'wait for the emergency run, then retire the key; needs a live supervisor and worker')
      .addOption(localOption())
      .action((name: string, options: CompromiseCommandOptions) => compromiseCommand(cli, name, options)),
    {
      changes:
        'marks the key; where it is the active one, makes the standby active in the same transaction, waiting at most 15 s for members that do not hold it. Orders an emergency run over everything that does not name the active key, or puts an unfinished one before all others without its limits, and retires the key when nothing names it. Repeating it goes on where it stopped and never makes a second key. A compromised key is never active again.',
      examples: [
        ['keyturn key compromise v3 --reason "laptop stolen" --local 2', 'to the end, with workers of its own'],
        ['keyturn key compromise v3 --root-suspect --reason "dump and root leaked"', 'then change the root as well'],
      ],
      exits: {
        3: 'no such key',
        4: 'the run is paused, or something still stands in the way of the retirement',
        5: 'a table has another owner, so the key cannot be fenced and retired; the statements for it are printed',
        6: 'cells failed or stayed stale',
        7: 'the key is contained, and nobody is there to move its values',
        8: 'wrong root key; nothing was written',
      },
    },
  );
}

function compromiseCommand(cli: Cli, name: string, options: CompromiseCommandOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'read' }, async (running) => {
    const { context, output } = running;
    const { reason } = options;
    const staff = staffFor(cli, running, options);
    const contained = await containKey(context, {
      keyring: options.keyring,
      key: name,
      reason,
      isRootSuspect: options.rootSuspect === true,
    });
    output.note(`${contained.key.title} is contained; ${contained.active.title} encrypts`);
    const begun = await beginEmergency(context, contained, { reason, supply: staff.supply });
    const run = begun === undefined ? undefined : await settle(running, staff, begun);
    const isSettled = begun === undefined || run?.state === 'succeeded';
    const retired =
      isSettled && contained.key.state === 'decrypt_only'
        ? await retire(context, contained.keyring, String(contained.key.id), reason)
        : undefined;
    const next = nextWords(contained, isSettled ? undefined : run, options.rootSuspect === true);
    output.report(
      {
        ...contained,
        key: retired?.key ?? contained.key,
        run: run ?? null,
        proof: retired?.proof ?? null,
        beyondRotation,
        next,
      },
      () => [
        `${contained.key.title} is compromised: it never encrypts again; ${contained.active.title} is active`,
        ...withoutLines(contained),
        ...unbackedWords(contained.unbackedKeys),
        ...(run === undefined
          ? []
          : [`run ${run.run_id} toward ${run.target_key} is ${run.state.replaceAll('_', ' ')}`]),
        ...(retired === undefined
          ? []
          : [
              `retired: none of ${countOf(
                retired.proof.columns.reduce((sum, column) => sum + column.cells, 0),
                'cell',
              )} names it`,
            ]),
        '',
        `what rotation cannot undo: ${beyondRotation}`,
        '',
        `next: ${next}`,
      ],
    );
  });
}

/** Waits where somebody was named to do the work; the report of the run either way. Throws what keeps it from being a success. */
async function settle(running: Running, staff: Staff, begun: BegunRun): Promise<RunReport> {
  const { report } = begun;
  if (begun.begin === 'done') return report;
  if (begun.begin === 'joined') noteJoined(running, begun);
  if (!staff.waits) {
    await noteMissingRunners(running);
    return report;
  }
  const { context, output } = running;
  running.hintIfInterrupted(`the key is contained; repeat the command to go on with run ${report.run_id}`);
  const ended = await followRun({ context, output, runners: staff.runners }, report.run_id);
  refuseUnlessComplete(ended);
  return ended;
}

function nextWords({ key, keyring }: Contained, unfinished: RunReport | undefined, isRootSuspect: boolean): string {
  if (unfinished !== undefined)
    return `keyturn run watch ${unfinished.run_id}, then keyturn key retire ${key.id} --keyring ${keyring}`;
  return isRootSuspect ? 'keyturn root prepare --to URI, as docs/keys.md says' : 'keyturn status';
}
