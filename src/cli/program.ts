// The command line as a whole: every command, the options they share, and how commander prints.
import { Command, type Option } from 'commander';
import type { Cli } from './cli.js';
import { addAdoptCommand } from './commands/adopt.js';
import { addAuditCommands } from './commands/audit.js';
import { addBackupCommands } from './commands/backup.js';
import { addCompromiseCommand } from './commands/compromise.js';
import { addKeyCommands } from './commands/key.js';
import { addMemberCommands } from './commands/member.js';
import { addOverviewCommands } from './commands/overview.js';
import { addProcessCommands } from './commands/processes.js';
import { addQuarantineCommands } from './commands/quarantine.js';
import { addRebindCommand } from './commands/rebind.js';
import { addRunningCommands } from './commands/reencrypt.js';
import { addRootCommands } from './commands/root.js';
import { addRunCommands } from './commands/run.js';
import { addScheduleCommands } from './commands/schedule.js';
import { addTargetCommands } from './commands/target.js';
import { generalHelp } from './help.js';
import type { Surroundings } from './surroundings.js';

/** `createCli` is given how to ask for the value of --config. */
export function createProgram(
  surroundings: Surroundings,
  createCli: (configFile: () => string | undefined) => Cli,
): { program: Command; cli: Cli } {
  const { stdout, stderr, version } = surroundings;
  const program = new Command('keyturn')
    .description('Turns the keys of encrypted PostgreSQL columns while the application goes on.')
    .version(version, '-V, --version', 'print the version')
    .option('--config <file>', 'keyturn.yaml (default: KEYTURN_CONFIG, then ./keyturn.yaml)')
    .helpOption('-h, --help', 'show help')
    .configureHelp({
      showGlobalOptions: true,
      helpWidth: 100,
      visibleGlobalOptions: (command) => globalOptionsOf(command),
    })
    .configureOutput({
      writeOut: (text) => stdout.write(text),
      writeErr: (text) => stderr.write(text),
      outputError: (text, write) => write(text.replace(/^error: /, 'keyturn: ')),
    })
    .showHelpAfterError('(add --help to see how it is used)')
    .exitOverride();
  const cli = createCli(() => program.opts<{ config?: string }>().config);
  addOverviewCommands(program, cli);
  addTargetCommands(program, cli);
  addCompromiseCommand(addKeyCommands(program, cli), cli);
  addRootCommands(program, cli);
  addRunningCommands(program, cli);
  addRunCommands(program, cli);
  addAdoptCommand(program, cli);
  addRebindCommand(program, cli);
  addAuditCommands(program, cli);
  addBackupCommands(program, cli);
  addQuarantineCommands(program, cli);
  addMemberCommands(program, cli);
  addScheduleCommands(program, cli);
  addProcessCommands(program, cli);
  // Last, so that it does not become the help of every command.
  program.addHelpText('after', generalHelp);
  return { program, cli };
}

/** Those worth repeating in the help of a command. */
function globalOptionsOf(command: Command): Option[] {
  return command.parent === null ? [] : outermost(command).options.filter((option) => option.long === '--config');
}

function outermost(command: Command): Command {
  return command.parent === null ? command : outermost(command.parent);
}
