// The supervisor and workers of `--local N`: child processes for the duration of one command. They are the same programs
// as `keyturn supervisor` and `keyturn worker`, in process groups of their own, so that Ctrl-C reaches the command alone
// and the command drains them.
import { spawn, type ChildProcess } from 'node:child_process';
import { hostname } from 'node:os';
import { createInterface } from 'node:readline';
import type { ControlContext } from '../control/context.js';
import { areMembers, requireRoots } from '../control/readiness.js';
import { findRunners } from '../control/runs.js';
import { KeyturnError } from '../errors.js';
import type { Surroundings } from './surroundings.js';

/** One of them ended before it was told to. */
export class RunnerEnded extends Error {
  constructor(
    readonly exitCode: number,
    message: string,
  ) {
    super(message);
  }
}

export interface LocalRunners {
  /** Rejects with RunnerEnded; never resolves. */
  readonly failed: Promise<never>;
  /**
   * Checks the root keys, starts a supervisor unless one is live, then the workers: a new supervisor may choose another
   * queue than the last one, and workers that were there before it would be on the old one.
   */
  start(context: ControlContext): Promise<void>;
  /** Starts a supervisor when there is none any more: another command's may have ended with it. */
  keepSupervised(context: ControlContext): Promise<void>;
  /** Ends them all in good order; a second signal after ten seconds makes them drop what they have in hand. Safe twice. */
  drain(): Promise<void>;
}

export interface LocalRunnersOptions {
  readonly surroundings: Surroundings;
  /** A copy from before root keys were read: providers remove what they have read. */
  readonly environment: NodeJS.ProcessEnv;
  readonly workers: number;
}

const pollMs = 100;
const readyDeadlineMs = 60_000;
const patienceMs = 10_000;
/** What an exit without a code of its own counts as: it is not there now. */
const unavailableExitCode = 7;

export function createLocalRunners(options: LocalRunnersOptions): LocalRunners {
  const running = new Map<ChildProcess, Promise<void>>();
  let isDraining = false;
  let reject: (error: RunnerEnded) => void = () => undefined;
  const failed = new Promise<never>((_, rejectFailed) => {
    reject = rejectFailed;
  });
  // Whoever awaits it sees it; a command that is past caring must not end with an unhandled rejection.
  failed.catch(() => undefined);

  function startOne(role: 'worker' | 'supervisor'): ChildProcess {
    const child = spawnRunner(options, role);
    const lastWords = listen(options, child);
    const end = (code: number | null, signal: string | null): void => {
      running.delete(child);
      if (!isDraining) reject(runnerEnded(role, { code, signal, lastWords: lastWords() }));
    };
    // One that could not be started at all has no other event.
    child.once('error', () => end(null, null));
    running.set(child, new Promise((resolve) => child.once('close', resolve)));
    child.once('close', end);
    return child;
  }

  async function keepSupervised(context: ControlContext): Promise<void> {
    if (!isDraining && !(await findRunners(context)).hasSupervisor) startOne('supervisor');
  }

  const untilReady = (what: string, isReady: () => Promise<boolean>): Promise<void> =>
    Promise.race([waitUntil(what, isReady), failed]);

  return {
    failed,
    async start(context) {
      await requireRoots(context);
      await keepSupervised(context);
      await untilReady('supervisor', async () => (await findRunners(context)).hasSupervisor);
      const workers = Array.from({ length: options.workers }, () => startOne('worker'));
      const pids = workers.flatMap((worker) => worker.pid ?? []);
      await untilReady('workers', () => areMembers(context, { host: hostname(), pids }));
    },
    keepSupervised,
    async drain() {
      isDraining = true;
      for (const child of running.keys()) child.kill('SIGTERM');
      const impatience = setTimeout(() => {
        for (const child of running.keys()) child.kill('SIGTERM');
      }, patienceMs);
      const lastResort = setTimeout(() => {
        for (const child of running.keys()) child.kill('SIGKILL');
      }, 2 * patienceMs);
      await Promise.all(running.values());
      clearTimeout(impatience);
      clearTimeout(lastResort);
    },
  };
}

function spawnRunner({ surroundings, environment }: LocalRunnersOptions, role: 'worker' | 'supervisor'): ChildProcess {
  return spawn(
    process.execPath,
    ['--import', new URL('./end-with-parent.js', import.meta.url).href, surroundings.entries[role]],
    {
      // Without a wish for logs they would only be thrown away.
      // A port of their own each: the command's may be taken by a service on this machine, and there are several of them.
      env: { ...environment, LOG_LEVEL: environment['LOG_LEVEL'] ?? 'silent', HOST: '', PORT: '' },
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      detached: true,
    },
  );
}

/** Passes the child's log on where one was asked for; answers the last sentence that was meant for people. */
function listen({ surroundings, environment }: LocalRunnersOptions, child: ChildProcess): () => string | undefined {
  let lastWords: string | undefined;
  const { stderr } = child;
  if (stderr === null) throw new Error('the stderr of a local runner is piped above');
  createInterface({ input: stderr }).on('line', (line) => {
    if (line.startsWith('keyturn: ')) lastWords = line.slice('keyturn: '.length);
    // Log lines are JSON; what else a dying process prints may hold values.
    else if (environment['LOG_LEVEL'] !== undefined && line.startsWith('{')) surroundings.stderr.write(`${line}\n`);
  });
  return () => lastWords;
}

function runnerEnded(
  role: string,
  end: { code: number | null; signal: string | null; lastWords: string | undefined },
): RunnerEnded {
  if (end.signal !== null)
    return new RunnerEnded(
      unavailableExitCode,
      `the local ${role} was ended by ${end.signal}; repeat the command to go on`,
    );
  if (end.lastWords !== undefined)
    return new RunnerEnded(end.code ?? unavailableExitCode, `the local ${role} cannot work: ${end.lastWords}`);
  if (end.code === null) return new RunnerEnded(unavailableExitCode, `the local ${role} could not be started`);
  return new RunnerEnded(end.code, `the local ${role} ended with exit code ${end.code}; LOG_LEVEL=info shows its log`);
}

async function waitUntil(what: string, isReady: () => Promise<boolean>): Promise<void> {
  const until = performance.now() + readyDeadlineMs;
  while (!(await isReady())) {
    if (performance.now() > until) {
      throw new KeyturnError(
        'NO_WORKERS',
        `the local ${what} were not ready after ${readyDeadlineMs / 1_000} s; LOG_LEVEL=info shows the log`,
      );
    }
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}
