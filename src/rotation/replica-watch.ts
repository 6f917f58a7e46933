// How far replicas are behind, in bytes and in time, and which of them are gone. PostgreSQL's own measure of time stands
// still while a replica is silent, so time is also taken from here: since when has what it lacks been written? Memory and
// what is seen now in, memory and readings out.
import { replicaBytes, replicaSeconds, replicasGone, type Reading } from './health.js';

export interface SeenReplica {
  readonly name: string;
  readonly bytesBehind: number;
  readonly measuredSeconds: number | undefined;
  readonly replayed: number;
  readonly isPhysical: boolean;
}

export interface ReplicaWatch {
  /** What was written when, oldest first. */
  readonly history: readonly { readonly written: number; readonly atMs: number }[];
  /** When each replica was there last. */
  readonly lastSeenMs: ReadonlyMap<string, number>;
}

export const noReplicaWatch: ReplicaWatch = { history: [], lastSeenMs: new Map() };

/** A gone replica that has not come back by then was removed on purpose, or is being built anew. */
const forgottenAfterMs = 600_000;
/** Far beyond the hard limit; what is older is said to be as old as this. */
const historyMs = 60_000;

export function watchReplicas(
  before: ReplicaWatch,
  seen: { readonly written: number; readonly replicas: readonly SeenReplica[] },
  nowMs: number,
): { readonly watch: ReplicaWatch; readonly readings: readonly Reading[] } {
  const history = [
    ...before.history.filter(({ atMs }) => nowMs - atMs <= historyMs),
    { written: seen.written, atMs: nowMs },
  ];
  const lastSeenMs = new Map([...before.lastSeenMs].filter(([, atMs]) => nowMs - atMs <= forgottenAfterMs));
  for (const { name } of seen.replicas) lastSeenMs.set(name, nowMs);
  const gone = [...lastSeenMs].filter(([, atMs]) => atMs < nowMs);
  return {
    watch: { history, lastSeenMs },
    readings: [
      ...seen.replicas.flatMap((replica) => readingsOf(replica, secondsBehind(replica, history, nowMs))),
      ...gone.map(([name, atMs]) => goneReading(name, nowMs - atMs)),
    ],
  };
}

/** The larger of the two measures. */
function secondsBehind(replica: SeenReplica, history: ReplicaWatch['history'], nowMs: number): number {
  const measured = replica.bytesBehind === 0 ? 0 : (replica.measuredSeconds ?? 0);
  if (!replica.isPhysical) return measured;
  const firstLacking = history.find(({ written }) => written > replica.replayed);
  return Math.max(measured, firstLacking === undefined ? 0 : (nowMs - firstLacking.atMs) / 1_000);
}

function readingsOf({ name, bytesBehind }: SeenReplica, seconds: number): readonly Reading[] {
  return [
    {
      source: 'replicas',
      value: seconds,
      limits: replicaSeconds,
      words: `replica ${name} is ${replicaSeconds.show(seconds)} behind`,
    },
    {
      source: 'replicas',
      value: bytesBehind,
      limits: replicaBytes,
      words: `replica ${name} is ${replicaBytes.show(bytesBehind)} behind`,
    },
  ];
}

function goneReading(name: string, goneMs: number): Reading {
  const left = Math.ceil((forgottenAfterMs - goneMs) / 60_000);
  return {
    source: 'replicas',
    value: 1,
    limits: replicasGone,
    words: `replica ${name} was there ${Math.round(goneMs / 1_000)} s ago and is gone; taken as removed in ${left} min`,
  };
}
