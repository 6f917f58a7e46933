// A database of its own for a test file, on the server of the run.

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import { testDatabasePrefix } from './drop-test-databases.js';

export interface TestDatabase {
  readonly url: string;
  readonly pool: pg.Pool;
  /** Removes the database, whoever is still connected. Fails when connections of `pool` were not given back. */
  drop(): Promise<void>;
}

/** On the server of the run, unless another server's address is given. */
export async function createTestDatabase(adminUrl: string = inject('adminUrl')): Promise<TestDatabase> {
  const name = `${testDatabasePrefix(inject('testRun'))}${randomBytes(6).toString('hex')}`;
  await runAsAdmin(adminUrl, `CREATE DATABASE ${name} TEMPLATE template0 ENCODING 'UTF8'`);
  const url = new URL(adminUrl);
  url.pathname = `/${name}`;
  const pool = new pg.Pool({ connectionString: url.href, max: 10 });
  // Idle connections end when a test kills them or drops the database; the next query would report anything else.
  pool.on('error', () => undefined);

  return {
    url: url.href,
    pool,
    drop: async () => {
      const kept = pool.totalCount - pool.idleCount;
      // Ending a pool waits for the connections that are out, and a leaked one never comes back.
      if (kept === 0 && !pool.ended) await pool.end();
      await runAsAdmin(adminUrl, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      if (kept > 0) throw new Error(`${kept} connection(s) of the test pool were not released`);
    },
  };
}

async function runAsAdmin(adminUrl: string, statement: string): Promise<void> {
  const client = new pg.Client({ connectionString: adminUrl });
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}
