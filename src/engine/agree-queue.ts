// Supervisor and workers must mean the same queue. The cluster row says which one; a marker kept in the queue itself tells
// two servers with the same settings apart.
import { randomUUID } from 'node:crypto';
import { KeyturnError } from '../errors.js';
import type { QueueAddress } from '../queue/address.js';
import type { BatchQueue } from '../queue/jobs.js';
import type { Database } from '../store/database.js';
import { hasLeader } from '../store/leadership.js';
import { listMembers } from '../store/members.js';
import { findQueueRecord, writeQueueRecord, type QueueRecord } from '../store/queue-record.js';

/** The supervisor's side: takes the queue over where nobody uses another. Returns the marker. Throws QUEUE_MISMATCH. */
export async function claimQueue(database: Database, queue: BatchQueue, address: QueueAddress): Promise<string> {
  const inQueue = await queue.findMarker();
  const marker = await database.transaction(async (client) => {
    await client.query('SELECT 1 FROM keyturn.cluster FOR UPDATE');
    const record = await findQueueRecord(client);
    if (record !== undefined && isSameQueue(record, address) && (inQueue === undefined || inQueue === record.marker))
      return record.marker;
    const users = (await listMembers(client)).filter((member) => member.isLive && member.kind !== 'application');
    if (record !== undefined && (users.length > 0 || (await hasLeader(client)))) throw mismatch(record, address);
    const created = { backend: address.backend, prefix: address.prefix, marker: randomUUID() };
    await writeQueueRecord(client, created);
    return created.marker;
  });
  if (inQueue !== marker) await queue.placeMarker(marker);
  return marker;
}

const pollMs = 250;
const markerDeadlineMs = 30_000;

/** The worker's side: waits for a supervisor's record, then compares. Throws QUEUE_MISMATCH. */
export async function joinQueue(
  database: Database,
  queue: BatchQueue,
  address: QueueAddress,
  options: { signal: AbortSignal; onWait: (words: string) => void },
): Promise<void> {
  let until = Infinity;
  let said = '';
  const wait = async (words: string): Promise<void> => {
    if (words !== said) options.onWait(words);
    said = words;
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  };
  while (!options.signal.aborted) {
    const record = await findQueueRecord(database);
    if (record === undefined) {
      await wait('waiting for a first supervisor; start one with: keyturn supervisor');
      continue;
    }
    if (!isSameQueue(record, address)) throw mismatch(record, address);
    const inQueue = await queue.findMarker();
    if (inQueue === record.marker) return;
    // A wiped queue has no marker until the supervisor puts it back; another one's marker is another queue.
    until = Math.min(until, performance.now() + markerDeadlineMs);
    if (inQueue !== undefined || performance.now() > until) throw mismatch(record, address);
    await wait('waiting for the supervisor to mark the queue');
  }
}

/** For processes that run on: throws QUEUE_MISMATCH when a supervisor has moved to another queue. */
export async function requireSameQueue(database: Database, address: QueueAddress): Promise<void> {
  const record = await findQueueRecord(database);
  if (record !== undefined && !isSameQueue(record, address)) throw mismatch(record, address);
}

function isSameQueue(record: QueueRecord, address: QueueAddress): boolean {
  return record.backend === address.backend && record.prefix === address.prefix;
}

function mismatch(record: QueueRecord, address: QueueAddress): KeyturnError {
  const hint =
    record.backend === address.backend
      ? 'both say the same kind, yet it is another server or database'
      : record.backend === 'redis'
        ? 'set REDIS_URL here as it is set for the supervisor'
        : 'unset REDIS_URL here, or set it for the supervisor too';
  return new KeyturnError(
    'QUEUE_MISMATCH',
    `this process would use the ${address.backend} queue ${address.prefix}, the cluster uses the ${record.backend} queue ${record.prefix}; ${hint}`,
    { here: address.backend, cluster: record.backend },
  );
}
