// A database of its own for a test, on the server of the run. Closing it is quick; the databases of a test file are removed
// together at its end, since the server writes a checkpoint for each removal and one does for all that wait.

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, inject } from 'vitest';
import { testDatabasePrefix } from './drop-test-databases.js';

export interface TestDatabase {
  readonly url: string;
  readonly pool: pg.Pool;
  /** Shuts out whoever is still connected, for good. Fails when connections of `pool` were not given back. */
  drop(): Promise<void>;
}

export interface TestDatabaseOptions {
  /** Of another server than that of the run. */
  readonly adminUrl?: string | undefined;
  /** With the schemas that `init` makes, so that it need not. On the server of the run alone. */
  readonly isMigrated?: boolean;
}

const closed: { readonly adminUrl: string; readonly name: string }[] = [];

afterAll(removeClosedDatabases);

export async function createTestDatabase(options: TestDatabaseOptions = {}): Promise<TestDatabase> {
  const adminUrl = options.adminUrl ?? inject('adminUrl');
  const name = `${testDatabasePrefix(inject('testRun'))}${randomBytes(6).toString('hex')}`;
  const template =
    options.isMigrated === true && options.adminUrl === undefined ? inject('migratedDatabase') : 'template0';
  await runAsAdmin(adminUrl, `CREATE DATABASE ${name} TEMPLATE ${template} ENCODING 'UTF8'`);
  const url = new URL(adminUrl);
  url.pathname = `/${name}`;
  const pool = new pg.Pool({ connectionString: url.href, max: 10 });
  // Idle connections end when a test kills them or drops the database; the next query would report anything else.
  pool.on('error', () => undefined);
  let isDropped = false;

  return {
    url: url.href,
    pool,
    drop: async () => {
      const kept = pool.totalCount - pool.idleCount;
      // Ending a pool waits for the connections that are out, and a leaked one never comes back.
      if (kept === 0 && !pool.ended) await pool.end();
      if (isDropped) return;
      isDropped = true;
      await runAsAdmin(
        adminUrl,
        `ALTER DATABASE ${name} ALLOW_CONNECTIONS false`,
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${name}'`,
      );
      closed.push({ adminUrl, name });
      if (kept > 0) throw new Error(`${kept} connection(s) of the test pool were not released`);
    },
  };
}

let removing: Promise<unknown> = Promise.resolve();

/** Until none is left, whoever began. Those of a server that a test has stopped by now went with it. */
export async function removeClosedDatabases(): Promise<void> {
  const names = closed.splice(0);
  removing = Promise.all([
    removing,
    ...names.map(async ({ adminUrl, name }) => {
      const removed = runAsAdmin(adminUrl, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      await (adminUrl === inject('adminUrl') ? removed : removed.catch(() => undefined));
    }),
  ]);
  await removing;
}

async function runAsAdmin(adminUrl: string, ...statements: string[]): Promise<void> {
  const client = new pg.Client({ connectionString: adminUrl });
  await client.connect();
  try {
    for (const statement of statements) await client.query(statement);
  } finally {
    await client.end();
  }
}
