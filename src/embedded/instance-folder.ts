// One folder per embedded server: its owner's record beside data, log and (where needed) a copy of the binaries.
// The record is what lets the next start tell a running server from one whose owner was killed, and sweep the latter.

import { execFileSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { hostname } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

export interface InstanceFolder {
  readonly path: string;
  readonly data: string;
  readonly log: string;
  readonly passwordFile: string;
}

const prefix = 'keyturn-postgres-';

// Between making the folder and recording its owner lie microseconds; a minute is far beyond any pause there.
const unrecordedGraceMs = 60_000;

export function createInstanceFolder(parent: string): InstanceFolder {
  const path = mkdtempSync(join(parent, prefix));
  writeFileSync(join(path, 'owner'), describeOwner(process.pid));
  // mkdtemp makes it 0700; the server's account must be able to cross it.
  chmodSync(path, 0o755);
  return describeFolder(path);
}

function describeFolder(path: string): InstanceFolder {
  return { path, data: join(path, 'data'), log: join(path, 'server.log'), passwordFile: join(path, 'password') };
}

export function removeInstanceFolder(folder: InstanceFolder): void {
  // A last backend may still be writing while it dies; a short wait is enough then.
  rmSync(folder.path, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
}

/** Stops the servers and removes the folders whose owner died without doing so. Returns the folders removed. */
export async function sweepDeadOwners(parent: string): Promise<readonly string[]> {
  const swept: string[] = [];
  for (const name of readdirSync(parent)) {
    if (!name.startsWith(prefix)) continue;
    const folder = describeFolder(join(parent, name));
    if (!isAbandoned(folder) || !(await stopAbandonedServer(folder))) continue;
    try {
      removeInstanceFolder(folder);
    } catch (error) {
      // Another start may be sweeping the same folder.
      if (existsSync(folder.path)) throw error;
    }
    swept.push(folder.path);
  }
  return swept;
}

function isAbandoned(folder: InstanceFolder): boolean {
  const found = lstatSync(folder.path, { throwIfNoEntry: false });
  // In a shared temporary folder anybody may use our prefix; only our own user's record is believed.
  if (found === undefined || found.uid !== (process.getuid?.() ?? found.uid)) return false;
  const recorded = readIfThere(join(folder.path, 'owner'));
  if (recorded === undefined) return Date.now() - found.mtimeMs > unrecordedGraceMs;
  const [pid, host] = recorded.split('\n');
  // Another host's (or container's) process ids say nothing here.
  if (host !== hostname()) return false;
  return !isAlive(Number(pid)) || describeOwner(Number(pid)) !== recorded;
}

/** Process ids are reused, so the record also holds when the process started, where the system can tell. */
function describeOwner(pid: number): string {
  return [pid, hostname(), startOf(pid)].join('\n');
}

function startOf(pid: number): string {
  if (process.platform === 'linux') return readStat(pid)?.start ?? '';
  return process.platform === 'win32' ? '' : askPs(pid, 'lstart');
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return error instanceof Error && 'code' in error && error.code === 'EPERM';
  }
  // A dead process that nobody has collected still answers signal 0.
  return process.platform !== 'linux' || !['Z', 'X', undefined].includes(readStat(pid)?.state);
}

function readStat(pid: number): { readonly state: string | undefined; readonly start: string | undefined } | undefined {
  const stat = readIfThere(`/proc/${pid}/stat`);
  if (stat === undefined) return undefined;
  // The second field is the command in brackets and may hold anything, so count from its end: field 3 is the state,
  // field 22 the start time in clock ticks since boot.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return { state: fields[0], start: fields[19] };
}

/** Processes end and other starts sweep while we look, so a file that has gone is an answer. */
function readIfThere(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}

function askPs(pid: number, column: 'lstart' | 'command'): string {
  try {
    return execFileSync('ps', ['-o', `${column}=`, '-p', String(pid)], { encoding: 'utf8' }).trim();
  } catch {
    // ps exits with 1 when there is no such process.
    return '';
  }
}

/** The process id in the server's own lock file, which is there exactly while it runs. */
export function findServerPid(folder: InstanceFolder): number | undefined {
  const pid = Number.parseInt(readIfThere(join(folder.data, 'postmaster.pid')) ?? '', 10);
  return pid > 0 ? pid : undefined;
}

/** True when no server of this folder is left. */
async function stopAbandonedServer(folder: InstanceFolder): Promise<boolean> {
  const pid = findServerPid(folder);
  if (pid === undefined || !isAlive(pid)) return true;
  // Before anything is killed: is it this folder's server, and not a process that got its number? The end of the path
  // is random, and the beginning may have been spelled another way (/tmp is a link on some systems).
  const command = process.platform === 'linux' ? (readIfThere(`/proc/${pid}/cmdline`) ?? '') : askPs(pid, 'command');
  if (command === '') return false;
  if (!command.includes(join(basename(folder.path), 'data'))) return true;
  for (const signal of ['SIGQUIT', 'SIGKILL'] as const) {
    process.kill(pid, signal);
    const deadline = performance.now() + 5_000;
    while (performance.now() < deadline) {
      if (!isAlive(pid)) return true;
      await delay(20);
    }
  }
  return false;
}
