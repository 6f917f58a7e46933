// Looks at every source of the database's health and remembers what judging it needs: one look a second, each source on
// its own. A source whose statement fails, or is still out when the next look begins, keeps its last reading, which grows
// old; the rules of src/rotation say what that means.
import { setTimeout as delay } from 'node:timers/promises';
import { isKeyturnError } from '../errors.js';
import { noApplicationWatch, watchApplication, type ApplicationWatch } from '../rotation/beside-application.js';
import { noArchiveWatch, watchArchive } from '../rotation/archive-watch.js';
import { canaryKinds, openCanaryWatch, watchCanary, type CanaryKind, type CanaryWatch } from '../rotation/canary.js';
import { noCheckpointWatch, watchCheckpoints } from '../rotation/checkpoint-watch.js';
import { deadReadings, slotReading } from '../rotation/disk-use.js';
import { transactionSeconds, vacuums, type HealthSource, type Reading } from '../rotation/health.js';
import type { Gauge } from '../rotation/pacing.js';
import { noReplicaWatch, watchReplicas } from '../rotation/replica-watch.js';
import { noBlockingWatch, noSessionWatch, watchBlocking, watchSessions } from '../rotation/session-watch.js';
import type { Database } from '../store/database.js';
import {
  chooseCanary,
  countActiveSessions,
  countBlockedByUs,
  listVacuums,
  readCheckpoints,
  readOldestTransaction,
  readReplication,
  readSlots,
  readTables,
  readWalArchive,
  timeCommit,
  timeRead,
  type Canary,
  type Seen,
} from '../store/health.js';
import type { PaceSettings } from '../store/pace-settings.js';

export interface Look {
  readonly settings: PaceSettings;
  /** Some run of ours moves rows now. */
  readonly isMoving: boolean;
  /** How often the pace has changed so far. */
  readonly paceChanges: number;
}

export interface Gauges {
  /** Starts every source that is not out still, one after another, waits at most a second for them, and answers what is known of each. */
  look(look: Look): Promise<readonly Gauge[]>;
  usualMs(): UsualMs;
  /** What sessions of others do; undefined where that cannot be seen. */
  application(): ApplicationWatch | undefined;
}

/** Milliseconds that a small read, and a small commit, usually take at most, as far as it is known. */
export type UsualMs = Readonly<Partial<Record<CanaryKind, number>>>;

type Read = (look: Look, nowMs: number) => Promise<Seen<readonly Reading[]>>;

interface Watched {
  readonly source: HealthSource;
  readonly read: Read;
  isOut: boolean;
  /** When the last answer came, and the answer; the time of opening before the first. */
  atMs: number;
  last: Seen<readonly Reading[]> | undefined;
}

const patienceMs = 1_000;
/** All at once they would keep every processor of a small server from the application for a moment of each second. */
const staggerMs = 60;
/** Spread over half of the second between two looks, so that they meet slices as the application's statements do. */
const canarySamples = 8;
const canaryGapMs = 60;

/** `usualMs`: what an earlier leader answered last. */
export function openGauges(database: Database, usualMs: UsualMs = {}): Gauges {
  const canary = canaryReader(database, usualMs);
  const openedAtMs = performance.now();
  const watched: readonly Watched[] = Object.entries(readersOf(database, canary.read)).map(([source, read]) => ({
    source: source as HealthSource,
    read,
    isOut: false,
    atMs: openedAtMs,
    last: undefined,
  }));

  return {
    async look(look) {
      const timer = new AbortController();
      const patience = new Promise<void>((resolve) => {
        const timeout = setTimeout(resolve, patienceMs);
        timer.signal.addEventListener('abort', () => clearTimeout(timeout));
      });
      await Promise.race([Promise.all(watched.map((one, at) => lookAt(one, look, at * staggerMs))), patience]);
      timer.abort();
      return watched.map((one) => gaugeOf(one, look.settings));
    },
    usualMs: canary.usualMs,
    application: canary.application,
  };
}

async function lookAt(one: Watched, look: Look, afterMs: number): Promise<void> {
  if (one.isOut) return;
  one.isOut = true;
  try {
    await delay(afterMs);
    const seen = await one.read(look, performance.now());
    one.last = seen;
    one.atMs = performance.now();
  } catch (error) {
    // Away, too slow or refused: the last reading stays and grows old.
    if (!isKeyturnError(error)) throw error;
  } finally {
    one.isOut = false;
  }
}

function gaugeOf({ source, last, atMs }: Watched, settings: PaceSettings): Gauge {
  const isOptional = settings.optional.includes(source);
  if (last !== undefined && 'unavailable' in last) return { source, unavailable: last.unavailable, isOptional };
  return { source, readings: last?.seen ?? [], ageMs: performance.now() - atMs, isOptional };
}

function readersOf(database: Database, canary: Read): Readonly<Record<HealthSource, Read>> {
  return {
    replicas: replicaReader(database),
    wal_archive: archiveReader(database),
    slots: async () => ({ seen: (await readSlots(database)).map(slotReading) }),
    sessions: sessionReader(database),
    blocking: blockingReader(database),
    canary,
    dead_rows: async () => ({ seen: (await readTables(database)).flatMap(deadReadings) }),
    vacuum: async () =>
      mapSeen(await listVacuums(database), (tables) =>
        tables.map((table) => ({
          source: 'vacuum' as const,
          value: 1,
          limits: vacuums,
          words: `a vacuum is working on ${table}`,
        })),
      ),
    transactions: async () =>
      mapSeen(await readOldestTransaction(database), (value) => [
        {
          source: 'transactions' as const,
          value,
          limits: transactionSeconds,
          words: `a transaction is open for ${transactionSeconds.show(value)} and keeps vacuum from cleaning up`,
        },
      ]),
    checkpoints: checkpointReader(database),
  };
}

function mapSeen<T>(seen: Seen<T>, readings: (value: T) => readonly Reading[]): Seen<readonly Reading[]> {
  return 'unavailable' in seen ? seen : { seen: readings(seen.seen) };
}

function replicaReader(database: Database): Read {
  let watch = noReplicaWatch;
  return async (_look, nowMs) =>
    mapSeen(await readReplication(database), (seen) => {
      const watched = watchReplicas(watch, seen, nowMs);
      watch = watched.watch;
      return watched.readings;
    });
}

function archiveReader(database: Database): Read {
  let watch = noArchiveWatch;
  return async () => {
    const archive = await readWalArchive(database);
    if (archive === undefined) return { seen: [] };
    const watched = watchArchive(watch, archive);
    watch = watched.watch;
    return { seen: watched.readings };
  };
}

/** A number of sessions means nothing without the number of processors, and a wrong guess would slow every run for good. */
function sessionReader(database: Database): Read {
  let watch = noSessionWatch;
  return async ({ settings: { cpus } }) => {
    if (cpus === undefined)
      return { unavailable: 'the number of CPUs of the database server is not known; set pace.cpus in keyturn.yaml' };
    return mapSeen(await countActiveSessions(database), (active) => {
      const watched = watchSessions(watch, active, cpus);
      watch = watched.watch;
      return watched.readings;
    });
  };
}

function blockingReader(database: Database): Read {
  let watch = noBlockingWatch;
  return async () => {
    const watched = watchBlocking(watch, await countBlockedByUs(database));
    watch = watched.watch;
    return { seen: watched.readings };
  };
}

function canaryReader(
  database: Database,
  usualMs: UsualMs,
): Pick<Gauges, 'usualMs' | 'application'> & { readonly read: Read } {
  const watches = new Map<CanaryKind, CanaryWatch>(
    canaryKinds.map((kind) => [kind, openCanaryWatch(kind, usualMs[kind])]),
  );
  let application: ApplicationWatch | undefined = noApplicationWatch;
  let canary: Canary | undefined;
  return {
    application: () => application,
    usualMs: () => Object.fromEntries([...watches].map(([kind, { usual }]) => [kind, usual])),
    async read({ isMoving, paceChanges }) {
      canary ??= await chooseCanary(database);
      const samples: Record<CanaryKind, number[]> = { read: [], commit: [] };
      const active: Seen<number>[] = [];
      try {
        for (let sample = 0; sample < canarySamples; sample++) {
          if (sample > 0) await delay(canaryGapMs);
          samples.read.push(await timeRead(database, canary));
          samples.commit.push(await timeCommit(database));
          active.push(await countActiveSessions(database));
        }
      } catch (error) {
        // Its table may be gone.
        canary = undefined;
        throw error;
      }
      const counted = active.flatMap((one) => ('seen' in one ? [one.seen] : []));
      application =
        counted.length < active.length ? undefined : watchApplication(application ?? noApplicationWatch, counted);
      return {
        seen: [...watches.values()].flatMap((before) => {
          const watched = watchCanary(before, { milliseconds: samples[before.kind], isMoving, paceChanges });
          watches.set(before.kind, watched.watch);
          return watched.readings;
        }),
      };
    },
  };
}

function checkpointReader(database: Database): Read {
  let watch = noCheckpointWatch;
  return async ({ isMoving }, nowMs) => {
    const watched = watchCheckpoints(watch, await readCheckpoints(database), { ms: nowMs, isMoving });
    watch = watched.watch;
    return { seen: watched.readings };
  };
}
