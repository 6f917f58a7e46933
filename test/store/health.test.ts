// What the statements about health answer on a real server: what is there is counted, what the role may not see is said
// to be unseen, and our own sessions are not taken for others.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import pg from 'pg';
import { Secret } from '../../src/crypto/secret.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import {
  chooseCanary,
  countActiveSessions,
  countBlockedByUs,
  listVacuums,
  readCheckpoints,
  readFleet,
  readOldestTransaction,
  readReplication,
  readSlots,
  readTables,
  readWalArchive,
  timeCommit,
  timeRead,
} from '../../src/store/health.js';
import { readPaceSettings } from '../../src/store/pace-settings.js';
import type { ConfigFile } from '../../src/config.js';
import { openControl } from '../../src/app.js';
import { init } from '../../src/control/init.js';
import { insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

let shop: Shop;
let database: Database;
let narrow: Database;
const deadlineMs = 20_000;
const role = `narrow_${Math.random().toString(36).slice(2, 8)}`;

beforeAll(async () => {
  shop = await openShop();
  database = openDatabase({ url: new Secret(shop.url), maxConnections: 3, applicationName: 'keyturn gauges' });
  await shop.query(`CREATE ROLE ${role} LOGIN PASSWORD 'narrow'`);
  await shop.query(`GRANT USAGE ON SCHEMA keyturn TO ${role}`);
  await shop.query(`GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO ${role}`);
  const url = new URL(shop.url);
  url.username = role;
  url.password = 'narrow';
  narrow = openDatabase({ url: new Secret(url.href), maxConnections: 2, applicationName: 'keyturn gauges' });
});

afterAll(async () => {
  await narrow?.close();
  await database?.close();
  await shop?.query(`DROP OWNED BY ${role}`);
  await shop?.query(`DROP ROLE ${role}`);
  await shop?.close();
});

async function connected(name: string): Promise<pg.Client> {
  const client = new pg.Client({ connectionString: shop.url, application_name: name });
  // Some are ended by the test.
  client.on('error', () => undefined);
  await client.connect();
  return client;
}

describe('health of the database', () => {
  test('without replica, archive and slot there is nothing to judge, whether or not the role is in pg_monitor', async () => {
    for (const asked of [database, narrow]) {
      const replication = await readReplication(asked);
      expect(replication).toEqual({ seen: { written: expect.any(Number), replicas: [] } });
      expect(await readWalArchive(asked)).toBeUndefined();
      expect(await readSlots(asked)).toEqual([]);
    }
  });

  test('a slot is graded', async () => {
    const name = `slot_${role}`;
    await shop.query('SELECT pg_create_physical_replication_slot($1, true)', [name]);
    try {
      expect(await readSlots(narrow)).toEqual([{ name, grade: 'reserved', left: undefined }]);
    } finally {
      await shop.query('SELECT pg_drop_replication_slot($1)', [name]);
    }
  });

  test('a role outside pg_monitor is told what to grant instead of a number', async () => {
    const unavailable = { unavailable: expect.stringMatching(/GRANT pg_monitor/) };
    expect(await countActiveSessions(narrow)).toEqual(unavailable);
    expect(await readOldestTransaction(narrow)).toEqual(unavailable);
    expect(await listVacuums(narrow)).toEqual(unavailable);
    await shop.query(`GRANT pg_monitor TO ${role}`);
    try {
      expect(await countActiveSessions(narrow)).toEqual({ seen: expect.any(Number) });
      expect(await listVacuums(narrow)).toEqual({ seen: [] });
    } finally {
      await shop.query(`REVOKE pg_monitor FROM ${role}`);
    }
  });

  test('active sessions of others are counted, ours are not', async () => {
    const many = 12;
    // Others use the server too: what is expected of the count is waited for, and never comes about if it is wrong.
    const sleep = async (name: string, isExpected: (counted: number) => boolean): Promise<number> => {
      const clients = await Promise.all(Array.from({ length: many }, () => connected(name)));
      const ended = clients.map((client) => client.query('SELECT pg_sleep(60)').catch(() => undefined));
      try {
        return await until(
          async () => {
            const [row] = await shop.query(
              `SELECT count(*)::int AS n FROM pg_stat_activity WHERE application_name = $1 AND state = 'active'`,
              [name],
            );
            if (row?.['n'] !== many) return undefined;
            const counted = await countActiveSessions(database);
            return 'seen' in counted && isExpected(counted.seen) ? counted.seen : undefined;
          },
          { what: `${many} sessions of ${name} to sleep and the count to be as expected`, deadlineMs },
        );
      } finally {
        await shop.query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1', [name]);
        await Promise.all(ended);
      }
    };
    expect(await sleep('shop health test', (counted) => counted >= many)).toBeGreaterThanOrEqual(many);
    expect(await sleep('keyturn health test', (counted) => counted < many)).toBeLessThan(many);
  });

  test('a session that waits for one of ours is counted, one that waits for another is not', async () => {
    await shop.query('CREATE TABLE held (id integer PRIMARY KEY)');
    await shop.query('INSERT INTO held VALUES (1)');
    for (const [holderName, counted] of [
      ['keyturn worker', 1],
      ['shop', 0],
    ] as const) {
      const [holder, waiter] = await Promise.all([connected(holderName), connected('shop')]);
      await holder.query('BEGIN');
      await holder.query('UPDATE held SET id = 1');
      const waited = waiter.query('UPDATE held SET id = 1');
      try {
        await until(
          async () =>
            (await shop.query('SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = $1', ['transactionid']))
              .length === 1,
          { what: 'the second session to wait', deadlineMs },
        );
        for (const asked of [database, narrow]) expect(await countBlockedByUs(asked)).toBe(counted);
      } finally {
        await holder.query('ROLLBACK');
        await waited;
        await Promise.all([holder.end(), waiter.end()]);
      }
    }
  });

  test('a transaction that holds back vacuum is as old as it is', async () => {
    const client = await connected('shop');
    try {
      await client.query('BEGIN ISOLATION LEVEL REPEATABLE READ');
      await client.query('SELECT 1');
      const first = await readOldestTransaction(database);
      if ('unavailable' in first) throw new Error(first.unavailable);
      expect(first.seen).toBeGreaterThan(0);
      await until(
        async () => {
          const now = await readOldestTransaction(database);
          return 'seen' in now && now.seen > first.seen;
        },
        { what: 'the transaction to grow old', deadlineMs },
      );
    } finally {
      await client.end();
    }
  });

  test('tables that a run moves are looked at, and autovacuum that is off is noticed', async () => {
    expect(await readFleet(database)).toEqual({ workers: 0, isWorking: false, isEmergency: false });
    const keyturn = await shop.open();
    await insertCustomers(shop, keyturn, [1, 2, 3]);
    expect(await readTables(database)).toEqual([]);
    await shop.query(`ALTER TABLE customer SET (autovacuum_enabled = off)`);
    const run = await shop.order();
    await shop.query(
      `UPDATE keyturn.run SET state = 'running', pass = 1, priority = 10, emergency = true WHERE id = $1`,
      [run],
    );
    await shop.query('INSERT INTO keyturn.run_target (run_id, pass, target_id) SELECT $1, 1, id FROM keyturn.target', [
      run,
    ]);
    expect(await readFleet(database)).toEqual({ workers: 0, isWorking: true, isEmergency: true });
    // An emergency outside its hours lets the others work, as gently as ever.
    await shop.query(
      `UPDATE keyturn.run SET hours_from = at + interval '2 hours', hours_to = at + interval '3 hours', hours_zone = 'UTC'
       FROM (SELECT (clock_timestamp() AT TIME ZONE 'UTC')::time(0) AS at) now`,
    );
    expect(await readFleet(narrow)).toEqual({ workers: 0, isWorking: true, isEmergency: false });
    const seen = {
      table: 'public.customer',
      bytes: expect.any(Number),
      deadRows: expect.any(Number),
      liveRows: expect.any(Number),
    };
    expect(await readTables(narrow)).toEqual([{ ...seen, isCleanedUp: false }]);
    await shop.query(`ALTER TABLE customer RESET (autovacuum_enabled)`);
    // The server's own setting stands where the table says nothing.
    const [server] = await shop.query(`SELECT current_setting('autovacuum')::boolean AS cleans`);
    expect(await readTables(narrow)).toEqual([{ ...seen, isCleanedUp: server?.['cleans'] }]);
  });

  test('checkpoints come with the amount of WAL that forces one', async () => {
    const [{ segment } = { segment: 0 }] = await shop.query(
      `SELECT pg_size_bytes(current_setting('max_wal_size'))::float8 AS segment`,
    );
    const seen = await readCheckpoints(narrow);
    expect(seen.requested).toBeGreaterThanOrEqual(0);
    expect(seen.redo).toBeGreaterThan(0);
    expect(seen.walBetween).toBeGreaterThan(0.4 * Number(segment));
    expect(seen.walBetween).toBeLessThanOrEqual(Number(segment));
  });

  test('the canary reads a row of a registered table by its key, or nothing where there is none', async () => {
    const canary = await chooseCanary(database);
    expect(canary).toEqual({ statement: 'SELECT 1 FROM customer WHERE id = $1::bigint LIMIT 1', parameters: ['3'] });
    expect(await timeRead(database, canary)).toBeGreaterThan(0);
    await shop.query('DELETE FROM customer');
    expect(await timeRead(database, canary)).toBeGreaterThan(0);
    expect(await chooseCanary(database)).toEqual({ statement: 'SELECT 1', parameters: [] });
  });

  test('the canary commits a few bytes that are on the disk when it answers', async () => {
    const flushed = async (): Promise<number> =>
      Number((await shop.query(`SELECT pg_current_wal_flush_lsn() - '0/0' AS bytes`))[0]?.['bytes']);
    const before = await flushed();
    expect(await timeCommit(database)).toBeGreaterThan(0);
    expect(await flushed()).toBeGreaterThan(before);
  });

  test('init writes the number of processors and the optional sources, and audits a change once', async () => {
    expect(await readPaceSettings(database)).toEqual({
      cpus: undefined,
      optional: ['sessions', 'vacuum', 'transactions'],
    });
    const initWith = async (pace: ConfigFile['pace']): Promise<void> => {
      const opened = openControl({ environment: shop.environment(), file: { ...shopConfig, pace } });
      try {
        await init(opened.context);
      } finally {
        await opened.close();
      }
    };
    for (let time = 0; time < 2; time++) await initWith({ cpus: 16, optional: ['replicas'] });
    expect(await readPaceSettings(narrow)).toEqual({ cpus: 16, optional: ['replicas'] });
    expect(await shop.query(`SELECT after FROM keyturn.audit WHERE action = 'cluster.pace'`)).toEqual([
      { after: { cpus: 16, optional: ['replicas'] } },
    ]);
    await expect(initWith({ optional: ['weather'] })).rejects.toMatchObject({
      code: 'CONFIG_INVALID',
      message: expect.stringContaining('weather; known: replicas, wal_archive'),
    });
  });
});
