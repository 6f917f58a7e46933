// A private Redis: a child process on a loopback port that keeps nothing on disk, which a test may wipe or kill.
// Never the Redis of REDIS_URL, which is not ours to flush.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Redis } from 'ioredis';
import { releaseAtExit } from '../../src/embedded/exit-guard.js';
import { findFreePort } from '../../src/embedded/free-port.js';
import { until } from './until.js';

export interface PrivateRedis {
  readonly url: string;
  readonly pid: number;
  flushAll(): Promise<void>;
  /** Safe to call twice, and after the process was killed. */
  stop(): Promise<void>;
}

const maxPortAttempts = 5;
const readyDeadlineMs = 10_000;

/** Undefined when there is no `redis-server` on PATH. */
export async function startPrivateRedis(): Promise<PrivateRedis | undefined> {
  for (let attempt = 1; ; attempt += 1) {
    const port = await findFreePort();
    const folder = mkdtempSync(join(tmpdir(), 'keyturn-redis-'));
    const started = launch(port, folder);
    const remove = () => rmSync(folder, { recursive: true, force: true });
    const withdraw = releaseAtExit(() => {
      started.child.kill('SIGKILL');
      remove();
    });
    const stop = async () => {
      // Not SIGTERM, which one that a test has frozen would not hear; it keeps nothing that could be lost.
      started.child.kill('SIGKILL');
      await started.ended;
      remove();
      withdraw();
    };

    const url = `redis://127.0.0.1:${port}`;
    const state = await until(async () => started.hasEnded() ?? ((await answersPing(url)) ? 'ready' : undefined), {
      what: 'redis-server to answer',
      deadlineMs: readyDeadlineMs,
    }).catch(async (error: unknown) => {
      await stop();
      throw error;
    });
    if (state === 'ready' && started.child.pid !== undefined) {
      return { url, pid: started.child.pid, flushAll: () => flushAll(url), stop };
    }
    await stop();
    if (state === 'not found') return undefined;
    // It ended by itself: most likely somebody took the port between finding and binding it.
    if (attempt === maxPortAttempts) throw new Error(`redis-server ended ${attempt} times before it answered`);
  }
}

type End = 'not found' | 'ended';

function launch(port: number, folder: string) {
  const settings = { port, bind: '127.0.0.1', save: '', appendonly: 'no', 'maxmemory-policy': 'noeviction' };
  const args = Object.entries({ ...settings, dir: folder }).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const child = spawn('redis-server', args, { cwd: folder, stdio: 'ignore', detached: true });
  let end: End | undefined;
  const ended = new Promise<End>((resolve) => {
    const settle = (how: End) => {
      end = how;
      resolve(how);
    };
    child.once('exit', () => settle('ended'));
    child.once('error', () => settle('not found'));
  });
  return { child, ended, hasEnded: () => end };
}

export async function answersPing(url: string): Promise<boolean> {
  try {
    await withConnection(url, (redis) => redis.ping());
    return true;
  } catch {
    // Refused or closed: the caller decides how long to go on asking.
    return false;
  }
}

async function flushAll(url: string): Promise<void> {
  await withConnection(url, (redis) => redis.flushall());
}

async function withConnection(url: string, use: (redis: Redis) => Promise<unknown>): Promise<void> {
  const redis = new Redis(url, { lazyConnect: true, retryStrategy: () => null, maxRetriesPerRequest: 0 });
  // Without a listener the client prints what connect() also rejects with.
  redis.on('error', () => undefined);
  try {
    await redis.connect();
    await use(redis);
  } finally {
    redis.disconnect();
  }
}
