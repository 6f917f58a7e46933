// The worker's side of the queue: takes one job at a time and calls a handler. Whatever the handler does, the job is
// acknowledged: retries are the ledger's, and an unfinished batch is sent again under a new generation.
import type { Processor, Telemetry, Worker } from 'bullmq';
import type { QueueAddress } from './address.js';
import { openWorker, type BatchJob } from './connection.js';
import { batchQueueName } from './jobs.js';
import { feelPulse } from './pulse.js';

/** Three times what passes between two steps at most: a renewed lock in the longest batch. */
const answerKeptMs = 45_000;

export interface Consumer {
  /** How long the fetch loop has stood still; 0 while the queue is away, which no restart mends. */
  idleMs(): number;
  /** The queue has answered lately. */
  isReachable(): boolean;
  /** Stops taking jobs, aborts the signal of the one in hand, waits for it to settle. Safe twice. */
  stop(): Promise<void>;
}

export interface ConsumeOptions {
  readonly handle: (job: BatchJob, signal: AbortSignal) => Promise<void>;
  /** Trouble with the queue itself, or what the handler threw; at most once a second each. */
  readonly onTrouble: (error: unknown) => void;
  readonly telemetry?: Telemetry | undefined;
}

export function consumeBatches(address: QueueAddress, options: ConsumeOptions): Consumer {
  const stopping = new AbortController();
  const inHand = new Set<Promise<void>>();
  const onHandlerTrouble = limited(options.onTrouble);
  const pulse = feelPulse(options.telemetry);

  const take: Processor<BatchJob> = async (job, _token, signal) => {
    const batch = jobOf(job.data);
    if (batch === undefined) return;
    const aborted = signal === undefined ? stopping.signal : AbortSignal.any([stopping.signal, signal]);
    // What was thrown goes to our log, which reduces it: BullMQ would keep its message in the queue (I7) and tell nobody.
    const handled = options.handle(batch, aborted).catch(onHandlerTrouble);
    inHand.add(handled);
    await handled;
    inHand.delete(handled);
  };
  const open = openWorker(address, batchQueueName, take, pulse.telemetry);
  open.worker.on('error', limited(options.onTrouble));
  cancelOnLostLock(open.worker);

  let stopped: Promise<void> | undefined;
  return {
    idleMs() {
      const { connectedAtMs } = open;
      return connectedAtMs === undefined ? 0 : performance.now() - Math.max(pulse.movedAtMs, connectedAtMs);
    },
    isReachable: () => open.connectedAtMs !== undefined && performance.now() - pulse.answeredAtMs < answerKeptMs,
    stop() {
      stopping.abort();
      stopped ??= Promise.allSettled(inHand).then(() => open.close());
      return stopped;
    },
  };
}

/** Without the lock another worker may get the job, so this one stops at the next slice; the ledger's lease decides. */
function cancelOnLostLock(worker: Worker): void {
  worker.on('lockRenewalFailed', (jobIds) => {
    for (const id of jobIds) worker.cancelJob(id);
  });
}

/** Undefined for data that no producer of ours writes. */
function jobOf(data: unknown): BatchJob | undefined {
  if (typeof data !== 'object' || data === null || !('batchId' in data) || !('generation' in data)) return undefined;
  const { batchId, generation } = data;
  return Number.isSafeInteger(batchId) && Number.isSafeInteger(generation)
    ? { batchId: Number(batchId), generation: Number(generation) }
    : undefined;
}

function limited(report: (error: unknown) => void): (error: unknown) => void {
  let lastMs = -Infinity;
  return (error) => {
    if (performance.now() - lastMs < 1_000) return;
    lastMs = performance.now();
    report(error);
  };
}
