// The wiring of workers and supervisors. They read the environment and the registry, never keyturn.yaml.
import { createRootOpener, requireDatabaseUrl, startMember, troubleLogger } from './app-member.js';
import { startSealing } from './engine/audit-chain.js';
import { claimQueue, joinQueue, requireSameQueue } from './engine/agree-queue.js';
import { passPoint, type ReachPoint } from './engine/services.js';
import { startSchedules } from './engine/schedules.js';
import { startSupervisor } from './engine/supervisor.js';
import { workBatch } from './engine/work-batch.js';
import { readConnections, type Connections, type Environment } from './environment.js';
import { KeyturnError } from './errors.js';
import { consumeBatches } from './queue/consume.js';
import { queueAddressOf, type QueueAddress } from './queue/connection.js';
import { openBatchQueue } from './queue/jobs.js';
import { openWakeUps } from './queue/wake-ups.js';
import { openDatabase, type Database } from './store/database.js';
import { getClusterId } from './store/keys.js';
import { requireSchema } from './store/schema.js';
import { createLogger } from './telemetry/logging.js';

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
  /** Drains and gives everything back. Safe twice. */
  stop(): Promise<void>;
  /** Rejects when the process cannot go on; resolves after `stop`. */
  readonly ended: Promise<void>;
}

export interface ProcessOptions {
  readonly environment: Environment;
  /** Reported to the operator; default host name. */
  readonly name: string;
  /** Ends a start that is still waiting for something; what was started by then has to be stopped as ever. */
  readonly signal?: AbortSignal;
}

const sameQueueCheckMs = 5_000;

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
  const member = await startMember({
    ...options,
    connections,
    rootsOf: () => undefined,
    kind: 'worker',
    keyrings: undefined,
    maxConnections: 5,
    answerWithinMs,
    onTrouble: troubleLogger(log),
  });
  const address = queueAddress(connections, member.cluster);
  const queue = openBatchQueue(address);
  try {
    await joinQueue(member.database, queue, address, {
      signal: options.signal ?? new AbortController().signal,
      onWait: (words) => log.info(words),
    });
  } catch (error) {
    await queue.close();
    await member.close();
    throw error;
  }
  await queue.close();
  const services = {
    database: member.database,
    keyrings: member.membership,
    memberId: member.membership.id,
    reachPoint: options.reachPoint ?? passPoint,
  };
  const consumer = consumeBatches(address, {
    async handle(job, signal) {
      const worked = await workBatch(services, job, signal);
      if (worked.end === 'dropped') log.debug({ batch: job.batchId, generation: job.generation }, 'job dropped');
      else
        log.info(
          {
            batch: job.batchId,
            run: worked.batch.runId,
            end: worked.end,
            ...('cause' in worked ? { cause: worked.cause } : {}),
          },
          `batch ${worked.end}`,
        );
    },
    onTrouble: troubleLogger(log),
  });
  log.info(
    { member: member.membership.id, queue: address.backend, keyrings: member.membership.keyringNames },
    'worker ready',
  );
  const watch = watchQueue(member.database, address, troubleLogger(log));
  const sealer = startSealing({
    database: member.database,
    roots: member.heldRoots,
    onTrouble: troubleLogger(log),
  });
  return longRunning(watch.lost, async () => {
    watch.stop();
    await consumer.stop();
    await sealer.stop();
    await member.close();
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
  let address: QueueAddress;
  let queue;
  let marker;
  try {
    await requireSchema(database);
    address = queueAddress(connections, await getClusterId(database));
    queue = openBatchQueue(address);
    marker = await claimQueue(database, queue, address);
  } catch (error) {
    await queue?.close();
    await gauged?.close();
    await database.close();
    throw error;
  }
  const openQueue = queue;
  const supervisor = startSupervisor({
    database,
    gauged,
    queue,
    marker,
    onTrouble: troubleLogger(log),
    onEvent: (event, details) => log.info(details, event),
  });
  // Only a supervisor needs the operator's verbs, so workers do not load them.
  const { createPolicyVerbs } = await import('./control/policy.js');
  const schedules = startSchedules({
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
      openRoots: createRootOpener(options.environment),
      onProgress: (words) => log.debug(words),
    }),
    openWakeUps: (onWake) => openWakeUps(address, onWake),
    onTrouble: troubleLogger(log),
    onEvent: (event, details) => log.info(details, event),
  });
  log.info({ queue: address.backend, prefix: address.prefix }, 'supervisor ready');
  const watch = watchQueue(database, address, troubleLogger(log));
  return longRunning(watch.lost, async () => {
    watch.stop();
    await Promise.all([supervisor.stop(), schedules.stop()]);
    await openQueue.close();
    await gauged?.close();
    await database.close();
    log.info('supervisor stopped');
  });
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

function longRunning(lost: Promise<never>, stop: () => Promise<void>): LongRunning {
  let stopped: Promise<void> | undefined;
  let resolveStopped: () => void = () => undefined;
  const untilStopped = new Promise<void>((resolve) => {
    resolveStopped = resolve;
  });
  const ended = Promise.race([untilStopped, lost]);
  // Whoever awaits `ended` sees the rejection; nobody awaiting it must not end the process.
  ended.catch(() => undefined);
  return {
    ended,
    stop() {
      stopped ??= stop().finally(resolveStopped);
      return stopped;
    },
  };
}
