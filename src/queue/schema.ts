// BullMQ's own schema in PostgreSQL, for the backend without Redis. `init` brings it up, so that workers need no DDL rights.
import pg from 'pg';
import type { Secret } from '../crypto/secret.js';
import { postgresQueueSchema, queueUnavailable } from './address.js';

type MigrationClient = Parameters<typeof import('bullmq').runMigrations>[0];

/** BullMQ is loaded when it is needed: among the operator's commands `init` alone needs it, and loading takes the longest. */
async function runMigrations(client: MigrationClient): Promise<void> {
  const bullmq = await import('bullmq');
  await bullmq.runMigrations(client, postgresQueueSchema);
}

/** Idempotent; concurrent callers wait for each other. Throws QUEUE_UNAVAILABLE. */
export async function migrateQueueSchema(url: Secret): Promise<void> {
  const client = new pg.Client({ connectionString: url.expose(), application_name: 'keyturn init' });
  client.on('error', () => undefined);
  try {
    await client.connect();
    const { rowCount } = await client.query('SELECT 1 WHERE to_regnamespace($1) IS NOT NULL', [postgresQueueSchema]);
    await runMigrations(rowCount === 1 ? withinSchema(client) : client);
  } catch (error) {
    throw queueUnavailable(error);
  } finally {
    await client.end().catch(() => undefined);
  }
}

/** CREATE SCHEMA IF NOT EXISTS asks for the right to create schemas even where it is there already. */
function withinSchema(client: pg.Client): MigrationClient {
  const query = (text: string, values?: unknown[]): Promise<pg.QueryResult> =>
    text.startsWith('CREATE SCHEMA') ? client.query('SELECT') : client.query(text, values);
  return { query } as MigrationClient;
}

/** Every statement that migrates an empty database, in order, for `init --print-sql`. Connects to nothing. */
export async function queueSchemaStatements(): Promise<readonly string[]> {
  const statements: string[] = [];
  // What the migrations ask of an empty database: a version of the server they know, and that none of them was applied.
  const answers = { num: '180000', ver: '18.0', version: 0, min_client_version: 0 };
  const client = {
    query(text: string, values: readonly unknown[] = []) {
      if (!/^\s*SELECT\b/i.test(text)) statements.push(values.length === 0 ? text : withValues(text, values));
      return Promise.resolve({ rows: [answers], rowCount: 1 });
    },
  };
  await runMigrations(client as unknown as MigrationClient);
  return statements;
}

function withValues(text: string, values: readonly unknown[]): string {
  return text.replaceAll(/\$(\d+)/g, (_, at: string) => {
    const value = values[Number(at) - 1];
    return typeof value === 'number' ? String(value) : `'${String(value).replaceAll("'", "''")}'`;
  });
}
