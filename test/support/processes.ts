// Worker and supervisor processes of a shop that tests kill or stop, and the two clocks that tests may turn forward once
// a death is certain: a batch's lease and the supervisor's leadership, each 15 s and on purpose not a setting.
import { execFileSync } from 'node:child_process';
import type { BatchPoint } from '../../src/engine/services.js';
import { startChild, type Child } from './child.js';
import type { Shop } from './shop.js';
import { until } from './until.js';

export interface SelfSignal {
  readonly point: BatchPoint;
  /** 1 for the first time the point is reached in this process. */
  readonly time: number;
  readonly signal: 'SIGKILL' | 'SIGSTOP';
}

const reachDeadlineMs = 60_000;

/** Works until it is signalled, or until it has reached the point at which it signals itself. */
export function startWorkerProcess(shop: Shop, self?: SelfSignal): Child {
  return startChild('worker', {
    env: { ...shop.environment(), LOG_LEVEL: 'info' },
    onlyEnv: true,
    args: self === undefined ? [] : [self.point, String(self.time), self.signal],
  });
}

/** Resolves when the worker killed itself at its point; prints pid and signal. */
export async function waitForDeath(worker: Child): Promise<void> {
  const [line] = await worker.waitForLine(/^reached .*/, reachDeadlineMs);
  const exit = await worker.waitForExit(reachDeadlineMs);
  if (exit.signal !== 'SIGKILL')
    throw new Error(`pid ${worker.pid} ended with ${JSON.stringify(exit)} instead of SIGKILL: ${worker.stderr()}`);
  process.stdout.write(`${line}: dead\n`);
}

export async function memberIdOf(shop: Shop, process: Child): Promise<string> {
  const [row] = await shop.query('SELECT id FROM keyturn.member WHERE pid = $1', [process.pid]);
  if (row === undefined) throw new Error(`pid ${process.pid} is no member`);
  return String(row['id']);
}

/** Stands for the passing of the 15 s after which a silent worker loses its batch. Answers how many it had in hand. */
export async function passLease(shop: Shop, memberId: string): Promise<number> {
  const rows = await shop.query(
    `UPDATE keyturn.batch SET lease_until = clock_timestamp() WHERE member_id = $1 AND state = 'running' RETURNING id`,
    [memberId],
  );
  return rows.length;
}

/** Stands for the passing of the 15 s after which a silent supervisor is replaced. */
export async function passLeadership(shop: Shop): Promise<void> {
  await shop.query('UPDATE keyturn.leadership SET expires_at = clock_timestamp()');
}

/** Resolves when the kernel says that the worker has stopped itself at its point. */
export async function waitForStop(worker: Child): Promise<void> {
  const [line] = await worker.waitForLine(/^reached .*/, reachDeadlineMs);
  await until(async () => stateOf(worker).startsWith('T'), {
    what: `pid ${worker.pid} to be stopped`,
    deadlineMs: reachDeadlineMs,
  });
  process.stdout.write(`${line}: stopped\n`);
}

function stateOf(process: Child): string {
  return execFileSync('ps', ['-o', 'state=', '-p', String(process.pid)], { encoding: 'utf8' }).trim();
}
