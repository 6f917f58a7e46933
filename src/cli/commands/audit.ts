// audit list, verify: who did what, and whether the record is whole.
import { InvalidArgumentError, type Command } from 'commander';
import { listRecords, verifyAudit, type AuditListing, type AuditVerification } from '../../control/audit.js';
import { parseCount } from '../arguments.js';
import type { Cli } from '../cli.js';
import { parseDuration } from '../duration.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { countOf, formatTime, tableLines } from '../table.js';

interface ListOptions {
  readonly since?: { readonly at: Date } | { readonly ageMs: number };
  readonly object?: string;
  readonly action?: string;
  readonly limit: number;
  readonly json?: true;
}

const shownRecords = 50;

export function addAuditCommands(program: Command, cli: Cli): void {
  const audit = program
    .command('audit')
    .description('The record of every change of a key or run: read it, and prove that it is whole.');

  teach(
    audit
      .command('list')
      .description('List the newest records: when, which login, what, of what, and why.')
      .option('--since <time>', 'only since then: an age (7d, 12h) or a time (2026-11-22T08:00:00Z)', parseSince)
      .option('--object <name>', 'only of this object ("key 17", "run 4", "keyring customers")')
      .option('--action <name>', 'only of this action (key.activate, run.pausing)')
      .option('--limit <n>', 'how many', parseCount('a number of records', 100_000), shownRecords)
      .option('--json', 'print one JSON object, with what was before and after')
      .action((options: ListOptions) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const records = await listRecords(context, {
            since: options.since,
            object: options.object,
            action: options.action,
            limit: options.limit,
          });
          output.report({ records }, () =>
            records.length === 0
              ? ['no such record']
              : tableLines(['record', 'at', 'login', 'action', 'object', 'reason'], records.map(listRow)),
          );
        }),
      ),
    {
      changes: 'nothing. Needs the database alone, and the rights of an auditor.',
      examples: [
        ['keyturn audit list --since 7d', 'the last week, newest first'],
        ['keyturn audit list --object "key 17" --json', 'the life of one key'],
      ],
    },
  );

  teach(
    audit
      .command('verify')
      .description('Recompute the chain over all records, and compare its seals where a root key is at hand.')
      .option(
        '--checkpoint <text>',
        'what an earlier verify printed and was kept elsewhere: finds a tail that was cut off',
      )
      .option('--json', 'print one JSON object')
      .action((options: { checkpoint?: string; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const verification = await verifyAudit(context, options.checkpoint);
          output.report(verification, () => verificationLines(verification, output));
          return verification.intact ? 0 : 6;
        }),
      ),
    {
      changes:
        'nothing. Needs the database alone, and the rights of an auditor; with a root key in the environment it compares the seals as well. Without seals and checkpoint, who can write every table can rewrite the whole chain: docs/audit.md says what is proved by what.',
      examples: [
        ['keyturn audit verify', 'keep the checkpoint that it prints where the database cannot reach it'],
        ['keyturn audit verify --checkpoint "$(cat audit.checkpoint)"', 'was anything cut off or rewritten since?'],
      ],
      exits: { 6: 'a record does not fit; its number and the kind of damage are printed', 8: 'wrong root key' },
    },
  );
}

/** An age, or a time as ISO 8601 has it. */
function parseSince(text: string): { at: Date } | { ageMs: number } {
  if (/^\d+[smhd]$/.test(text)) return { ageMs: parseDuration(text) };
  const at = new Date(text);
  if (!/^\d{4}-\d{2}-\d{2}(T\d{2}:\d{2}(:\d{2})?Z)?$/.test(text) || Number.isNaN(at.getTime()))
    throw new InvalidArgumentError('Expected an age such as 7d, or a time such as 2026-11-22 or 2026-11-22T08:00:00Z.');
  return { at };
}

function listRow(record: AuditListing): readonly string[] {
  return [
    String(record.record),
    formatTime(record.at),
    record.actor,
    record.action,
    record.object,
    record.reason ?? '',
  ];
}

function verificationLines(found: AuditVerification, output: Output): readonly string[] {
  const { damage, seals } = found;
  const verdict =
    damage === null
      ? output.paint('good', `${countOf(found.records, 'record')}, each as it was recorded`)
      : output.paint(
          'bad',
          `${damage.record === null ? 'the record' : `record ${damage.record}`} does not fit (${damage.kind.replaceAll('_', ' ')}): ${damage.what}`,
        );
  return [
    verdict,
    `  seals       ${sealWords(seals)}`,
    ...(found.checkpoint === null ? [] : [`  checkpoint  ${found.checkpoint}`]),
    '',
    damage === null
      ? 'next: keep the checkpoint outside this database, and give it to the next verify with --checkpoint'
      : 'next: compare with a backup of the keyturn schema; see docs/audit.md',
  ];
}

function sealWords(seals: AuditVerification['seals']): string {
  if (seals.stored === 0) return 'none yet';
  if (seals.checked === 0)
    return `${countOf(seals.stored, 'seal')}, not compared: no root key at hand opens the audit key`;
  const sealed =
    seals.sealed_to === null ? '' : `; records to ${seals.sealed_to} are sealed, ${formatTime(seals.sealed_at ?? '')}`;
  return `${seals.checked} of ${countOf(seals.stored, 'seal')} compared${sealed}`;
}
