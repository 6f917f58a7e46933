// The log: pino, JSON lines on stderr, errors reduced to what I7 allows. Our errors carry ids and codes by construction;
// of anything else only its class is shown, since a driver's or a bug's message may hold values.
import pino, { type Logger } from 'pino';
import { KeyturnError } from '../errors.js';

export type { Logger } from 'pino';

export function createLogger(options: { level: string; name: string }): Logger {
  return pino(
    { level: options.level, base: { name: options.name, pid: process.pid }, serializers: { err: describeError } },
    pino.destination({ fd: 2, sync: true }),
  );
}

/** Code, kind and details of our errors; class, code and stack positions of others. */
export function describeError(error: unknown): Record<string, unknown> {
  if (error instanceof KeyturnError)
    return { code: error.code, kind: error.kind, message: error.message, details: error.details };
  if (error instanceof Error) return { type: error.constructor.name, at: stackPositions(error) };
  return { type: typeof error };
}

/** Where, without what: the first line of a stack is the message. */
function stackPositions(error: Error): string[] {
  return (error.stack ?? '')
    .split('\n')
    .filter((line) => /^\s+at /.test(line))
    .slice(0, 8)
    .map((line) => line.trim());
}
