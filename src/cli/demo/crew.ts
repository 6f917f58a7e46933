// The demo's child processes: supervisor and workers as they run in production, writer and reader as applications. Knows
// every one it started, notices the one that ends unasked, and ends them all. Each has a process group of its own, so
// that Ctrl-C reaches the demo alone, and a channel to the demo: when that closes, however the demo ended, it ends too.
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { releaseAtExit } from '../../embedded/exit-guard.js';
import { KeyturnError } from '../../errors.js';
import type { AppTasks } from './messages.js';
import { callTasks } from './task-caller.js';

export interface Service {
  readonly name: string;
  readonly pid: number;
  /** SIGKILL; resolves when the process is gone. */
  kill(): Promise<void>;
}

export interface App<Counts> {
  readonly name: string;
  readonly tasks: AppTasks<Counts>;
  /** Lets it leave the membership and end. */
  release(): Promise<void>;
}

export interface Crew {
  startService(name: string, file: string, environment: NodeJS.ProcessEnv): Service;
  /** Resolves when it has opened Keyturn. */
  startApp<Counts>(name: string, file: string, environment: NodeJS.ProcessEnv): Promise<App<Counts>>;
  /** Rejects when a child ends, or gives up, without having been told to. */
  readonly lost: Promise<never>;
  /** Ends every child. Safe twice; afterwards nothing starts any more. */
  stop(): Promise<void>;
}

interface Child {
  readonly name: string;
  readonly pid: number;
  readonly process: ChildProcess;
  readonly log: string;
  readonly ended: Promise<void>;
  isExpectedToEnd: boolean;
}

const stopPatienceMs = 8_000;
/** Makes a service drain, as on SIGTERM, when its channel closes. */
const endWithParent = new URL('../end-with-parent.js', import.meta.url).href;

/** `onLoss` hears the last log lines of a child that ended unasked; its log goes with the demo. */
export function createCrew(logFolder: string, onLoss: (lastLines: string) => void): Crew {
  const children = new Set<Child>();
  let isStopped = false;
  let rejectLost: (error: KeyturnError) => void = () => undefined;
  const lost = new Promise<never>((_, reject) => {
    rejectLost = reject;
  });
  // The story is raced against it; before and after that nobody listens.
  lost.catch(() => undefined);
  const withdraw = releaseAtExit(() => {
    for (const child of children) child.process.kill('SIGKILL');
  });

  function lose(child: Child, how: string): void {
    if (child.isExpectedToEnd) return;
    // One that gives up ends soon after; that is no second loss.
    child.isExpectedToEnd = true;
    onLoss(lastLinesOf(child.log));
    rejectLost(lossOf(child.name, how));
  }

  function start(name: string, args: readonly string[], environment: NodeJS.ProcessEnv): Child {
    if (isStopped) throw new Error(`${name} must not start: the demo is ending`);
    const log = join(logFolder, `${name}.log`);
    const output = openSync(log, 'a', 0o600);
    const spawned = spawn(process.execPath, args, {
      env: environment,
      stdio: ['ignore', output, output, 'ipc'],
      detached: true,
    });
    closeSync(output);
    const ended = new Promise<void>((resolve) => {
      spawned.once('exit', () => resolve());
      spawned.once('error', () => resolve());
    });
    if (spawned.pid === undefined) throw lossOf(name, 'could not be started');
    const child: Child = { name, pid: spawned.pid, process: spawned, log, ended, isExpectedToEnd: false };
    children.add(child);
    void ended.then(() => {
      children.delete(child);
      lose(child, endOf(spawned));
    });
    return child;
  }

  return {
    lost,
    startService(name, file, environment) {
      const child = start(name, ['--import', endWithParent, file], environment);
      return { name, pid: child.pid, kill: () => end(child, () => child.process.kill('SIGKILL')) };
    },
    async startApp<Counts>(name: string, file: string, environment: NodeJS.ProcessEnv) {
      const child = start(name, [file], environment);
      const { tasks, ready } = callTasks<Counts>(child.process, (words) => lose(child, `gave up: ${words}`));
      await Promise.race([ready, lost]);
      return { name, tasks, release: () => end(child, () => letGo(child.process)) };
    },
    async stop() {
      isStopped = true;
      await Promise.all([...children].map((child) => end(child, () => letGo(child.process))));
      withdraw();
    },
  };
}

/** It may have closed the channel itself a moment ago, while failing. */
function letGo(child: ChildProcess): void {
  if (child.connected) child.disconnect();
}

async function end(child: Child, how: () => void): Promise<void> {
  child.isExpectedToEnd = true;
  how();
  const patience = new AbortController();
  delay(stopPatienceMs, undefined, { signal: patience.signal }).then(
    () => child.process.kill('SIGKILL'),
    () => undefined,
  );
  await child.ended;
  patience.abort();
}

function endOf(child: ChildProcess): string {
  return child.signalCode === null
    ? `ended with exit code ${child.exitCode ?? 'unknown'}`
    : `died of ${child.signalCode}`;
}

const shownLogLines = 5;

/** Logs are free of secrets (I7), so they may be shown. */
function lastLinesOf(log: string): string {
  return readFileSync(log, 'utf8').trimEnd().split('\n').slice(-shownLogLines).join('\n');
}

function lossOf(name: string, how: string): KeyturnError {
  return new KeyturnError('RUN_INCOMPLETE', `the demo's ${name} ${how} before it was told to end; repeat the demo`, {
    child: name,
  });
}
