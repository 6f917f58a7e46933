// key lazy: the switch of lazy upgrades.
import { InvalidArgumentError, type Command } from 'commander';
import { setLazyUpgrades, type LazyReport } from '../../control/lazy-upgrades.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';

interface LazyOptions {
  readonly keyring?: string;
  readonly rate?: number;
  readonly sample?: number;
  readonly reason?: string;
  readonly json?: true;
}

/** Under `keyturn key`. */
export function addLazyCommand(key: Command, cli: Cli): void {
  teach(
    key
      .command('lazy')
      .description('Switch lazy upgrades on or off, limit them, or show how they are set.')
      .argument('[switch]', 'on or off; left out: as it is', switchOf)
      .option('--rate <rows>', 'rows a second that one process rewrites at most', numberOf)
      .option('--sample <share>', 'share of stale reads that are upgraded, over 0 and up to 1', numberOf)
      .option('--keyring <name>', 'which keyring; may be left out where there is only one')
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((isOn: boolean | undefined, options: LazyOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const wanted = {
            ...(isOn === undefined ? {} : { isOn }),
            ...(options.rate === undefined ? {} : { rowsPerSecond: options.rate }),
            ...(options.sample === undefined ? {} : { sample: options.sample }),
          };
          const report = await setLazyUpgrades(context, options.keyring, wanted, options.reason);
          output.report(report, () => [lazyWords(report)]);
        }),
      ),
    {
      changes:
        'the setting of the keyring, where one is named. Applications follow within seconds, without a restart; values stay readable either way.',
      examples: [
        ['keyturn key lazy', 'how they are set'],
        ['keyturn key lazy off --reason "busy week"', 'reads rewrite nothing; a bulk run still does'],
        ['keyturn key lazy on --rate 50 --sample 0.1', 'gently'],
      ],
      exits: { 2: 'a rate or sample that makes no sense', 3: 'no such keyring' },
    },
  );
}

function lazyWords(report: LazyReport): string {
  return report.lazy_upgrades === 'off'
    ? `lazy upgrades of ${report.keyring} are off`
    : `lazy upgrades of ${report.keyring} are on: ${report.rows_per_second} rows a second and process at most, ${report.sample} of the stale reads`;
}

function switchOf(word: string): boolean {
  if (word === 'on' || word === 'off') return word === 'on';
  throw new InvalidArgumentError('expected on or off.');
}

function numberOf(word: string): number {
  const value = Number(word);
  if (word.trim() !== '' && Number.isFinite(value)) return value;
  throw new InvalidArgumentError('expected a number.');
}
