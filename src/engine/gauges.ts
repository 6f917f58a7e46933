// Looks at every source of the database's health and remembers what judging it needs: one look a second, each source on
// its own. A source whose statement fails, or is still out when the next look begins, keeps its last reading, which grows
// old; the rules of src/rotation say what that means.
import { isKeyturnError } from '../errors.js';
import { noCanaryWatch, watchCanary } from '../rotation/canary.js';
import { noCheckpointWatch, watchCheckpoints } from '../rotation/checkpoint-watch.js';
import {
  archiveSegments,
  blockedSessions,
  deadShare,
  deadShareForGood,
  sessionsPerCpu,
  slotGrade,
  transactionSeconds,
  vacuums,
  type HealthSource,
  type Reading,
} from '../rotation/health.js';
import type { Gauge } from '../rotation/pacing.js';
import { noReplicaWatch, watchReplicas } from '../rotation/replica-watch.js';
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
  timeCanary,
  type Canary,
  type Seen,
  type Slot,
  type TableHealth,
} from '../store/health.js';
import type { PaceSettings } from '../store/pace-settings.js';

export interface Look {
  readonly settings: PaceSettings;
  /** Some run of ours moves rows now. */
  readonly isMoving: boolean;
}

export interface Gauges {
  /** Starts every source that is not out still, waits at most a second for them, and answers what is known of each. */
  look(look: Look): Promise<readonly Gauge[]>;
}

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

export function openGauges(database: Database): Gauges {
  const openedAtMs = performance.now();
  const watched: readonly Watched[] = Object.entries(readersOf(database)).map(([source, read]) => ({
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
      await Promise.race([Promise.all(watched.map((one) => lookAt(one, look))), patience]);
      timer.abort();
      return watched.map((one) => gaugeOf(one, look.settings));
    },
  };
}

async function lookAt(one: Watched, look: Look): Promise<void> {
  if (one.isOut) return;
  one.isOut = true;
  try {
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

function readersOf(database: Database): Readonly<Record<HealthSource, Read>> {
  return {
    replicas: replicaReader(database),
    wal_archive: archiveReader(database),
    slots: async () => ({ seen: (await readSlots(database)).map(slotReading) }),
    sessions: sessionReader(database),
    blocking: blockingReader(database),
    canary: canaryReader(database),
    dead_rows: async () => ({ seen: (await readTables(database)).filter(isWorthCleaning).map(deadReading) }),
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

/** Where nothing was archived since the statistics began, what was written since this gauge was opened counts. */
function archiveReader(database: Database): Read {
  let openedAt: number | undefined;
  return async () => {
    const archive = await readWalArchive(database);
    if (archive === undefined) return { seen: [] };
    openedAt ??= archive.current - 1;
    const value = Math.max(0, archive.current - 1 - (archive.archived ?? openedAt));
    const words = `${value} segments of WAL wait to be archived`;
    return { seen: [{ source: 'wal_archive', value, limits: archiveSegments, words }] };
  };
}

const leastLeft = 0.2;

function slotReading({ name, grade, left }: Slot): Reading {
  const isShort = grade === 'unreserved' || grade === 'lost' || (left !== undefined && left < leastLeft);
  const value = isShort ? 2 : grade === 'extended' ? 1 : 0;
  return { source: 'slots', value, limits: slotGrade, words: `replication slot ${name} holds back WAL (${grade})` };
}

/** Means over a few looks: one moment says little about a load. */
const meanOver = 5;

/** A number of sessions means nothing without the number of processors, and a wrong guess would slow every run for good. */
function sessionReader(database: Database): Read {
  let recent: readonly number[] = [];
  return async ({ settings: { cpus } }) => {
    if (cpus === undefined)
      return { unavailable: 'the number of CPUs of the database server is not known; set pace.cpus in keyturn.yaml' };
    return mapSeen(await countActiveSessions(database), (active) => {
      recent = [...recent, active].slice(-meanOver);
      const mean = recent.reduce((sum, one) => sum + one, 0) / recent.length;
      const words = `${Math.round(mean)} active sessions on ${cpus} CPUs`;
      return [{ source: 'sessions' as const, value: mean / cpus, limits: sessionsPerCpu, words }];
    });
  };
}

/** A few at one look may be chance; as many as were there at the last look, too, are not. Very many are never. */
function blockingReader(database: Database): Read {
  let before = 0;
  return async () => {
    const now = await countBlockedByUs(database);
    const value = now >= blockedSessions.hard ? now : Math.min(now, before);
    before = now;
    return {
      seen: [
        { source: 'blocking', value, limits: blockedSessions, words: `${now} sessions wait for locks of the run` },
      ],
    };
  };
}

function canaryReader(database: Database): Read {
  let watch = noCanaryWatch;
  let canary: Canary | undefined;
  return async ({ isMoving }) => {
    canary ??= await chooseCanary(database);
    let milliseconds;
    try {
      milliseconds = await timeCanary(database, canary);
    } catch (error) {
      // Its table may be gone.
      canary = undefined;
      throw error;
    }
    const watched = watchCanary(watch, { milliseconds, isMoving });
    watch = watched.watch;
    return { seen: watched.readings };
  };
}

/**
 * Less is vacuumed in seconds and no disk is filled by it; a table that is rewritten faster than autovacuum looks at it
 * (once a minute) would only be kept waiting.
 */
const fewDeadBytes = 1_073_741_824;

function isWorthCleaning({ bytes, deadRows, liveRows }: TableHealth): boolean {
  return bytes * (deadRows / Math.max(1, deadRows + liveRows)) >= fewDeadBytes;
}

function deadReading({ table, deadRows, liveRows, isCleanedUp }: TableHealth): Reading {
  const value = deadRows / (deadRows + liveRows);
  const hint = isCleanedUp ? '' : '; autovacuum is off for it, so run: VACUUM';
  return {
    source: 'dead_rows',
    value,
    limits: isCleanedUp ? deadShare : deadShareForGood,
    words: `${deadShare.show(value)} of table ${table} is dead rows${hint}`,
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
