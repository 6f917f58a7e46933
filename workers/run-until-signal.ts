// Life of a long-running process: start, run until SIGTERM or SIGINT, drain, exit. A second signal does not wait; one is
// enough where draining waits for a database that does not answer.
import { hostname } from 'node:os';
import type { LongRunning, ProcessOptions } from '../src/app-runners.js';
import { exitCodes, KeyturnError } from '../src/errors.js';

const signalExitCodes = { SIGTERM: 143, SIGINT: 130 } as const;
/** For the slice in hand and the farewells: less than what service managers wait for before they kill. */
const drainWithinMs = 9_000;
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
      setTimeout(giveUp, drainWithinMs);
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

/** Not drained, so not the exit code of the signal. What was in hand is safe: its lease ends, another worker takes it. */
function giveUp(): never {
  process.stderr.write(
    `keyturn: not drained ${drainWithinMs / 1_000} s after the signal: the database does not answer; the batch in hand is taken back when its lease ends\n`,
  );
  process.exit(exitCodes.unavailable);
}
