// The server processes: creating the data folder, launching, knowing when it is ready, stopping. Which binaries run,
// under which account and in which folder is settled before.

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { KeyturnError } from '../errors.js';
import { type Account, giveTo, identityOf } from './account.js';
import { serverEnvironment } from './binaries.js';
import { findFreePort } from './free-port.js';
import { findServerPid, type InstanceFolder, removeInstanceFolder } from './instance-folder.js';

const initialiseDeadlineMs = 60_000;
const readyDeadlineMs = 30_000;
const fastStopMs = 10_000;
const immediateStopMs = 5_000;
const maxPortAttempts = 5;

const superuser = 'postgres';

export interface ServerPlan {
  readonly binaries: string;
  readonly account: Account | undefined;
  readonly folder: InstanceFolder;
  readonly password: string;
  readonly settings: Readonly<Record<string, string>>;
}

export interface RunningServer {
  readonly url: string;
  readonly port: number;
  readonly pid: number;
}

/** Created for data that is thrown away: killed processes lose nothing, a power cut may lose all. */
const throwawaySettings: Readonly<Record<string, string>> = {
  fsync: 'off',
  full_page_writes: 'off',
  max_connections: '200',
};

/** One server over its lifetime; at any moment at most one child process, which `stop` and `abandon` end. */
export class EmbeddedServer {
  readonly #plan: ServerPlan;
  #child: StartedChild | undefined;

  constructor(plan: ServerPlan) {
    this.#plan = plan;
  }

  async initialise(): Promise<void> {
    const { folder, account, password } = this.#plan;
    mkdirSync(folder.data);
    giveTo(account, folder.data, 0o700);
    writeFileSync(folder.passwordFile, password, { mode: 0o600 });
    giveTo(account, folder.passwordFile, 0o600);
    try {
      const child = this.#start('initdb', [
        `--pgdata=${folder.data}`,
        `--username=${superuser}`,
        `--pwfile=${folder.passwordFile}`,
        '--auth=scram-sha-256',
        '--encoding=UTF8',
        '--no-locale',
        '--no-sync',
        '--no-instructions',
      ]);
      const end = await withDeadline(child.ended, initialiseDeadlineMs);
      if (end !== 'exited with code 0') throw this.#failure(`initdb ${end ?? `took over ${initialiseDeadlineMs} ms`}`);
    } finally {
      rmSync(folder.passwordFile, { force: true });
    }
  }

  /** Launches on a free port; `findPort` is a parameter so that a test can lose the race for one. */
  async launch(findPort: () => Promise<number> = findFreePort): Promise<RunningServer> {
    const { folder, settings, password } = this.#plan;
    for (let attempt = 1; ; attempt += 1) {
      const port = await findPort();
      const child = this.#start('postgres', [
        '-D',
        folder.data,
        ...toArguments(throwawaySettings),
        ...toArguments(settings),
        // Last, since the last one counts: where it listens is not the caller's to change.
        ...toArguments({ listen_addresses: '127.0.0.1', unix_socket_directories: '', port: String(port) }),
      ]);
      const url = `postgres://${superuser}:${password}@127.0.0.1:${port}/postgres`;
      const obstacle = await this.#waitUntilReady(url, child);
      if (obstacle === undefined && child.process.pid !== undefined) return { url, port, pid: child.process.pid };
      // Between finding a free port and binding it somebody else may have taken it.
      const lostPort = readTail(folder.log).includes('could not create any TCP/IP sockets');
      if (!lostPort || attempt === maxPortAttempts) throw this.#failure(`server ${obstacle}`);
    }
  }

  /** Fast stop, then immediate, then kill; afterwards neither process nor folder is left. */
  async stop(): Promise<void> {
    const child = this.#child;
    if (child !== undefined && isRunning(child.process)) {
      child.process.kill('SIGINT');
      if ((await withDeadline(child.ended, fastStopMs)) === undefined) {
        child.process.kill('SIGQUIT');
        if ((await withDeadline(child.ended, immediateStopMs)) === undefined) {
          child.process.kill('SIGKILL');
          await child.ended;
        }
      }
    }
    removeInstanceFolder(this.#plan.folder);
  }

  /** The same without the event loop, for an owner that is ending: immediate stop, bounded wait, removal. */
  abandon(): void {
    const child = this.#child?.process;
    if (child !== undefined && isRunning(child)) {
      child.kill('SIGQUIT');
      const clock = new Int32Array(new SharedArrayBuffer(4));
      const deadline = performance.now() + immediateStopMs;
      while (findServerPid(this.#plan.folder) !== undefined && performance.now() < deadline) {
        Atomics.wait(clock, 0, 0, 10);
      }
      killGroup(child);
    }
    removeInstanceFolder(this.#plan.folder);
  }

  #start(tool: 'initdb' | 'postgres', args: readonly string[]): StartedChild {
    const { binaries, folder, account } = this.#plan;
    const log = openSync(folder.log, 'a', 0o600);
    try {
      const child = spawn(join(binaries, 'bin', tool), args, {
        // The account may not be able to enter the owner's working directory; its own it can.
        cwd: folder.data,
        env: serverEnvironment,
        stdio: ['ignore', log, log],
        // A process group of its own: Ctrl-C in the owner's terminal reaches the owner, who decides when this stops.
        detached: true,
        ...identityOf(account),
      });
      this.#child = { process: child, ended: describeEnd(child) };
      return this.#child;
    } finally {
      closeSync(log);
    }
  }

  /** Undefined once an authenticated connection worked, else what prevented it. */
  async #waitUntilReady(url: string, child: StartedChild): Promise<string | undefined> {
    const deadline = performance.now() + readyDeadlineMs;
    while (performance.now() < deadline) {
      // If our server lost the port, its new holder may let us wait for an answer; the exit tells sooner.
      if ((await Promise.race([answers(url), child.ended])) === true) return undefined;
      const end = await withDeadline(child.ended, 20);
      if (end !== undefined) return end;
    }
    return `did not answer within ${readyDeadlineMs} ms`;
  }

  #failure(what: string): KeyturnError {
    const log = readTail(this.#plan.folder.log);
    return new KeyturnError(
      'DATABASE_UNAVAILABLE',
      `the embedded PostgreSQL did not start (${what}): see its last log lines, or set DATABASE_URL\n${log}`,
    );
  }
}

interface StartedChild {
  readonly process: ChildProcess;
  /** Resolves when the process is gone, to how it ended. Never rejects. */
  readonly ended: Promise<string>;
}

function describeEnd(child: ChildProcess): Promise<string> {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(`could not be run (${error.message})`));
    child.once('exit', (code, signal) => resolve(signal === null ? `exited with code ${code}` : `died of ${signal}`));
  });
}

function isRunning(child: ChildProcess): boolean {
  return child.pid !== undefined && child.exitCode === null && child.signalCode === null;
}

/** initdb has server processes of its own, which would go on filling the folder while it is removed. */
function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return;
  try {
    process.kill(process.platform === 'win32' ? child.pid : -child.pid, 'SIGKILL');
  } catch {
    // Nobody of the group is left, which is what we want.
  }
}

/** What the promise gives, or undefined when it takes longer than `deadlineMs`. */
async function withDeadline<T>(promise: Promise<T>, deadlineMs: number): Promise<T | undefined> {
  const timer = new AbortController();
  const late = delay(deadlineMs, undefined, { signal: timer.signal }).catch(() => undefined);
  try {
    return await Promise.race([promise, late]);
  } finally {
    timer.abort();
  }
}

async function answers(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  // A server that dies between answering and our goodbye is noticed by its exit, not here.
  client.on('error', () => undefined);
  try {
    await client.connect();
    try {
      await client.query('SELECT 1');
      return true;
    } finally {
      await client.end();
    }
  } catch {
    // Refused, still starting up, or another server's port: the caller looks at the clock and at the child.
    return false;
  }
}

function toArguments(settings: Readonly<Record<string, string>>): string[] {
  return Object.entries(settings).flatMap(([name, value]) => ['-c', `${name}=${value}`]);
}

function readTail(log: string): string {
  return readFileSync(log, 'utf8').trimEnd().split('\n').slice(-15).join('\n');
}
