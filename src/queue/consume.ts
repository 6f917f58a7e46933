// The worker's side of the queue: takes one job at a time and calls a handler. Whatever the handler does, the job is
// acknowledged: retries are the ledger's, and an unfinished batch is sent again under a new generation.
import type { Worker } from 'bullmq';
import { openWorker, type BatchJob, type QueueAddress } from './connection.js';
import { batchQueueName } from './jobs.js';

export interface Consumer {
  /** Stops taking jobs, aborts the signal of the one in hand, waits for it to settle. Safe twice. */
  stop(): Promise<void>;
}

export interface ConsumeOptions {
  readonly handle: (job: BatchJob, signal: AbortSignal) => Promise<void>;
  /** Trouble with the queue itself, or what the handler threw; at most once a second each. */
  readonly onTrouble: (error: unknown) => void;
}

export function consumeBatches(address: QueueAddress, options: ConsumeOptions): Consumer {
  const stopping = new AbortController();
  const inHand = new Set<Promise<void>>();
  const onHandlerTrouble = limited(options.onTrouble);

  const open = openWorker<BatchJob>(address, batchQueueName, async (job, _token, signal) => {
    const batch = jobOf(job.data);
    if (batch === undefined) return;
    const aborted = signal === undefined ? stopping.signal : AbortSignal.any([stopping.signal, signal]);
    // What was thrown goes to our log, which reduces it: BullMQ would keep its message in the queue (I7) and tell nobody.
    const handled = options.handle(batch, aborted).catch(onHandlerTrouble);
    inHand.add(handled);
    await handled;
    inHand.delete(handled);
  });
  open.worker.on('error', limited(options.onTrouble));
  cancelOnLostLock(open.worker);

  let stopped: Promise<void> | undefined;
  return {
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
