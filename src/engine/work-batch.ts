// What a worker does with one delivered job: claim the batch, run it, tell how it ended. A job whose batch is not waiting
// for this very generation is dropped: delivered twice, late, or of a run that is paused or over.
import type { BatchJob } from '../queue/connection.js';
import { claimIfDispatched, type ClaimedBatch } from '../store/batches.js';
import { reencryptBatch } from './reencrypt-batch.js';
import type { BatchEnd, BatchServices } from './services.js';
import { verifyBatch } from './verify.js';

export type Worked = (BatchEnd & { readonly batch: ClaimedBatch }) | { readonly end: 'dropped' };

export async function workBatch(services: BatchServices, job: BatchJob, signal: AbortSignal): Promise<Worked> {
  const batch = await claimIfDispatched(services.database, { ...job, memberId: services.memberId });
  if (batch === undefined) return { end: 'dropped' };
  const ended =
    batch.kind === 'verify'
      ? await verifyBatch(services, batch, signal)
      : await reencryptBatch(services, batch, signal);
  await services.reachPoint('batch.before_ack');
  return { ...ended, batch };
}
