// Database roles for tests: cluster-wide, so named at random, and dropped with what they own and were granted.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { inject } from 'vitest';
import { removeClosedDatabases } from './database.js';

export interface TestRole {
  readonly name: string;
  /** The same database as seen by this role. */
  urlFor(databaseUrl: string): string;
  /** After every database in which it was granted something was dropped. */
  drop(): Promise<void>;
}

/** A login role with a password and no other right. */
export async function createTestRole(): Promise<TestRole> {
  const name = `keyturn_test_${randomBytes(6).toString('hex')}`;
  const password = randomBytes(12).toString('hex');
  await runAsAdmin(`CREATE ROLE ${name} LOGIN PASSWORD '${password}'`);
  return {
    name,
    urlFor(databaseUrl) {
      const url = new URL(databaseUrl);
      url.username = name;
      url.password = password;
      return url.href;
    },
    async drop() {
      await removeClosedDatabases();
      await runAsAdmin(`DROP ROLE ${name}`);
    },
  };
}

async function runAsAdmin(statement: string): Promise<void> {
  const client = new pg.Client({ connectionString: inject('adminUrl') });
  await client.connect();
  try {
    await client.query(statement);
  } finally {
    await client.end();
  }
}
