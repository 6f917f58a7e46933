// What sessions of others say about load, and about locks of ours. One look says little about either.
import { blockedSessions, sessionsPerCpu, type Reading } from './health.js';

export interface SessionWatch {
  readonly recent: readonly number[];
}

export const noSessionWatch: SessionWatch = { recent: [] };

/** Means over a few looks: one moment says little about a load. */
const meanOver = 5;

/** `active`: sessions of others that are executing something. */
export function watchSessions(
  before: SessionWatch,
  active: number,
  cpus: number,
): { readonly watch: SessionWatch; readonly readings: readonly Reading[] } {
  const recent = [...before.recent, active].slice(-meanOver);
  const mean = recent.reduce((sum, one) => sum + one, 0) / recent.length;
  const words = `${Math.round(mean)} active sessions on ${cpus} CPUs`;
  return { watch: { recent }, readings: [{ source: 'sessions', value: mean / cpus, limits: sessionsPerCpu, words }] };
}

export interface BlockingWatch {
  readonly before: number;
}

export const noBlockingWatch: BlockingWatch = { before: 0 };

/**
 * `now`: sessions that wait for a lock of ours. A few at one look may be chance; as many as were there at the last look, too,
 * are not. Very many are never.
 */
export function watchBlocking(
  { before }: BlockingWatch,
  now: number,
): { readonly watch: BlockingWatch; readonly readings: readonly Reading[] } {
  const value = now >= blockedSessions.hard ? now : Math.min(now, before);
  const words = `${now} sessions wait for locks of the run`;
  return { watch: { before: now }, readings: [{ source: 'blocking', value, limits: blockedSessions, words }] };
}
