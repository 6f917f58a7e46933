// Once per test run: one PostgreSQL and, where there is one, one Redis. What the environment names is used as it is;
// what is missing is started here and stopped at teardown. Tests get the addresses through `inject`.

import { randomBytes } from 'node:crypto';
import pg from 'pg';
import type { TestProject } from 'vitest/node';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import { describeCrypto, nativeAddon } from '../../src/crypto/native-addon.js';
import { Secret } from '../../src/crypto/secret.js';
import { migrateQueueSchema } from '../../src/queue/schema.js';
import { migrate } from '../../src/store/schema.js';
import { dropTestDatabases, testDatabasePrefix } from './drop-test-databases.js';
import { answersPing, type PrivateRedis, startPrivateRedis } from './redis.js';
import { missingForSoftHsm } from './softhsm.js';

declare module 'vitest' {
  interface ProvidedContext {
    /** A database from which others can be created; tests do not use it themselves. */
    readonly adminUrl: string;
    /** Undefined when the run has no Redis. */
    readonly redisUrl: string | undefined;
    /** The name of a database with the schemas of `init`, to be copied; nobody may be connected to it. */
    readonly migratedDatabase: string;
    /** Marks the databases of this run, on a server that others may use too. */
    readonly testRun: string;
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const testRun = randomBytes(4).toString('hex');
  const givenUrl = databaseUrlFrom(process.env);
  let server: EmbeddedPostgres | undefined;
  let redis: PrivateRedis | undefined;
  const teardown = async () => {
    await redis?.stop();
    await server?.stop();
  };
  try {
    server = givenUrl === undefined ? await startEmbeddedPostgres() : undefined;
    redis = process.env.REDIS_URL ? undefined : await startPrivateRedis();
    const adminUrl = givenUrl ?? server?.url;
    // Unreachable: one of the two is always there.
    if (adminUrl === undefined) throw new Error('neither a given nor an embedded PostgreSQL');
    await checkDatabase(adminUrl);
    checkSoftHsm();
    checkNativePath();
    project.provide('adminUrl', adminUrl);
    project.provide('migratedDatabase', await createMigratedDatabase(adminUrl, testRun));
    project.provide('redisUrl', await checkedRedisUrl(process.env.REDIS_URL || redis?.url));
    project.provide('testRun', testRun);
    return async () => {
      // A server of our own goes with all its databases.
      if (givenUrl !== undefined) await dropTestDatabases({ adminUrl, testRun });
      await teardown();
    };
  } catch (error) {
    await teardown();
    throw error;
  }
}

/** DATABASE_URL, else libpq's variables when they name a host. */
function databaseUrlFrom(env: NodeJS.ProcessEnv): string | undefined {
  if (env.DATABASE_URL) return env.DATABASE_URL;
  if (!env.PGHOST) return undefined;
  const url = new URL('postgres://localhost/postgres');
  // A path is the folder of a Unix socket, which has no place in the host part of an address.
  if (env.PGHOST.startsWith('/')) url.searchParams.set('host', env.PGHOST);
  else url.hostname = env.PGHOST;
  url.port = env.PGPORT ?? '5432';
  url.username = encodeURIComponent(env.PGUSER ?? 'postgres');
  url.password = encodeURIComponent(env.PGPASSWORD ?? '');
  url.pathname = `/${encodeURIComponent(env.PGDATABASE ?? 'postgres')}`;
  return url.href;
}

async function checkDatabase(adminUrl: string): Promise<void> {
  const client = new pg.Client({ connectionString: adminUrl, connectionTimeoutMillis: 10_000 });
  await client.connect();
  await client.end();
}

async function createMigratedDatabase(adminUrl: string, testRun: string): Promise<string> {
  const name = `${testDatabasePrefix(testRun)}migrated`;
  const client = new pg.Client({ connectionString: adminUrl });
  await client.connect();
  try {
    await client.query(`CREATE DATABASE ${name} TEMPLATE template0 ENCODING 'UTF8'`);
  } finally {
    await client.end();
  }
  const url = new URL(adminUrl);
  url.pathname = `/${name}`;
  await migrate(new Secret(url.href));
  await migrateQueueSchema(new Secret(url.href));
  return name;
}

function checkSoftHsm(): void {
  const missing = missingForSoftHsm();
  if (missing === undefined) return;
  if (process.env.KEYTURN_REQUIRE_PKCS11 === '1')
    throw new Error(`KEYTURN_REQUIRE_PKCS11 is 1, but the tests on a PKCS#11 token cannot run: ${missing}`);
  process.stdout.write(`PKCS#11: the tests on a token are skipped (${missing})\n`);
}

function checkNativePath(): void {
  if (nativeAddon !== undefined) return;
  if (process.env.KEYTURN_REQUIRE_NATIVE === '1')
    throw new Error(`KEYTURN_REQUIRE_NATIVE is 1, but values are encrypted through ${describeCrypto()}`);
  process.stdout.write(`Cryptography: ${describeCrypto()}; its tests are skipped (npm run build:native)\n`);
}

async function checkedRedisUrl(url: string | undefined): Promise<string | undefined> {
  if (url !== undefined) {
    if (!(await answersPing(url))) throw new Error('the Redis of REDIS_URL does not answer');
    return url;
  }
  if (process.env.KEYTURN_REQUIRE_REDIS === '1') {
    throw new Error(
      'KEYTURN_REQUIRE_REDIS is 1, but there is no Redis: set REDIS_URL, or install redis-server and have it on PATH',
    );
  }
  process.stdout.write(
    'Redis: none found, the Redis half of the queue suite is skipped (set REDIS_URL or install redis-server)\n',
  );
  return undefined;
}
