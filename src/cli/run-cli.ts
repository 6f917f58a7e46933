// From arguments to an exit code. Whatever a command throws ends here: one sentence on stderr and, with --json, one object
// on stdout in place of the report.
import { CommanderError } from 'commander';
import { exitCodes } from '../errors.js';
import { createCli } from './cli.js';
import { describeFailure, type Failure } from './failure.js';
import { toJson } from './json.js';
import { createProgram } from './program.js';
import type { Surroundings } from './surroundings.js';

export async function runCli(args: readonly string[], surroundings: Surroundings): Promise<number> {
  const { program, cli } = createProgram(surroundings, (configFile) => createCli(surroundings, configFile));
  const isJson = args.includes('--json');
  try {
    await program.parseAsync(args, { from: 'user' });
    return cli.exitCode;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return 0;
    const failure =
      error instanceof CommanderError
        ? usageFailure(error)
        : describeFailure(error, surroundings.environment['LOG_LEVEL']);
    // Commander has said it already.
    if (!(error instanceof CommanderError)) surroundings.stderr.write(`keyturn: ${failure.message}\n`);
    if (isJson && !cli.hasReported) surroundings.stdout.write(`${toJson({ error: failure.error })}\n`);
    return failure.exitCode;
  }
}

function usageFailure(error: CommanderError): Failure {
  const message = error.message.replace(/^error: /, '');
  return { exitCode: exitCodes.invalid, message, error: { code: 'USAGE', kind: 'invalid', message, details: {} } };
}
