// member list, forget.
import type { Command } from 'commander';
import { forget, listMemberListings, type ForgetReport, type MembersReport } from '../../control/members.js';
import type { Cli } from '../cli.js';
import { describeSeconds } from '../duration.js';
import { teach } from '../help.js';
import type { Output } from '../output.js';

export function addMemberCommands(program: Command, cli: Cli): void {
  const member = program
    .command('member')
    .description('The processes that hold keys: list them, forget one that will not come back.');

  teach(
    member
      .command('list')
      .description('List every member with what it holds of each keyring, and the expected ones that are missing.')
      .option('--json', 'print one JSON object')
      .action((options: { json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const report = await listMemberListings(context);
          output.report(report, () => memberLines(report, output));
        }),
      ),
    {
      changes: 'nothing. A member is live until 45 s after its last heartbeat; a silent one is shown for a day.',
      examples: [['keyturn member list', 'who holds a rotation back, and with which generation']],
    },
  );

  teach(
    member
      .command('forget')
      .description('Forget a member that will not come back, and expect its name no longer.')
      .argument('<member>', 'name (every process of that name) or id (one), as keyturn member list shows them')
      .option('--live', 'also one that was heard in the last 45 s: it was killed and cannot come back')
      .option('--reason <text>', 'why, for the audit record')
      .option('--json', 'print one JSON object')
      .action((word: string, options: { live?: true; reason?: string; json?: true }) =>
        cli.run({ isJson: options.json, file: 'none' }, async ({ context, output }) => {
          const report = await forget(context, word, { evenLive: options.live === true, reason: options.reason });
          output.report(report, () => forgetLines(word, report));
        }),
      ),
    {
      changes:
        'the member rows, and the list of expected names. The process itself is not touched: where it is alive after all, it reports again within seconds and is waited for again. The next keyturn init expects the name again while keyturn.yaml lists it.',
      examples: [
        ['keyturn member forget billing --reason "host replaced"', 'a silent one'],
        ['keyturn member forget billing --live --reason "killed"', 'without waiting for its 45 s'],
      ],
      exits: { 3: 'no such member', 4: 'it is live, and --live was not given' },
    },
  );
}

function memberLines({ members, missing }: MembersReport, output: Output): readonly string[] {
  if (members.length === 0 && missing.length === 0) return ['no process holds keys'];
  return [
    ...members.flatMap((member) => [
      `${output.paint('strong', member.member)}  ${member.live ? 'live' : output.paint('watch', 'silent')}, heard ${describeSeconds(member.silent_seconds)} ago${member.expected ? ', expected' : ''}`,
      `  id ${member.id}, version ${member.version}, formats ${member.formats.join(', ')}, algorithms ${member.algorithms.join(', ')}`,
      ...member.keyrings.map(
        (held) =>
          `  ${held.keyring}: generation ${held.generation}${held.generation === held.newest_generation ? '' : ` of ${held.newest_generation}`}, writes with ${held.writes_with ?? 'no key'}, holds ids ${held.holds_key_ids.join(', ')}`,
      ),
    ]),
    ...missing.map((name) => `${output.paint('bad', name)}  expected and not live: it holds the next activation back`),
  ];
}

function forgetLines(word: string, report: ForgetReport): readonly string[] {
  return [
    ...report.forgotten.map((title) => `${title} is forgotten`),
    ...(report.no_longer_expected
      ? [`${word} is not expected any more; take it out of keyturn.yaml, or the next keyturn init expects it again`]
      : []),
    ...report.if_alive.map((words) => `if it is alive after all: ${words}`),
  ];
}
