// A primary and a streaming replica from the system's PostgreSQL binaries (the embedded ones lack pg_basebackup): child
// processes on loopback with a folder of their own, which a test may stop, kill and start again.
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import pg from 'pg';
import { findDataParent, findServerAccount, giveTo, identityOf } from '../../src/embedded/account.js';
import { releaseAtExit } from '../../src/embedded/exit-guard.js';
import { findFreePort } from '../../src/embedded/free-port.js';
import { until } from './until.js';

const binaries = ['15', '16', '17', '14']
  .map((major) => `/usr/lib/postgresql/${major}/bin`)
  .find((folder) => existsSync(join(folder, 'pg_basebackup')));

/** False where Debian's PostgreSQL is not installed; says so once. */
export function canReplicate(): boolean {
  if (binaries !== undefined) return true;
  process.stdout.write(
    'PostgreSQL: no pg_basebackup found, tests with a replica are skipped (install postgresql-15)\n',
  );
  return false;
}

export interface ReplicatedPostgres {
  readonly primaryUrl: string;
  readonly replicaUrl: string;
  /** SIGSTOP and SIGCONT to the replica's receiver of WAL: it falls behind without its connection breaking. */
  freezeReceiver(): Promise<void>;
  thawReceiver(): void;
  killReplica(): Promise<void>;
  startReplica(): Promise<void>;
  stop(): Promise<void>;
}

const readyDeadlineMs = 30_000;

/** `settings` are the primary's. */
export async function startReplicatedPostgres(
  settings: Readonly<Record<string, string>> = {},
): Promise<ReplicatedPostgres> {
  if (binaries === undefined) throw new Error('ask canReplicate first');
  const account = findServerAccount();
  const folder = mkdtempSync(join(findDataParent(account), 'keyturn-replicated-'));
  giveTo(account, folder, 0o700);
  const data = { primary: join(folder, 'primary'), replica: join(folder, 'replica') };
  const running = new Map<keyof typeof data, ChildProcess>();
  const environment = { PATH: process.env['PATH'] ?? '', LC_ALL: 'C', TZ: 'UTC' };
  const run = (tool: string, args: readonly string[]): void => {
    const options = { cwd: folder, env: environment, stdio: 'pipe' as const, ...identityOf(account) };
    execFileSync(join(binaries, tool), args, options);
  };
  const release = (): void => {
    for (const child of running.values()) child.kill('SIGQUIT');
    rmSync(folder, { recursive: true, force: true, maxRetries: 10, retryDelay: 50 });
  };
  const withdraw = releaseAtExit(release);

  const ports = { primary: await findFreePort(), replica: await findFreePort() };
  const urlOf = (which: keyof typeof data): string => `postgres://postgres@127.0.0.1:${ports[which]}/postgres`;

  async function start(which: keyof typeof data, more: Readonly<Record<string, string>>): Promise<void> {
    const all = {
      listen_addresses: '127.0.0.1',
      unix_socket_directories: '',
      port: String(ports[which]),
      fsync: 'off',
      wal_keep_size: '512MB',
      ...more,
    };
    const child = spawn(
      join(binaries ?? '', 'postgres'),
      ['-D', data[which], ...Object.entries(all).flatMap(([name, value]) => ['-c', `${name}=${value}`])],
      { cwd: folder, env: environment, stdio: 'ignore', ...identityOf(account) },
    );
    running.set(which, child);
    await until(
      async () => {
        if (child.exitCode !== null) throw new Error(`the ${which} ended with ${child.exitCode} before it answered`);
        return answers(urlOf(which));
      },
      { what: `the ${which} to answer`, deadlineMs: readyDeadlineMs },
    );
  }

  async function end(which: keyof typeof data, signal: NodeJS.Signals): Promise<void> {
    const child = running.get(which);
    running.delete(which);
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once('exit', resolve));
    child.kill(signal);
    await gone;
  }

  /** A frozen process does not heed the end of its server. */
  function thaw(): void {
    if (frozen === undefined) return;
    try {
      process.kill(frozen, 'SIGCONT');
    } catch {
      // It is gone already.
    }
    frozen = undefined;
  }

  let frozen: number | undefined;
  const startReplica = (): Promise<void> =>
    start('replica', { primary_conninfo: `host=127.0.0.1 port=${ports.primary} user=postgres application_name=r1` });

  run('initdb', ['-D', data.primary, '-U', 'postgres', '--auth=trust', '--encoding=UTF8', '--no-locale', '--no-sync']);
  await start('primary', settings);
  run('pg_basebackup', [
    '-h',
    '127.0.0.1',
    '-p',
    String(ports.primary),
    '-U',
    'postgres',
    '-D',
    data.replica,
    '-R',
    '-c',
    'fast',
    '--no-sync',
  ]);
  chmodSync(data.replica, 0o700);
  await startReplica();

  return {
    primaryUrl: urlOf('primary'),
    replicaUrl: urlOf('replica'),
    async freezeReceiver() {
      frozen = await until(async () => receiverOf(running.get('replica')?.pid), {
        what: 'the replica to receive',
        deadlineMs: readyDeadlineMs,
      });
      process.kill(frozen, 'SIGSTOP');
    },
    thawReceiver: thaw,
    async killReplica() {
      thaw();
      await end('replica', 'SIGQUIT');
    },
    startReplica,
    async stop() {
      thaw();
      await end('replica', 'SIGQUIT');
      await end('primary', 'SIGQUIT');
      release();
      withdraw();
    },
  };
}

/** The child of the server that calls itself walreceiver. */
function receiverOf(server: number | undefined): number | undefined {
  if (server === undefined) return undefined;
  const children = readFileSync(`/proc/${server}/task/${server}/children`, 'utf8').trim().split(' ').map(Number);
  return children.find((pid) => {
    try {
      return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('walreceiver');
    } catch {
      return false;
    }
  });
}

async function answers(url: string): Promise<boolean> {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query('SELECT 1');
    await client.end();
    return true;
  } catch {
    // Not ready yet.
    return false;
  }
}
