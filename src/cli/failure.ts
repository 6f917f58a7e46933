// From what a command threw to what the operator sees: one sentence on stderr, an exit code, and with --json an object in
// place of the report. Of anything that is not ours only its class is shown: a driver's or a bug's message may hold values.
import { exitCodes, KeyturnError } from '../errors.js';
import { describeError } from '../telemetry/logging.js';
import { Interrupted } from './interruption.js';
import { RunnerEnded } from './local-runners.js';

export interface Failure {
  readonly exitCode: number;
  readonly message: string;
  readonly error: { readonly code: string; readonly kind: string; readonly message: string; readonly details: object };
}

export function describeFailure(error: unknown, logLevel: string | undefined): Failure {
  if (error instanceof KeyturnError) {
    return {
      exitCode: exitCodes[error.kind],
      message: error.message,
      error: { code: error.code, kind: error.kind, message: error.message, details: error.details },
    };
  }
  if (error instanceof RunnerEnded) {
    const kind = Object.entries(exitCodes).find(([, code]) => code === error.exitCode)?.[0] ?? 'bug';
    return {
      exitCode: error.exitCode,
      message: error.message,
      error: { code: 'NO_WORKERS', kind, message: error.message, details: {} },
    };
  }
  if (error instanceof Interrupted) {
    return {
      exitCode: error.exitCode,
      message: error.message,
      error: { code: 'INTERRUPTED', kind: 'interrupted', message: error.message, details: {} },
    };
  }
  const described = describeError(error);
  const isDebugging = logLevel === 'debug' || logLevel === 'trace';
  const where = isDebugging ? `: ${JSON.stringify(described)}` : '; LOG_LEVEL=debug shows where';
  const message = `an unexpected ${String(described['type'])} ended this command, which is a bug in keyturn${where}`;
  return { exitCode: 1, message, error: { code: 'BUG', kind: 'bug', message, details: {} } };
}
