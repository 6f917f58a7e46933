// The two queue backends behind one pair of constructors: BullMQ over Redis when a Redis URL is given, over PostgreSQL
// when not. Nothing outside this folder imports bullmq or ioredis.
import { Queue, withBackend, Worker, createPostgresBackend, type Processor, type Telemetry } from 'bullmq';
import { Redis } from 'ioredis';
import type { QueueAddress } from './address.js';

/** What a job carries: ids, never keys, values or primary keys (I7). */
export interface BatchJob {
  readonly batchId: number;
  readonly generation: number;
}

export interface OpenQueue {
  readonly queue: Queue;
  /** Throws where the server is away: BullMQ's own calls would wait, without end, for a first connection. */
  requireConnected(): Promise<void>;
  close(): Promise<void>;
}

/** Connection errors repeat while a server is away; the caller's tick reports them, so none ends the process here. */
const ignore = (): void => undefined;

/** By which its sessions are told from the application's. */
const ourName = { application_name: 'keyturn queue' };

const withPostgres = withBackend(createPostgresBackend);

const answerWithinMs = 5_000;

/** A producer's end; commands fail instead of waiting for a server that is away. */
export function openQueue(address: QueueAddress, name: string, telemetry?: Telemetry): OpenQueue {
  const traced = telemetry === undefined ? {} : { telemetry };
  if (address.backend === 'postgres') {
    const queue = new withPostgres.Queue(name, {
      ...traced,
      connection: { connectionString: address.url.expose(), max: 3, schema: address.prefix, ...ourName },
    });
    queue.on('error', ignore);
    // The class differs from the Redis one only in its backend type parameter.
    return { queue: queue as unknown as Queue, requireConnected: async () => undefined, close: () => queue.close() };
  }
  const connection = new Redis(address.url.expose(), {
    maxRetriesPerRequest: 1,
    enableOfflineQueue: true,
    connectTimeout: answerWithinMs,
    // A server that is there and silent: without it a supervisor's tick would never end.
    commandTimeout: answerWithinMs,
  });
  connection.on('error', ignore);
  const queue = new Queue(name, { ...traced, connection, prefix: address.prefix });
  queue.on('error', ignore);
  return {
    queue,
    async requireConnected() {
      if (connection.status !== 'ready') await connection.ping();
    },
    async close() {
      if (connection.status !== 'ready') connection.disconnect();
      await queue.close();
      connection.disconnect();
    },
  };
}

/** For the fetch in hand and the farewell; without a server neither ends by itself. */
const closeWithinMs = 3_000;

async function endsWithin(limitMs: number, ending: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, limitMs);
  });
  await Promise.race([ending, late]).finally(() => clearTimeout(timer));
}

/** Settings both backends share: the ledger owns retries, so a job is tried once and a lost one is sent again. */
const workerSettings = {
  concurrency: 1,
  maxStalledCount: 25,
  stalledInterval: 15_000,
  lockDuration: 30_000,
  drainDelay: 2,
  removeOnComplete: { age: 3_600, count: 1_000 },
  removeOnFail: { age: 604_800, count: 5_000 },
} as const;

export interface OpenWorker {
  readonly worker: Worker;
  /** Monotonic milliseconds: since when there is a connection; undefined while there is none, which no restart mends. */
  readonly connectedAtMs: number | undefined;
  /** Within seconds, also while the server is away. */
  close(): Promise<void>;
}

export function openWorker<T>(
  address: QueueAddress,
  name: string,
  processor: Processor<T>,
  telemetry?: Telemetry,
): OpenWorker {
  const traced = telemetry === undefined ? {} : { telemetry };
  // BullMQ hands the abort signal only to processors that declare three plain parameters.
  if (processor.length < 3) throw new Error('a processor must declare (job, token, signal)');
  if (address.backend === 'postgres') {
    const worker = new withPostgres.Worker<T>(name, processor, {
      ...workerSettings,
      ...traced,
      connection: { connectionString: address.url.expose(), max: 3, schema: address.prefix, ...ourName },
    });
    // Its pool connects anew for each statement; what fails there is reported, and moves the loop on.
    return {
      worker: worker as unknown as Worker,
      connectedAtMs: performance.now(),
      close: () => endsWithin(closeWithinMs, worker.close()),
    };
  }
  const connection = new Redis(address.url.expose(), { maxRetriesPerRequest: null, connectTimeout: 5_000 });
  let readyAtMs = performance.now();
  connection.on('error', ignore);
  connection.on('ready', () => {
    readyAtMs = performance.now();
  });
  const worker = new Worker<T>(name, processor, {
    ...workerSettings,
    ...traced,
    connection,
    prefix: address.prefix,
  });
  return {
    worker: worker as unknown as Worker,
    get connectedAtMs() {
      return connection.status === 'ready' ? readyAtMs : undefined;
    },
    async close() {
      const closing = worker.close();
      // What waits for a server that is away waits without end; without a connection BullMQ gives it up.
      if (connection.status !== 'ready') connection.disconnect();
      await endsWithin(closeWithinMs, closing);
      connection.disconnect();
    },
  };
}
