// How a visit to a batch ends when it does not end well: the batch goes back with its cursor and a cause, unless the lease
// is already lost or the database is away (then the lease expires by itself).
import { KeyturnError } from '../errors.js';
import { releaseIfLeased, type ClaimedBatch } from '../store/batches.js';
import { sqlstateOf } from '../store/database.js';
import type { BatchEnd, BatchServices } from './services.js';

/** Thrown inside the write transaction, so that it rolls back: another worker has the batch. */
export class LeaseLost extends Error {}

/** A cell names a key this member lacks; never the cell's fault. */
export class Blocked extends Error {
  constructor(
    readonly reason: 'KEY_NOT_HELD' | 'KEY_RETIRED',
    readonly keyId: string,
  ) {
    super(reason);
  }
}

export async function releaseToStop(services: BatchServices, batch: ClaimedBatch): Promise<BatchEnd> {
  const released = await releaseIfLeased(services.database, batch, { delayMs: 0, error: undefined });
  return released ? { end: 'stopped' } : { end: 'lost' };
}

/** Throws what is not about this batch: an outage, a bug. */
export async function releaseAfter(services: BatchServices, batch: ClaimedBatch, error: unknown): Promise<BatchEnd> {
  if (error instanceof LeaseLost) return { end: 'lost' };
  const { cause, delayMs } = await causeOf(services, batch, error);
  return (await releaseIfLeased(services.database, batch, { delayMs, error: cause }))
    ? { end: 'released', cause }
    : { end: 'lost' };
}

/** A server that answers that its disk is full can still be told; one that is away cannot. */
function isOutage(error: KeyturnError): boolean {
  return error.code === 'DATABASE_UNAVAILABLE' && sqlstateOf(error)?.startsWith('53') !== true;
}

/** As the batch keeps it: a code, and the SQLSTATE where the database had one. */
export function describeCause(error: KeyturnError): string {
  const sqlstate = sqlstateOf(error);
  return sqlstate === undefined ? error.code : `${error.code} ${sqlstate}`;
}

async function causeOf(
  services: BatchServices,
  batch: ClaimedBatch,
  error: unknown,
): Promise<{ cause: string; delayMs: number }> {
  if (error instanceof Blocked) {
    // The key may have arrived a moment ago: one refresh, and the batch comes back soon.
    await services.keyrings.refresh(batch.run.keyringName);
    return { cause: `${error.reason} ${error.keyId}`, delayMs: 1_000 };
  }
  if (!(error instanceof KeyturnError) || isOutage(error)) throw error;
  return {
    cause: describeCause(error),
    delayMs: Math.min(30_000, 500 * 2 ** batch.attempts),
  };
}
