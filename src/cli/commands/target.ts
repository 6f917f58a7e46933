// target list, discover, census, rename.
import type { Command } from 'commander';
import { discoverTargets } from '../../control/discover.js';
import { listTargetListings, renameTargetTo, takeCensus } from '../../control/targets.js';
import type { Cli } from '../cli.js';
import { teach } from '../help.js';
import { countOf, formatCount, tableLines } from '../table.js';

export function addTargetCommands(program: Command, cli: Cli): void {
  const target = program
    .command('target')
    .description('Registered tables: list them, count their cells per key, follow a renamed table.');

  teach(
    target
      .command('list')
      .description('List the registered tables with their encrypted columns.')
      .option('--json', 'print one JSON object')
      .action((options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const targets = await listTargetListings(context);
          output.report({ targets }, () =>
            targets.length === 0
              ? ['no target is registered', '', 'next: list tables in keyturn.yaml and run keyturn init']
              : targets.flatMap(({ table, keyring, primary_key: key, scope, columns }) => [
                  `${output.paint('strong', table)}  keyring ${keyring}, primary key (${key.join(', ')}), ${scope === null ? 'no scope column' : `scope ${scope}`}`,
                  ...tableLines(
                    ['', '', '', ''],
                    columns.map(({ name, type, format, bind, move }) => [
                      name,
                      type,
                      format,
                      `bound to the ${bind}${move === null ? '' : `, ${move}`}`,
                    ]),
                  ).slice(1),
                ]),
          );
        }),
      ),
    {
      changes: 'nothing.',
      examples: [['keyturn target list', 'targets are registered by keyturn init, from keyturn.yaml']],
    },
  );

  teach(
    target
      .command('discover')
      .description('Look for encrypted columns in the whole database and print a keyturn.yaml for them.')
      .option('--entities <path>', 'also list what the entities of this TypeORM data source encrypt')
      .option('--json', 'print one JSON object')
      .action((options: { entities?: string; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none', anySchema: true }, async ({ context, output }) => {
          const report = await discoverTargets(context, options.entities);
          if (report.unread.length > 0) output.note(`not readable for this role: ${report.unread.join(', ')}`);
          output.report(report, () => report.config.trimEnd().split('\n'));
        }),
      ),
    {
      changes:
        'nothing. Reads a few hundred rows of each table in read-only transactions and shows names and counts, never values. Envelopes, Fernet tokens and PGP messages are recognised; AES-CBC (typeorm-encrypted) and AES-GCM are guessed, and stand as comments.',
      examples: [
        ['keyturn target discover > keyturn.yaml', 'read it before keyturn init; works before init, too'],
        [
          'keyturn target discover --entities ./dist/data-source.js',
          'the module that exports your DataSource, as JavaScript',
        ],
      ],
      exits: { 2: 'the entities cannot be read' },
    },
  );

  teach(
    target
      .command('census')
      .description('Count the cells of every registered column by the key they name.')
      .argument('[table]', 'only this table, as schema.table or table')
      .option('--json', 'print one JSON object')
      .action((table: string | undefined, options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const census = await takeCensus(context, table);
          output.report({ census }, () =>
            census.length === 0
              ? ['no cells: the registered columns are empty']
              : tableLines(
                  ['column', 'cells', 'name', 'state'],
                  census.map((line) => [
                    `${line.target}.${line.column}`,
                    formatCount(line.cells),
                    line.key,
                    line.state ?? '-',
                  ]),
                ),
          );
        }),
      ),
    {
      changes: 'nothing. Reads whole tables, by the headers of the envelopes alone, and needs no root key.',
      examples: [
        ['keyturn target census', 'which keys are still in use, and where'],
        ['keyturn target census public.customer', 'one table'],
      ],
      exits: { 3: 'there is no such target' },
    },
  );

  teach(
    target
      .command('rename')
      .description('Point a registered target at a table of another name.')
      .argument('<from>', 'the name it is registered under')
      .argument('<to>', 'the table where its rows are now')
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((from: string, to: string, options: { reason?: string; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const renamed = await renameTargetTo(context, from, to, options.reason);
          output.report({ target: renamed }, () => [
            `target ${from} is now ${renamed.table} (${countOf(renamed.columns.length, 'column')}); change its name in keyturn.yaml as well`,
          ]);
        }),
      ),
    {
      changes:
        'the registry only. The ids stay, so every envelope stays readable. For tables that were created anew; a plain ALTER TABLE … RENAME is followed by keyturn init.',
      examples: [['keyturn target rename customer customer_2026 --reason "rebuilt table"', '']],
      exits: { 2: 'the table does not fit', 3: 'there is no such target or table' },
    },
  );
}
