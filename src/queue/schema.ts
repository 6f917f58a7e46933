// BullMQ's own schema in PostgreSQL, for the backend without Redis. `init` brings it up, so that workers need no DDL rights.
import { runMigrations } from 'bullmq';
import pg from 'pg';
import type { Secret } from '../crypto/secret.js';
import { postgresQueueSchema, queueUnavailable } from './connection.js';

/** Idempotent; concurrent callers wait for each other. Throws QUEUE_UNAVAILABLE. */
export async function migrateQueueSchema(url: Secret): Promise<void> {
  const client = new pg.Client({ connectionString: url.expose(), application_name: 'keyturn init' });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await runMigrations(client, postgresQueueSchema);
  } catch (error) {
    throw queueUnavailable(error);
  } finally {
    await client.end().catch(() => undefined);
  }
}
