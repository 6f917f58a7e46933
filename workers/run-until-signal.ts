// Life of a long-running process: start, run until SIGTERM or SIGINT, drain, exit. A second signal does not wait.
import { hostname } from 'node:os';
import type { LongRunning, ProcessOptions } from '../src/app-runners.js';
import { exitCodes, KeyturnError } from '../src/errors.js';

const signalExitCodes = { SIGTERM: 143, SIGINT: 130 } as const;
/** Under `npm run` one Ctrl-C arrives twice: npm passes on what the terminal has sent to the whole group already. */
const echoMs = 500;

export async function runUntilSignal(start: (options: ProcessOptions) => Promise<LongRunning>): Promise<void> {
  const starting = new AbortController();
  let requested: keyof typeof signalExitCodes | undefined;
  let requestedAtMs = Infinity;
  let running: LongRunning | undefined;
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      if (performance.now() - requestedAtMs > echoMs) process.exit(signalExitCodes[signal]);
      if (requested !== undefined) return;
      requested = signal;
      requestedAtMs = performance.now();
      starting.abort();
      void running?.stop();
    });
  }
  try {
    running = await start({
      environment: process.env,
      name: process.env['KEYTURN_MEMBER'] ?? hostname(),
      signal: starting.signal,
    });
    if (requested !== undefined) await running.stop();
    await running.ended;
    process.exit(requested === undefined ? 0 : signalExitCodes[requested]);
  } catch (error) {
    await running?.stop();
    if (!(error instanceof KeyturnError)) throw error;
    process.stderr.write(`keyturn: ${error.message}\n`);
    process.exit(exitCodes[error.kind]);
  }
}
