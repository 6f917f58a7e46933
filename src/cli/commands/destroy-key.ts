// key destroy: ask, approve as another login, or take the request back.
import { InvalidArgumentError, Option, type Command } from 'commander';
import { approveAndDestroy, askForDestruction, cancelRequest, defaultWaitDays } from '../../control/destroy-key.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';
import { formatTime } from '../table.js';

interface DestroyOptions {
  readonly keyring?: string;
  readonly reason?: string;
  readonly waitDays?: number;
  readonly approve?: string;
  readonly cancel?: true;
  readonly json?: true;
}

export function addDestroyCommand(key: Command, cli: Cli): void {
  teach(
    key
      .command('destroy')
      .description('Ask for the destruction of a retired key, or approve it as a second person.')
      .argument('<key>', 'id (17) or version (v3)')
      .option('--keyring <name>', 'which keyring; may be left out where there is only one')
      .option('--reason <text>', 'why, for the audit record; a request needs one')
      .addOption(
        new Option('--wait-days <days>', `with a request: how long it waits (default: ${defaultWaitDays})`)
          .argParser(parseDays)
          .conflicts(['approve', 'cancel']),
      )
      .addOption(
        new Option(
          '--approve <request>',
          'approve the request of another login, by number or hash, and destroy',
        ).conflicts('cancel'),
      )
      .option('--cancel', 'take the request back: the key is retired again')
      .option('--json', 'print one JSON object')
      .action((name: string, options: DestroyOptions) => destroyCommand(cli, name, options)),
    {
      changes:
        'a request puts the key to wait. Approved by another database login once the wait is over, the key is proven unused once more and its wraps are deleted, in one transaction; from then on nobody can decrypt with it, and nothing undoes that. Its row stays. Copies of its wraps in backups and WAL are not reached. Needs no root key.',
      examples: [
        ['keyturn key destroy v1 --reason "contract ended"', `asks; waits ${defaultWaitDays} days`],
        ['keyturn key destroy v1 --approve HASH', 'as another login, after the wait'],
        ['keyturn key destroy v1 --cancel --reason "still needed"', 'back to retired'],
      ],
      exits: {
        3: 'no such key, or no open request',
        4: 'the key is not retired, the wait is not over, the login is the one that asked, or a value names the key',
        5: 'this database login may not change keys',
      },
    },
  );
}

function parseDays(text: string): number {
  if (!/^\d{1,5}$/.test(text)) throw new InvalidArgumentError('Expected a whole number of days.');
  return Number(text);
}

function destroyCommand(cli: Cli, name: string, options: DestroyOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
    if (options.cancel === true) {
      const kept = await cancelRequest(context, options.keyring, name, options.reason);
      output.report(kept, () => [`${kept.key.title} is retired again; the request is taken back`]);
      return;
    }
    if (options.approve !== undefined) {
      const gone = await approveAndDestroy(context, options.keyring, name, options.approve, options.reason);
      output.report(gone, () => [
        `${gone.key.title} is destroyed: its wraps are deleted, approved by ${gone.approved_by}`,
        '  its row stays, so that its id is never used again',
        '  backups, dumps and WAL may still hold the wraps: they end when those do',
      ]);
      return;
    }
    const asked = await askForDestruction(context, options.keyring, name, {
      reason: options.reason,
      waitDays: options.waitDays,
    });
    const { destruction } = asked;
    output.report(asked, () => [
      `${asked.key.title} waits for its destruction, asked for by ${destruction.requested_by}`,
      `  not before   ${formatTime(destruction.not_before)}, by the clock of the database`,
      `  request      ${destruction.request}`,
      `  hash         ${destruction.hash}`,
      '',
      `next: ${destruction.next}`,
      `undo: keyturn key destroy ${asked.key.id} --keyring ${asked.keyring} --cancel`,
    ]);
  });
}
