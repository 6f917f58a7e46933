// doctor: every server, connection and queue that is not handled is refused or warned of, with a reason and a remedy.
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { examineCrypto, examineEverything, examineServerVersion } from '../../src/control/doctor.js';
import { describeCrypto, nativeAddon } from '../../src/crypto/native-addon.js';
import type { Finding } from '../../src/engine/preflight.js';
import { availableBackends } from '../support/backends.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { rest } from '../support/findings.js';
import { startPooler } from '../support/pooler.js';
import { startPrivateRedis } from '../support/redis.js';
import { createTestRole } from '../support/roles.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';

describe('server and connections', () => {
  let database: TestDatabase;

  beforeAll(async () => {
    database = await createTestDatabase();
  });

  afterAll(() => database.drop());

  async function examine(environment: Record<string, string>, check: string): Promise<readonly Finding[]> {
    const control = openControl({ environment, file: { keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } } } });
    return rest(await examineEverything(control.context).finally(control.close), check);
  }

  test('a server from version 14 on is fine, an older one is refused', () => {
    expect(examineServerVersion(140_000)).toMatchObject({ level: 'ok', subject: 'PostgreSQL 14.0' });
    expect(examineServerVersion(180_004)).toMatchObject({ level: 'ok', subject: 'PostgreSQL 18.4' });
    expect(examineServerVersion(130_021)).toEqual({
      level: 'refuse',
      check: 'server version',
      subject: 'PostgreSQL 13.21',
      reason: 'is older than PostgreSQL 14',
      remedy: 'upgrade the server',
    });
  });

  test('it says which path to OpenSSL is in use here, and how the native one is built where it is not', async () => {
    expect(examineCrypto(true, 'the native batch path')).toMatchObject({
      level: 'ok',
      reason: 'is called through the native batch path',
    });
    expect(examineCrypto(false, 'node:crypto').reason).toContain('npm run build:native');
    expect(await examine({ DATABASE_URL: database.url }, 'cryptography')).toEqual([
      examineCrypto(nativeAddon !== undefined, describeCrypto()),
    ]);
  });

  test('this server is fine', async () => {
    const environment = { DATABASE_URL: database.url };
    expect(await examine(environment, 'server version')).toMatchObject([{ level: 'ok' }]);
    expect(await examine(environment, 'server role')).toMatchObject([{ level: 'ok', reason: 'is a writable primary' }]);
    expect(await examine(environment, 'pooler')).toMatchObject([
      { level: 'ok', reason: 'reaches the server directly' },
    ]);
    expect(await examine(environment, 'queue')).toMatchObject([{ level: 'ok', subject: 'PostgreSQL' }]);
  });

  test('a database that was never initialised is a warning that names init', async () => {
    expect(await examine({ DATABASE_URL: database.url }, 'schema')).toMatchObject([
      { level: 'warn', reason: expect.stringContaining('no keyturn schema') as string, remedy: 'keyturn init' },
    ]);
  });

  test('read-only transactions are refused', async () => {
    const name = new URL(database.url).pathname.slice(1);
    await database.pool.query(`ALTER DATABASE ${name} SET default_transaction_read_only = on`);
    try {
      expect(await examine({ DATABASE_URL: database.url }, 'server role')).toEqual([
        {
          level: 'refuse',
          check: 'server role',
          subject: 'server',
          reason: 'transactions are read-only here',
          remedy: 'ALTER ROLE … RESET default_transaction_read_only',
        },
      ]);
    } finally {
      await database.pool.query(`ALTER DATABASE ${name} RESET default_transaction_read_only`);
    }
  });

  test('parameters in the server log are a warning', async () => {
    const name = new URL(database.url).pathname.slice(1);
    await database.pool.query(`ALTER DATABASE ${name} SET log_parameter_max_length_on_error = 100`);
    try {
      expect(await examine({ DATABASE_URL: database.url }, 'server log')).toMatchObject([
        {
          level: 'warn',
          reason: 'is 100B: a failed statement writes envelopes into the server log',
          remedy: 'set it to 0',
        },
      ]);
    } finally {
      await database.pool.query(`ALTER DATABASE ${name} RESET log_parameter_max_length_on_error`);
    }
  });

  test('a pooler without a direct connection is refused when the queue is in PostgreSQL, warned of when it is in Redis', async () => {
    const pooler = await startPooler(database.url);
    try {
      const refused = await examine({ DATABASE_URL: pooler.url }, 'pooler');
      expect(refused).toMatchObject([
        {
          level: 'refuse',
          subject: 'DATABASE_URL',
          reason: expect.stringContaining('LISTEN') as string,
          remedy: expect.stringContaining('set DATABASE_DIRECT_URL to the server itself') as string,
        },
      ]);
      expect(await examine({ DATABASE_URL: pooler.url, REDIS_URL: 'redis://127.0.0.1:1' }, 'pooler')).toMatchObject([
        { level: 'warn' },
      ]);
      expect(await examine({ DATABASE_URL: pooler.url, DATABASE_DIRECT_URL: database.url }, 'pooler')).toMatchObject([
        { level: 'ok', reason: 'goes through a pooler, DATABASE_DIRECT_URL is set' },
      ]);
    } finally {
      await pooler.close();
    }
  });

  test('a Redis that does not answer is refused, without its address (I7)', async () => {
    const findings = await examine({ DATABASE_URL: database.url, REDIS_URL: 'redis://:hunter2@127.0.0.1:1' }, 'queue');
    expect(findings).toMatchObject([
      {
        level: 'refuse',
        subject: 'Redis',
        reason: expect.stringContaining('no connection to the queue') as string,
        remedy: expect.stringContaining('unset REDIS_URL') as string,
      },
    ]);
    expect(JSON.stringify(findings)).not.toContain('hunter2');
  });

  test.runIf(availableBackends().includes('redis'))(
    'a Redis that may evict jobs is refused, one that evicts nothing is fine',
    async () => {
      const redis = await startPrivateRedis();
      if (redis === undefined) throw new Error('redis-server is gone from PATH');
      const client = new Redis(redis.url);
      try {
        const environment = { DATABASE_URL: database.url, REDIS_URL: redis.url };
        expect(await examine(environment, 'queue')).toMatchObject([
          { level: 'ok', reason: 'answers and evicts nothing' },
        ]);
        await client.config('SET', 'maxmemory-policy', 'allkeys-lru');
        expect(await examine(environment, 'queue')).toEqual([
          {
            level: 'refuse',
            check: 'queue',
            subject: 'Redis',
            reason: 'maxmemory-policy is allkeys-lru, so jobs may be evicted',
            remedy: 'CONFIG SET maxmemory-policy noeviction',
          },
        ]);
      } finally {
        client.disconnect();
        await redis.stop();
      }
    },
  );
});

describe('what pacing would not see', () => {
  let shop: Shop;
  beforeAll(async () => {
    shop = await openShop();
  });
  afterAll(() => shop.close());

  async function examine(file: ConfigFile): Promise<readonly Finding[]> {
    const control = openControl({ environment: { DATABASE_URL: shop.url }, file });
    return rest(await examineEverything(control.context).finally(control.close), 'pacing');
  }

  test('is warned of with its remedy: the number of CPUs, and the right of the role that supervisors log in as', async () => {
    const sessions = {
      level: 'warn',
      check: 'pacing',
      subject: 'sessions',
      reason: 'the number of CPUs of the database server is not known, so no run gives way to busy sessions',
      remedy: 'set pace.cpus in keyturn.yaml, then keyturn init',
    };
    // A superuser sees everything.
    expect(await examine(shopConfig)).toEqual([sessions]);
    const role = await createTestRole();
    try {
      const file = { ...shopConfig, roles: { worker: role.name } };
      expect(await examine(file)).toMatchObject([
        sessions,
        { level: 'warn', subject: role.name, remedy: `GRANT pg_monitor TO ${role.name}` },
      ]);
      await shop.query(`GRANT pg_monitor TO ${role.name}`);
      await shop.query('UPDATE keyturn.cluster SET cpus = 8');
      expect(await examine(file)).toMatchObject([{ level: 'ok', subject: 'gauges' }]);
    } finally {
      await role.drop();
    }
  });

  test('is no matter before init', async () => {
    const database = await createTestDatabase();
    const control = openControl({ environment: { DATABASE_URL: database.url }, file: shopConfig });
    try {
      expect(rest(await examineEverything(control.context), 'pacing')).toEqual([]);
    } finally {
      await control.close();
      await database.drop();
    }
  });
});
