// The wiring of workers and supervisors. They read the environment and the registry, never keyturn.yaml.
import { answers, fits, heldGenerations, holdsKeys, openHealth } from './app-health.js';
import {
  createRootExporter,
  createRootOpener,
  requireDatabaseUrl,
  startMember,
  troubleLogger,
  version,
  type MemberProcess,
} from './app-member.js';
import { claimQueue, joinQueue, requireSameQueue } from './engine/agree-queue.js';
import { describeCrypto } from './crypto/native-addon.js';
import { startSealing } from './engine/audit-chain.js';
import { startSchedules, type Schedules } from './engine/schedules.js';
import { passPoint, type BatchServices, type ReachPoint } from './engine/services.js';
import { startSupervisor, type Supervisor } from './engine/supervisor.js';
import { workBatch } from './engine/work-batch.js';
import { openClusterMetrics, type ClusterMetrics } from './engine/cluster-metrics.js';
import { countSlice, countVisit, showHeld } from './engine/worker-metrics.js';
import {
  readConnections,
  wantsTraces,
  type Connections,
  type Environment,
  type ListenSettings,
} from './environment.js';
import { KeyturnError } from './errors.js';
import { readEntityTargets } from './entity-modules.js';
import { loadFormatModules } from './format-modules.js';
import { consumeBatches, type Consumer } from './queue/consume.js';
import { queueAddressOf, type QueueAddress } from './queue/address.js';
import { openBatchQueue } from './queue/jobs.js';
import { removeQueue } from './queue/remove.js';
import type { Tracing } from './queue/tracing.js';
import { openWakeUps } from './queue/wake-ups.js';
import { openDatabase, type Database } from './store/database.js';
import { getClusterId } from './store/keys.js';
import { requireSchema } from './store/schema.js';
import { createLogger } from './telemetry/logging.js';
import { openMetrics } from './telemetry/metrics.js';

function queueAddress(connections: Connections, cluster: string): QueueAddress {
  return queueAddressOf(
    {
      redisUrl: connections.redisUrl,
      databaseDirectUrl: connections.databaseDirectUrl ?? requireDatabaseUrl(connections),
    },
    cluster,
  );
}

export interface LongRunning {
  /** Where `/healthz`, `/readyz` and `/metrics` are answered. */
  readonly healthUrl: string;
  /** Drains and gives everything back. Safe twice. */
  stop(): Promise<void>;
  /** Rejects when the process cannot go on; resolves after `stop`. */
  readonly ended: Promise<void>;
}

export interface ProcessOptions {
  readonly environment: Environment;
  /** Reported to the operator; default host name. */
  readonly name: string;
  /** In place of HOST and PORT. */
  readonly listen?: Partial<ListenSettings>;
  /** Ends a start that is still waiting for something; what was started by then has to be stopped as ever. */
  readonly signal?: AbortSignal;
}

const sameQueueCheckMs = 5_000;
/** A loop that has not moved for so long never will. */
const stuckAfterMs = 60_000;
/**
 * A connection whose other end went away without a word would keep a worker or supervisor waiting for the operating
 * system's quarter of an hour. Longer than any statement of theirs may take.
 */
const answerWithinMs = 40_000;
/** Their statements take a second at most. */
const gaugesAnswerWithinMs = 3_000;

/** A worker: a member that takes batches from the queue. Reads the registry, never keyturn.yaml. */
export async function startWorker(options: ProcessOptions & { reachPoint?: ReachPoint }): Promise<LongRunning> {
  const connections = readConnections(options.environment);
  const log = createLogger({ level: connections.logLevel, name: 'keyturn-worker' });
  const metrics = openMetrics('worker', version);
  const tracing = await openTracingIfWanted(options.environment);
  let member: MemberProcess | undefined;
  let consumer: Consumer | undefined;
  let workedAtMs = performance.now();
  const health = await openHealth(options, metrics, {
    // Until it takes jobs it waits for a supervisor, for as long as that takes.
    isAlive: () => consumer === undefined || Math.min(consumer.idleMs(), performance.now() - workedAtMs) < stuckAfterMs,
    needs: {
      keys: async () => member !== undefined && holdsKeys(member.membership),
      database: async () => member !== undefined && answers(member.database),
      queue: async () => consumer?.isReachable() === true,
    },
    beforeMetrics: async () =>
      showHeld(metrics, new Map(member === undefined ? [] : heldGenerations(member.membership))),
  });
  try {
    member = await startMember({
      ...options,
      connections,
      rootsOf: () => undefined,
      kind: 'worker',
      keyrings: undefined,
      maxConnections: 5,
      answerWithinMs,
      healthUrl: health.url,
      onTrouble: troubleLogger(log),
    });
  } catch (error) {
    await health.close();
    throw error;
  }
  const { database, membership, cluster, heldRoots } = member;
  const leave = async (): Promise<void> => {
    await member?.close();
    await health.close();
  };
  const address = queueAddress(connections, cluster);
  const queue = openBatchQueue(address);
  try {
    await joinQueue(database, queue, address, {
      signal: options.signal ?? new AbortController().signal,
      onWait: (words) => log.info(words),
    });
  } catch (error) {
    await queue.close();
    await leave();
    throw error;
  }
  await queue.close();
  const services: BatchServices = {
    database,
    keyrings: membership,
    memberId: membership.id,
    reachPoint: options.reachPoint ?? passPoint,
    report(slice) {
      workedAtMs = performance.now();
      countSlice(metrics, slice);
    },
  };
  consumer = consumeBatches(address, {
    async handle(job, signal) {
      const worked = await workBatch(services, job, signal);
      countVisit(metrics, worked);
      tracing?.note({ 'keyturn.batch': job.batchId, 'keyturn.end': worked.end });
      if (worked.end === 'dropped') log.debug({ batch: job.batchId, generation: job.generation }, 'job dropped');
      else {
        tracing?.note({ 'keyturn.run': worked.batch.runId });
        log.info(
          {
            batch: job.batchId,
            run: worked.batch.runId,
            end: worked.end,
            ...('cause' in worked ? { cause: worked.cause } : {}),
          },
          `batch ${worked.end}`,
        );
      }
    },
    onTrouble: troubleLogger(log),
    telemetry: tracing?.telemetry,
  });
  const taking = consumer;
  log.info(
    {
      member: membership.id,
      queue: address.backend,
      keyrings: membership.keyringNames,
      health: health.url,
      crypto: describeCrypto(),
    },
    'worker ready',
  );
  const watch = watchQueue(database, address, troubleLogger(log));
  const sealer = startSealing({ database, roots: heldRoots, onTrouble: troubleLogger(log) });
  return longRunning(health.url, watch.lost, async () => {
    watch.stop();
    await taking.stop();
    await sealer.stop();
    await leave();
    log.info('worker stopped');
  });
}

/** The supervisor: plans runs, feeds the queue, mends what got lost. Any number may run; one leads. */
export async function startSupervisorProcess(
  options: ProcessOptions & {
    /** False leaves the gauges out, to measure what they save. */
    isPaced?: boolean;
  },
): Promise<LongRunning> {
  const connections = readConnections(options.environment);
  const log = createLogger({ level: connections.logLevel, name: 'keyturn-supervisor' });
  const metrics = openMetrics('supervisor', version);
  const tracing = await openTracingIfWanted(options.environment);
  const database = openDatabase({
    url: requireDatabaseUrl(connections),
    maxConnections: 6,
    applicationName: 'keyturn supervisor',
    answerWithinMs,
  });
  const gauged =
    options.isPaced === false
      ? undefined
      : openDatabase({
          url: requireDatabaseUrl(connections),
          maxConnections: 3,
          applicationName: 'keyturn gauges',
          answerWithinMs: gaugesAnswerWithinMs,
        });
  let supervisor: Supervisor | undefined;
  let cluster: ClusterMetrics | undefined;
  const health = await openHealth(options, metrics, {
    isAlive: () => supervisor === undefined || performance.now() - supervisor.tickedAtMs < stuckAfterMs,
    needs: { database: () => answers(database), schema: () => fits(database) },
    beforeMetrics: async () => cluster?.refresh(),
  });
  let address: QueueAddress;
  let queue;
  let marker;
  try {
    await requireSchema(database);
    address = queueAddress(connections, await getClusterId(database));
    queue = openBatchQueue(address, tracing?.telemetry);
    marker = await claimQueue(database, queue, address);
  } catch (error) {
    await queue?.close();
    await gauged?.close();
    await database.close();
    await health.close();
    throw error;
  }
  const openQueue = queue;
  const started = startSupervisor({
    database,
    gauged,
    queue,
    marker,
    healthUrl: health.url,
    onTrouble: troubleLogger(log),
    onEvent(event, details) {
      if (event === 'lease expired') metrics.add('keyturn_lease_expiries_total', {});
      if (event === 'lost job found') metrics.add('keyturn_lost_jobs_total', {});
      log.info(details, event);
    },
  });
  supervisor = started;
  cluster = openClusterMetrics({
    database,
    queue,
    metrics,
    isLeading: () => started.isLeading,
    heldBack: () => started.heldBack,
    onTrouble: troubleLogger(log),
  });
  const schedules = await startPolicies(options.environment, {
    connections,
    database,
    address,
    supervisor: started,
    log,
  });
  log.info({ queue: address.backend, prefix: address.prefix, health: health.url }, 'supervisor ready');
  const watch = watchQueue(database, address, troubleLogger(log));
  return longRunning(health.url, watch.lost, async () => {
    watch.stop();
    await Promise.all([started.stop(), schedules.stop()]);
    await health.close();
    await openQueue.close();
    await gauged?.close();
    await database.close();
    log.info('supervisor stopped');
  });
}

/** Only a supervisor needs the operator's verbs, so workers do not load them. */
async function startPolicies(
  environment: Environment,
  parts: {
    connections: Connections;
    database: Database;
    address: QueueAddress;
    supervisor: Supervisor;
    log: ReturnType<typeof createLogger>;
  },
): Promise<Schedules> {
  const { connections, database, address, supervisor, log } = parts;
  const { createPolicyVerbs } = await import('./control/policy.js');
  const opener = createRootOpener(environment);
  return startSchedules({
    database,
    leadership: () => supervisor.leadership,
    verbs: createPolicyVerbs({
      database,
      config: {
        source: 'the environment',
        ...connections,
        roles: {},
        expectMembers: [],
        pace: { cpus: undefined, optional: undefined },
        keyrings: [],
        targets: [],
      },
      openRoots: opener.open,
      forgetRoot: opener.forget,
      exportRoot: createRootExporter(environment),
      loadFormats: () => loadFormatModules(environment),
      readEntities: readEntityTargets,
      onProgress: (words) => log.debug(words),
    }),
    openWakeUps: (onWake) => openWakeUps(address, onWake),
    onTrouble: troubleLogger(log),
    onEvent: (event, details) => log.info(details, event),
  });
}

async function openTracingIfWanted(environment: Environment): Promise<Tracing | undefined> {
  return wantsTraces(environment) ? (await import('./queue/tracing.js')).openTracing(version) : undefined;
}

/** Ends the process when the cluster has moved to another queue: it would wait for jobs that never come. */
function watchQueue(
  database: Database,
  address: QueueAddress,
  onTrouble: (error: unknown) => void,
): { lost: Promise<never>; stop(): void } {
  let timer: NodeJS.Timeout | undefined;
  const lost = new Promise<never>((_, reject) => {
    timer = setInterval(() => {
      requireSameQueue(database, address).catch((error: unknown) => {
        if (error instanceof KeyturnError && error.code === 'QUEUE_MISMATCH') reject(error);
        else onTrouble(error);
      });
    }, sameQueueCheckMs);
  });
  return { lost, stop: () => clearInterval(timer) };
}

function longRunning(healthUrl: string, lost: Promise<never>, stop: () => Promise<void>): LongRunning {
  let stopped: Promise<void> | undefined;
  let resolveStopped: () => void = () => undefined;
  const untilStopped = new Promise<void>((resolve) => {
    resolveStopped = resolve;
  });
  const ended = Promise.race([untilStopped, lost]);
  // Whoever awaits `ended` sees the rejection; nobody awaiting it must not end the process.
  ended.catch(() => undefined);
  return {
    healthUrl,
    ended,
    stop() {
      stopped ??= stop().finally(resolveStopped);
      return stopped;
    },
  };
}

/** Takes away what a cluster keeps in Redis, when nobody runs any more. A queue in PostgreSQL goes with its database. */
export async function removeQueueInRedis(environment: Environment): Promise<void> {
  const connections = readConnections(environment);
  if (connections.redisUrl === undefined) return;
  const database = openDatabase({
    url: requireDatabaseUrl(connections),
    maxConnections: 1,
    applicationName: 'keyturn queue removal',
  });
  try {
    await removeQueue(queueAddress(connections, await getClusterId(database)));
  } finally {
    await database.close();
  }
}
