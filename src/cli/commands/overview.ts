// init, status, doctor: bring it up, see where it stands, see what stands in the way.
import { Option, type Command } from 'commander';
import type { DestructionReport } from '../../control/destroy-key.js';
import { examineEverything } from '../../control/doctor.js';
import { estimateTargets } from '../../control/estimate.js';
import { init, type InitReport } from '../../control/init.js';
import { printSql } from '../../control/print-sql.js';
import { readStatus, type KeyringStatus, type StatusReport } from '../../control/status.js';
import { unbackedWords } from '../backup-words.js';
import type { Cli } from '../cli.js';
import { describeAge } from '../duration.js';
import { estimateLines } from '../estimate-words.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';
import { kindTitle, paceWords } from '../run-words.js';
import { countOf, formatCount, formatTime, tableLines } from '../table.js';

interface InitOptions {
  readonly printSql?: true;
  readonly reason?: string;
  readonly json?: true;
}

export function addOverviewCommands(program: Command, cli: Cli): void {
  teach(
    program
      .command('init')
      .description('Bring the control schema, keyrings, first data keys and targets of keyturn.yaml into the database.')
      .addOption(
        new Option(
          '--print-sql',
          'print all statements instead, for people who run them themselves; connects to nothing',
        ).conflicts(['json', 'reason']),
      )
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((options: InitOptions) => (options.printSql === true ? printStatements(cli) : runInit(cli, options))),
    {
      changes:
        'only what is missing; run it again after every change of keyturn.yaml and after every upgrade. It writes no row of an application table; where a key is retired it puts the missing triggers of its fence there. It is the one command that migrates, so it needs DDL rights; nothing else does.',
      examples: [
        ['keyturn init', 'a second time it changes nothing and says so'],
        ['keyturn init --print-sql > keyturn.sql', 'read it, or have it run by somebody else'],
      ],
      exits: {
        4: 'a table cannot be handled; nothing of it was registered (see: keyturn doctor)',
        8: 'wrong root key; nothing was written',
      },
    },
  );

  teach(
    program
      .command('status')
      .description('Show keyrings, coverage, members, runs and queue, and the next safe command.')
      .option('--json', 'print one JSON object')
      .action((options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const status = await readStatus(context);
          output.report(status, () => statusLines(status, output));
        }),
      ),
    {
      changes: 'nothing. Needs the database alone: no root key, no queue, no keyturn.yaml.',
      examples: [
        ['keyturn status', 'ends with the next safe command'],
        ['keyturn status --json', 'for scripts and monitoring'],
      ],
      exits: { 4: 'the database has no keyturn schema, or one of another version' },
    },
  );

  teach(
    program
      .command('doctor')
      .description('Look at everything a rotation stands on and say what is fine, what to watch and what is refused.')
      .option('--json', 'print one JSON object')
      .action((options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'if there', anySchema: true }, async ({ context, output }) => {
          const findings = await examineEverything(context);
          const estimates = await estimateTargets(context, findings);
          output.report({ findings, estimates }, () => [
            ...findingLines(findings, output),
            ...(estimates.length === 0
              ? []
              : ['', output.paint('strong', 'what moving every row would take'), ...estimateLines(estimates)]),
          ]);
          const refusals = findings.filter((finding) => finding.level === 'refuse').length;
          if (refusals === 0) return 0;
          output.note(`keyturn: ${refusals} of ${countOf(findings.length, 'finding')} must be mended first`);
          return 4;
        }),
      ),
    {
      changes:
        'nothing. Looks at registered tables, and at those that keyturn.yaml names where there is one, and reads some rows of each to estimate what a run takes. Needs no root key.',
      examples: [
        ['keyturn doctor', 'before init, and before a first rotation'],
        ['keyturn --config shop.yaml doctor', 'tables of another file'],
      ],
      exits: { 4: 'something is refused' },
    },
  );
}

/** Needs the file alone: nothing is connected to, so any address serves. */
async function printStatements(cli: Cli): Promise<void> {
  const { environment, openControl, stdout } = cli.surroundings;
  const opened = openControl({ environment: { ...environment, DATABASE_URL: 'postgres://' }, file: cli.configFile() });
  try {
    stdout.write(await printSql(opened.context));
  } finally {
    await opened.close();
  }
}

function runInit(cli: Cli, options: InitOptions): Promise<void> {
  return cli.run({ isJson: options.json, file: 'read', anySchema: true }, async ({ context, output }) => {
    const report = await init(context, options.reason);
    output.report(report, () => initLines(report, output));
  });
}

function initLines(report: InitReport, output: Output): readonly string[] {
  const lines = [
    report.migrations.length === 0
      ? 'schema    up to date'
      : `schema    ${countOf(report.migrations.length, 'migration')} applied`,
    ...report.repairedRoots.map((root) => `root key  ${root}: its record was older than the wraps, written anew`),
    ...report.keyrings.map(
      (keyring) =>
        `keyring   ${keyring.name}: ${keyring.isNew ? 'created' : 'unchanged'}, active key id ${keyring.activeKeyId}`,
    ),
    ...report.targets.map((target) => `target    ${target.name} (${target.columns.join(', ')}): ${target.change}`),
    ...report.grants.map((grant) => `granted   ${grant}`),
  ];
  const isChanged =
    report.migrations.length > 0 ||
    report.repairedRoots.length > 0 ||
    report.keyrings.some((keyring) => keyring.isNew) ||
    report.targets.some((target) => target.change !== 'unchanged');
  const warnings = report.warnings.flatMap((finding) => ['', ...findingLine(finding, output)]);
  return [
    ...lines,
    ...warnings,
    '',
    isChanged
      ? 'next: keyturn doctor, then start the application with the library and: keyturn status'
      : 'nothing was changed',
  ];
}

type Finding = Awaited<ReturnType<typeof examineEverything>>[number];

const levels = [
  ['refuse', 'refused: mend these first', 'bad'],
  ['warn', 'to watch', 'watch'],
  ['ok', 'fine', 'good'],
] as const;

function findingLines(findings: readonly Finding[], output: Output): readonly string[] {
  const groups = levels.flatMap(([level, title, tone]) => {
    const group = findings.filter((finding) => finding.level === level);
    if (group.length === 0) return [];
    return ['', output.paint(tone, title), ...group.flatMap((finding) => findingLine(finding, output))];
  });
  return groups.slice(1);
}

function findingLine(finding: Finding, output: Output): readonly string[] {
  // What is fine is said of the subject; what is not has a sentence of its own.
  const said = `  ${finding.check}: ${output.paint('strong', finding.subject)}${finding.level === 'ok' ? '' : ':'} ${finding.reason}`;
  return finding.remedy === '' ? [said] : [said, `    remedy: ${finding.remedy}`];
}

function statusLines(status: StatusReport, output: Output): readonly string[] {
  const members = status.members.map((member) => [
    member.member,
    member.live ? 'live' : 'gone',
    `last heard ${formatTime(member.heartbeat_at)}`,
    member.live ? (member.health_url ?? '') : '',
  ]);
  const runs = status.runs.map((run) => [
    String(run.run_id),
    kindTitle(run.kind),
    run.state.replaceAll('_', ' '),
    run.target_key,
    formatCount(run.rows_examined),
    formatCount(run.fields_failed),
    run.held_back_by ?? '',
  ]);
  const queue = status.queue === null ? 'not in use yet' : `${status.queue.backend} (${status.queue.prefix})`;
  return [
    ...status.keyrings.flatMap((keyring) => keyringLines(keyring, status.last_backup, output)),
    ...status.fence_troubles.map(
      ({ table, troubles }) => `${output.paint('watch', `fence of ${table}`)}: ${troubles.join('; ')}`,
    ),
    output.paint('strong', 'members'),
    ...(members.length === 0 ? ['  none'] : tableLines(['', '', '', ''], members).slice(1)),
    '',
    output.paint('strong', 'runs'),
    ...(runs.length === 0 ? ['  none'] : tableLines(['run', 'kind', 'state', 'toward', 'rows', 'failed', ''], runs)),
    '',
    `${output.paint('strong', 'queue')} ${queue}; ${supervisorWords(status)}`,
    ...(status.pace === null ? [] : [`${output.paint('strong', 'pace')} ${paceWords(status.pace)}`]),
    ...(status.pace?.reason == null ? [] : [`  held back by ${status.pace.reason}`]),
    '',
    `next: ${status.next}`,
  ];
}

function supervisorWords({ supervisor, supervisor_health_url: url }: StatusReport): string {
  if (!supervisor) return 'no live supervisor';
  return url === null ? 'a supervisor is live' : `a supervisor is live at ${url}`;
}

function keyringLines(
  keyring: KeyringStatus,
  lastBackup: StatusReport['last_backup'],
  output: Output,
): readonly string[] {
  const age = keyring.active_key_age_days === null ? '' : `, ${keyring.active_key_age_days} days old`;
  const others = [
    ['standby', keyring.staged_key === null ? [] : [`${keyring.staged_key}, ${standbyWords(keyring)}`]],
    ['decrypt only', keyring.decrypt_only_keys],
    ['retired', keyring.retired_keys],
    ['to destroy', keyring.pending_destructions.map(pendingWords)],
    ['behind', keyring.laggards],
    ['quarantine', keyring.cells_in_quarantine === 0 ? [] : [countOf(keyring.cells_in_quarantine, 'cell')]],
  ] as const;
  return [
    `${output.paint('strong', `keyring ${keyring.keyring}`)}, generation ${keyring.generation}, ${countOf(keyring.targets, 'target')}`,
    `  active        ${keyring.active_key ?? 'none'}${age}`,
    `  cryptoperiod  ${periodWords(keyring)}`,
    ...usageLines(keyring),
    ...others
      .filter(([, names]) => names.length > 0)
      .map(([title, names]) => `  ${title.padEnd(13)} ${names.join(', ')}`),
    `  coverage      ${coverageWords(keyring)}`,
    ...nonEnvelopesLines(keyring.not_envelopes, output),
    ...(keyring.schedule === null ? [] : [`  schedule      ${scheduleWords(keyring.schedule)}`]),
    ...lazyLines(keyring.lazy),
    ...(keyring.unbacked_keys.length > 0 || lastBackup === null
      ? unbackedWords(keyring.unbacked_keys)
      : [`  backup        every key; the last ${describeAge(lastBackup.age_seconds)} ago (${lastBackup.file_name})`]),
    '',
  ];
}

function periodWords({ cryptoperiod_left_days: left }: KeyringStatus): string {
  if (left === null) return 'no active key';
  return left >= 0 ? `${left} days left` : `over for ${-left} days; rotate with: keyturn key rotate`;
}

/** Where the algorithm sets a limit. */
function usageLines({
  encryptions,
  encryption_limit: limit,
  encryptions_near_limit: isNear,
}: KeyringStatus): readonly string[] {
  if (encryptions === null || limit === null) return [];
  const share = (encryptions / limit) * 100;
  return [
    `  encryptions   ${formatCount(encryptions)} of ${formatCount(limit)} (${share.toFixed(1)} %)${isNear ? '; rotate with: keyturn key rotate' : ''}`,
  ];
}

function standbyWords({ staged_key_behind: behind }: KeyringStatus): string {
  return behind.length === 0 ? 'ready to be activated' : `not ready: ${behind.join('; ')}`;
}

function scheduleWords({ latest, next_at }: NonNullable<KeyringStatus['schedule']>): string {
  const next = `next rotation ${formatTime(next_at)}`;
  if (latest === null || latest.state === 'done' || latest.state === 'cancelled') return next;
  if (latest.state === 'failed') return `${next}; that of ${formatTime(latest.due_at)} failed: ${latest.cause ?? ''}`;
  const until =
    latest.state === 'gradual' && latest.gradual_until !== null ? ` until ${formatTime(latest.gradual_until)}` : '';
  const over = latest.over_by === null ? '' : `, to be over by ${formatTime(latest.over_by)}`;
  const waits = latest.waits_for === null ? '' : `; waits: ${latest.waits_for}`;
  return `rotation of ${formatTime(latest.due_at)} is ${latest.state}${until}${over}${latest.is_late ? ', late' : ''}${waits}`;
}

/** What reads have moved, and what is left; nothing where there is no other key. */
function lazyLines(lazy: KeyringStatus['lazy']): readonly string[] {
  if (lazy === null || (lazy.stale_cells === 0 && lazy.rows_updated === 0)) return [];
  const left =
    lazy.stale_cells === null
      ? 'how many cells are left this role cannot count'
      : `${lazy.is_exact ? '' : 'about '}${formatCount(lazy.stale_cells)} cells left`;
  const words = `  by reads      ${formatCount(lazy.cells_reencrypted)} cells moved, ${left}${lazy.is_on ? '' : '; switched off'}`;
  return lazy.advice === null ? [words] : [words, `  a bulk run    is wise: ${lazy.advice}`];
}

function nonEnvelopesLines(found: KeyringStatus['not_envelopes'], output: Output): readonly string[] {
  return (found ?? []).map(
    ({ column, cells, not_envelopes: others, is_exact: isExact }) =>
      `  ${output.paint('watch', 'values')}        ${formatCount(others)} of ${formatCount(cells)}${isExact ? '' : ' in a sample'} of ${column} are no envelopes; see: keyturn doctor`,
  );
}

function pendingWords({ key, request, hash, not_before: time, requested_by: by }: DestructionReport): string {
  return `${key}: request ${request} of ${by}, from ${formatTime(time)} on, hash ${hash}`;
}

/** What the newest run toward the active key knows. */
function coverageWords(keyring: KeyringStatus): string {
  const run = keyring.last_run;
  if (run !== null && run.state === 'succeeded' && run.verified_at !== null)
    return `every cell named the active key when run ${run.run_id} verified it, ${formatTime(run.verified_at)}`;
  if (run !== null) return `not complete: run ${run.run_id} is ${run.state.replaceAll('_', ' ')}`;
  return keyring.decrypt_only_keys.length === 0 ? 'there is no other key' : 'unknown: no run toward the active key yet';
}
