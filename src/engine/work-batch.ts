// What a worker does with one delivered job: claim the batch, run it, tell how it ended. A job whose batch is not waiting
// for this very generation is dropped: delivered twice, late, or of a run that is paused or over.
import type { BatchJob } from '../queue/connection.js';
import { mayGoOn } from '../rotation/standing.js';
import { claimIfDispatched, type ClaimedBatch } from '../store/batches.js';
import { releaseToStop } from './batch-end.js';
import { reencryptBatch } from './reencrypt-batch.js';
import type { BatchEnd, BatchServices } from './services.js';
import { verifyBatch } from './verify.js';

export type Worked = (BatchEnd & { readonly batch: ClaimedBatch }) | { readonly end: 'dropped' };

export async function workBatch(services: BatchServices, job: BatchJob, signal: AbortSignal): Promise<Worked> {
  const batch = await claimIfDispatched(services.database, { ...job, memberId: services.memberId });
  if (batch === undefined) return { end: 'dropped' };
  const ended = await visit(services, batch, signal);
  await services.reachPoint('batch.before_ack');
  return { ...ended, batch };
}

function visit(services: BatchServices, batch: ClaimedBatch, signal: AbortSignal): Promise<BatchEnd> {
  // Sent before the run's hours ended, or before its limits or the fleet's pace were lowered.
  if (!mayGoOn(batch.standing)) return releaseToStop(services, batch);
  return batch.kind === 'verify' ? verifyBatch(services, batch, signal) : reencryptBatch(services, batch, signal);
}
