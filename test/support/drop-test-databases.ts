// The names of test databases, and the removal at the end of a run of those that a dying test file left behind.

import pg from 'pg';

export function testDatabasePrefix(testRun: string): string {
  return `keyturn_test_${testRun}_`;
}

export async function dropTestDatabases(options: {
  readonly adminUrl: string;
  readonly testRun: string;
}): Promise<void> {
  const client = new pg.Client({ connectionString: options.adminUrl });
  await client.connect();
  try {
    const { rows } = await client.query<{ datname: string }>(
      'SELECT datname FROM pg_database WHERE starts_with(datname::text, $1)',
      [testDatabasePrefix(options.testRun)],
    );
    for (const { datname } of rows) await client.query(`DROP DATABASE IF EXISTS ${datname} WITH (FORCE)`);
  } finally {
    await client.end();
  }
}
