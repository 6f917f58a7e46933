// Where the demo's shop lives: an embedded PostgreSQL, or a database of its own on the server that the environment names.
// Existing databases are never touched; either way nothing of it is left at the end.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { startEmbeddedPostgres } from '../../embedded/postgres.js';
import { KeyturnError } from '../../errors.js';

export interface DemoDatabase {
  /** For people. */
  readonly where: string;
  readonly urls: { readonly DATABASE_URL: string; readonly DATABASE_DIRECT_URL: string };
  /** Removes it, whoever is still connected. */
  remove(): Promise<void>;
}

export interface GivenServer {
  readonly url: string;
  /** Past a pooler, where there is one. */
  readonly directUrl: string;
}

export async function openDemoDatabase(given: GivenServer | undefined): Promise<DemoDatabase> {
  return given === undefined ? openEmbedded() : createOn(given);
}

async function openEmbedded(): Promise<DemoDatabase> {
  const server = await startEmbeddedPostgres();
  return {
    where: `an embedded PostgreSQL of its own on port ${server.port}`,
    urls: { DATABASE_URL: server.url, DATABASE_DIRECT_URL: server.url },
    remove: () => server.stop(),
  };
}

async function createOn(given: GivenServer): Promise<DemoDatabase> {
  const name = `keyturn_demo_${randomBytes(6).toString('hex')}`;
  const urls = {
    DATABASE_URL: withDatabase(given.url, name),
    DATABASE_DIRECT_URL: withDatabase(given.directUrl, name),
  };
  await runOn(given.directUrl, `CREATE DATABASE ${name} TEMPLATE template0 ENCODING 'UTF8'`);
  return {
    where: `database ${name} on the given server`,
    urls,
    remove: () => runOn(given.directUrl, `DROP DATABASE IF EXISTS ${name} WITH (FORCE)`),
  };
}

function withDatabase(url: string, name: string): string {
  if (!URL.canParse(url))
    throw new KeyturnError('USAGE', 'DATABASE_URL is not a URL; expected postgres://user@host:port/database');
  const changed = new URL(url);
  changed.pathname = `/${name}`;
  return changed.href;
}

async function runOn(url: string, statement: string): Promise<void> {
  const client = new pg.Client({
    connectionString: url,
    application_name: 'keyturn demo',
    connectionTimeoutMillis: 10_000,
  });
  client.on('error', () => undefined);
  try {
    await client.connect();
    await client.query(statement);
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'no answer';
    throw new KeyturnError(
      'DATABASE_UNAVAILABLE',
      `the demo could not run ${statement.split(' ', 2).join(' ')} on the server of DATABASE_URL (${code}); the role needs CREATEDB, or leave DATABASE_URL unset to use an embedded server`,
      { cause: code },
    );
  } finally {
    await client.end().catch(() => undefined);
  }
}
