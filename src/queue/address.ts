// Which queue the processes of a cluster talk to, and how one that does not answer is told. Loads no queue library: most
// commands of the operator need no more than this.
import type { Secret } from '../crypto/secret.js';
import { KeyturnError } from '../errors.js';

export type QueueBackend = 'redis' | 'postgres';

/** Which queue a process talks to. Two processes must agree on all of it. */
export interface QueueAddress {
  readonly backend: QueueBackend;
  readonly url: Secret;
  /** Redis: BullMQ's key prefix, with a hash tag for Redis Cluster. PostgreSQL: the schema. */
  readonly prefix: string;
}

export const postgresQueueSchema = 'bullmq';

export function queueAddressOf(
  urls: { redisUrl: Secret | undefined; databaseDirectUrl: Secret },
  cluster: string,
): QueueAddress {
  return urls.redisUrl === undefined
    ? { backend: 'postgres', url: urls.databaseDirectUrl, prefix: postgresQueueSchema }
    : { backend: 'redis', url: urls.redisUrl, prefix: `{keyturn-${cluster.slice(0, 8)}}` };
}

/** Rebuilt without the driver's text, which may hold the URL. */
export function queueUnavailable(error: unknown): KeyturnError {
  const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : 'no answer';
  return new KeyturnError(
    'QUEUE_UNAVAILABLE',
    `no connection to the queue (${code}); check REDIS_URL, or DATABASE_DIRECT_URL when the queue is in PostgreSQL`,
    { cause: code },
  );
}
