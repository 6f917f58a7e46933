// Which queue this cluster uses: backend, prefix, and a marker that is also kept in the queue itself. Two processes that
// would talk past each other find out here.
import type { Queryable } from './database.js';

export interface QueueRecord {
  readonly backend: string;
  readonly prefix: string;
  readonly marker: string;
}

/** Undefined before the first supervisor. */
export async function findQueueRecord(database: Queryable): Promise<QueueRecord | undefined> {
  const { rows } = await database.query(
    'SELECT queue_backend, queue_prefix, queue_marker FROM keyturn.cluster WHERE queue_marker IS NOT NULL',
  );
  return rows[0] === undefined
    ? undefined
    : { backend: String(rows[0][0]), prefix: String(rows[0][1]), marker: String(rows[0][2]) };
}

export async function writeQueueRecord(client: Queryable, record: QueueRecord): Promise<void> {
  await client.query('UPDATE keyturn.cluster SET queue_backend = $1, queue_prefix = $2, queue_marker = $3', [
    record.backend,
    record.prefix,
    record.marker,
  ]);
}
