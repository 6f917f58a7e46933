// The producer's side of the queue: a small window of jobs, each carrying a batch id and its generation. The queue is a
// messenger: losing all of it loses nothing, since PostgreSQL knows what is outstanding.
import type { Telemetry } from 'bullmq';
import { queueUnavailable, type QueueAddress } from './address.js';
import { openQueue, type BatchJob, type OpenQueue } from './connection.js';

export const batchQueueName = 'keyturn-batches';
/** Holds one delayed job whose data tells queues apart and whose absence tells of a wipe. */
export const markerQueueName = 'keyturn-marker';
/** Not `marker`: in Redis a job's key stands beside BullMQ's own, one of which has that name. */
const markerJobId = 'cluster-marker';
/** Redis counts jobs of a paused queue as waiting, PostgreSQL as paused. */
const outstandingCounts = ['waiting', 'paused', 'prioritized', 'delayed', 'active'];
const tenYearsMs = 10 * 365 * 24 * 3_600 * 1_000;

export interface BatchQueue {
  send(jobs: readonly BatchJob[]): Promise<void>;
  /** The queue still means to deliver this job. */
  isOutstanding(job: BatchJob): Promise<boolean>;
  findMarker(): Promise<string | undefined>;
  placeMarker(marker: string): Promise<void>;
  /** Jobs waiting or being worked on, whatever the backend calls them. */
  depth(): Promise<number>;
  close(): Promise<void>;
}

/** Generation in the id: a job of an earlier dispatch is another job. */
export function jobIdOf(job: BatchJob): string {
  return `b-${job.batchId}-g${job.generation}`;
}

/** Every call throws QUEUE_UNAVAILABLE when the queue does not answer. */
export function openBatchQueue(address: QueueAddress, telemetry?: Telemetry): BatchQueue {
  const batches = openQueue(address, batchQueueName, telemetry);
  const marker = openQueue(address, markerQueueName);

  async function answering<T>(from: OpenQueue, call: () => Promise<T>): Promise<T> {
    try {
      await from.requireConnected();
      return await call();
    } catch (error) {
      throw queueUnavailable(error);
    }
  }

  return {
    send: (jobs) =>
      answering(batches, async () => {
        const options = { attempts: 1, stackTraceLimit: 0, sizeLimit: 4_096 };
        for (let from = 0; from < jobs.length; from += 100) {
          const chunk = jobs.slice(from, from + 100);
          await batches.queue.addBulk(
            chunk.map((job) => ({
              name: 'batch',
              data: { batchId: job.batchId, generation: job.generation },
              opts: { ...options, jobId: jobIdOf(job) },
            })),
          );
        }
      }),
    isOutstanding: (job) =>
      answering(batches, async () => {
        const state = await batches.queue.getJobState(jobIdOf(job));
        return state !== 'unknown' && state !== 'failed' && state !== 'completed';
      }),
    findMarker: () =>
      answering(marker, async () => {
        const job = await marker.queue.getJob(markerJobId);
        const data: unknown = job?.data;
        return typeof data === 'object' && data !== null && 'marker' in data && typeof data.marker === 'string'
          ? data.marker
          : undefined;
      }),
    placeMarker: (value) =>
      answering(marker, async () => {
        await marker.queue.remove(markerJobId);
        await marker.queue.add('marker', { marker: value }, { jobId: markerJobId, delay: tenYearsMs });
      }),
    depth: () =>
      answering(batches, async () => {
        const counts = await batches.queue.getJobCounts();
        return outstandingCounts.reduce((sum, name) => sum + (counts[name] ?? 0), 0);
      }),
    async close() {
      await batches.close();
      await marker.close();
    },
  };
}
