// rebind: repair values whose row got another key or tenant, one row or a whole table.
import { Option, type Command } from 'commander';
import { rebindValues, refuseUnlessRebound, type RebindReport } from '../../control/rebind.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';
import { countOf, formatCount, tableLines } from '../table.js';

interface RebindOptions {
  readonly target: string;
  readonly pk?: readonly string[];
  readonly wasPk?: readonly string[];
  readonly scope?: string;
  readonly wasScope?: string;
  readonly wasUnscoped?: true;
  readonly column?: string;
  readonly dryRun?: true;
  readonly reason?: string;
  readonly json?: true;
}

export function addRebindCommand(program: Command, cli: Cli): void {
  teach(
    program
      .command('rebind')
      .description('Repair values that do not decrypt since their row got another primary key or tenant.')
      .requiredOption('--target <table>', 'the table, registered by keyturn init')
      .addOption(keyOption('--pk <value>', 'the key that the row has now; without it all rows'))
      .addOption(keyOption('--was-pk <value>', 'the key that it had'))
      .option('--scope <value>', 'only rows that have this tenant now')
      .addOption(new Option('--was-scope <value>', 'the tenant that they had').conflicts('wasUnscoped'))
      .option('--was-unscoped', 'they had no tenant: the column was NULL')
      .option('--column <name>', 'only this column, or column.path of a jsonb path')
      .option('--dry-run', 'count what would be repaired and what would fail, and write nothing')
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: RebindOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const report = await rebindValues(context, {
            target: options.target,
            pk: options.pk,
            wasPk: options.wasPk,
            scope: options.scope,
            wasScope: options.wasUnscoped === true ? null : options.wasScope,
            column: options.column,
            isDryRun: options.dryRun === true,
            reason: options.reason,
          });
          output.report(report, () => reportLines(report));
          refuseUnlessRebound(report);
        }),
      ),
    {
      changes:
        'values that decrypt at the former key or tenant of their row, each only if it still is as it was read: they are encrypted for the present one, under the active key. What decrypts where it is, or at neither, stays. Whoever gives the command says that the change was meant. Needs the root key, and a login that may write the table. A composite key: one --pk for each of its columns, in their order.',
      examples: [
        ['keyturn rebind --target customer --pk 1042 --was-pk 42', 'a row was renumbered'],
        ['keyturn rebind --target customer --scope acme --was-scope initech --dry-run', 'two tenants became one'],
        ['keyturn rebind --target line --pk 7 --pk 2 --was-pk 7 --was-pk 1', 'a composite key'],
      ],
      exits: {
        3: 'no such target, column or row',
        4: 'refused: a column is between two formats',
        6: 'values decrypt at neither address, or the application kept changing them',
        7: 'the root key or the database cannot be reached, or a value names a key that is retired',
      },
    },
  );
}

function keyOption(flags: string, description: string): Option {
  return new Option(flags, `${description}; once per key column`).argParser(
    (word: string, earlier: readonly string[] | undefined) => [...(earlier ?? []), word],
  );
}

function reportLines(report: RebindReport): readonly string[] {
  const { target, is_dry_run: isDryRun } = report;
  const cells = countOf(report.fields_reencrypted, 'value');
  const rows = `${countOf(report.rows_examined, 'row')} of ${target}`;
  return [
    isDryRun
      ? `${cells} would be repaired in ${rows}; nothing was written`
      : `${cells} repaired in ${rows}, under ${report.target_key}`,
    `${formatCount(report.fields_current)} decrypt where they are, ${formatCount(report.fields_failed)} failed, ${formatCount(report.fields_conflicted)} conflicted`,
    ...(report.failures.length === 0
      ? []
      : tableLines(
          ['column', 'cause', 'names', 'cells'],
          report.failures.map(({ field, cause, key_id: key, cells: failed }) => [
            `${target}.${field}`,
            cause,
            key === null ? '-' : `key ${key}`,
            formatCount(failed),
          ]),
        )),
    '',
    `next: ${isDryRun && report.fields_reencrypted > 0 ? 'the same without --dry-run' : 'keyturn status'}`,
  ];
}
