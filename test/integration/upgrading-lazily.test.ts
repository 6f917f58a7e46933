// Lazy upgrades: a stale value that an application reads is rewritten soon after, and whatever goes wrong with it, the
// reader does not notice.
import pg from 'pg';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import type { Keyturn } from '../../src/app.js';
import { Secret } from '../../src/crypto/secret.js';
import { startLazyUpgrades, type LazyUpgrades } from '../../src/engine/lazy-upgrade.js';
import type { Target } from '../../src/rotation/target.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { setLazyUpgrades } from '../../src/control/lazy-upgrades.js';
import { readStatus } from '../../src/control/status.js';
import { Buyer, openOrmShop, ormConfig, ormTables, Seat, type OrmShop } from '../support/orm-shop.js';
import { openShop, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

let shop: Shop;
let keyturn: Keyturn;
let orm: OrmShop;
let activeKey: number;
let countedBefore = 0;

const staleRows = 1_100;
const wide = 'w'.repeat(300_000);

/** All rows are made under the first key once, before the second is activated; each test gets copies of some. */
beforeAll(async () => {
  shop = await openShop({ config: ormConfig, ddl: ormTables });
  const first = await shop.open('first');
  const writing = await openOrmShop(shop.url, first);
  const rows = Array.from({ length: staleRows }, (_, at) => ({ login: `l-${at}`, email: `e-${at}`, tag: 't' }));
  await writing.dataSource.manager.insert(Buyer, rows);
  const wideRows = Array.from({ length: 16 }, (_, at) => ({ login: `wide-${at}`, email: wide }));
  await writing.dataSource.manager.insert(Buyer, wideRows);
  await writing.dataSource.destroy();
  await first.close();
  await shop.query('CREATE TABLE stale_buyer AS SELECT * FROM buyer');
  activeKey = await shop.rotate();
  keyturn = await shop.open();
  orm = await openOrmShop(shop.url, keyturn);
});

afterAll(async () => {
  await orm.dataSource.destroy();
  await shop.close();
});

beforeEach(async () => {
  await settled();
  await shop.query('TRUNCATE buyer CASCADE');
  countedBefore = 0;
  countedBefore = await lazyRows();
});

/** Rows under the key before the active one. */
async function insertStale(count: number): Promise<string[]> {
  const rows = await shop.query('INSERT INTO buyer SELECT * FROM stale_buyer ORDER BY id LIMIT $1 RETURNING id::text', [
    count,
  ]);
  return rows.map(({ id }) => String(id));
}

/** How many rows name the active key in a column. */
async function countCurrent(column = 'email'): Promise<number> {
  const rows = await shop.query(`SELECT ${column} AS value FROM buyer`);
  const cell = keyturn.parts.targets.find(({ table }) => table === 'buyer');
  expect(cell).toBeDefined();
  return rows.filter(({ value }) => {
    const envelope = Buffer.from(String(value).slice(4), 'base64url');
    return envelope.readUInt32BE(4) === activeKey;
  }).length;
}

async function waitForCurrent(count: number): Promise<void> {
  await until(async () => (await countCurrent()) === count, { what: `${count} current rows`, deadlineMs: 20_000 });
}

/** Buffered rows have been written or dropped. */
function settled(): Promise<unknown> {
  return until(async () => keyturn.parts.upgrades.counts().queued === 0, {
    what: 'an empty buffer',
    deadlineMs: 10_000,
  });
}

async function lazyRows(): Promise<number> {
  const [row] = await shop.query(
    'SELECT coalesce(sum(rows_updated), 0)::int AS rows FROM keyturn.lazy_upgrade WHERE key_id = $1',
    [activeKey],
  );
  return Number(row?.['rows']) - countedBefore;
}

function targetNamed(name: string): Target {
  const found = keyturn.parts.targets.find(({ table }) => table === name);
  if (found === undefined) throw new Error(`no target ${name}`);
  return found;
}

/** Lazy upgrades of their own beside the application's, whose statements and troubles are counted. */
async function startCounted(): Promise<{
  upgrades: LazyUpgrades;
  statements: (kind: 'all' | 'rewriting') => number;
  troubles: unknown[];
  close: () => Promise<void>;
}> {
  const database = openDatabase({ url: new Secret(shop.url), maxConnections: 2, applicationName: 'counted' });
  const troubles: unknown[] = [];
  let asked = 0;
  let rewriting = 0;
  const counted: Database = {
    ...database,
    query(text, parameters) {
      asked++;
      return database.query(text, parameters);
    },
    transaction(work, begin) {
      asked++;
      if (begin?.includes('synchronous_commit') === true) rewriting++;
      return database.transaction(work, begin);
    },
  };
  const [member] = await shop.query(
    `SELECT id FROM keyturn.member WHERE name = 'test' ORDER BY started_at DESC LIMIT 1`,
  );
  const upgrades = startLazyUpgrades({
    database: counted,
    keyrings: keyturn.parts.keyrings,
    memberId: String(member?.['id']),
    onTrouble: (error) => troubles.push(error),
  });
  return {
    upgrades,
    statements: (kind) => (kind === 'all' ? asked : rewriting),
    troubles,
    async close() {
      await upgrades.close();
      await database.close();
    },
  };
}

describe('what is read is upgraded', () => {
  test('I9 rows that were read move to the active key soon after, all their columns together, and are counted', async () => {
    const ids = await insertStale(3);
    expect(await countCurrent()).toBe(0);
    const found = await orm.dataSource.manager.find(Buyer, { select: { id: true, email: true } });
    expect(found).toHaveLength(3);
    await waitForCurrent(3);
    expect(await countCurrent('tag')).toBe(3);
    expect(await lazyRows()).toBe(3);
    const [row] = await shop.query('SELECT version FROM buyer WHERE id = $1', [ids[0]]);
    expect(row).toEqual({ version: 1 });
    expect(await orm.dataSource.manager.findOneByOrFail(Buyer, { id: ids[0] ?? '' })).toMatchObject({ tag: 't' });
  });

  test('I3 a hundred readers of one stale cell cause one write (stampede)', async () => {
    const [id = ''] = await insertStale(1);
    const other = await shop.open('second');
    const second = await openOrmShop(shop.url, other);
    const [before] = await shop.query('SELECT xmin::text FROM buyer');
    const read = await Promise.all(
      Array.from({ length: 100 }, (_, at) =>
        (at % 2 === 0 ? orm : second).dataSource.manager.findOneByOrFail(Buyer, { id }),
      ),
    );
    expect(new Set(read.map(({ email }) => email)).size).toBe(1);
    await waitForCurrent(1);
    await Promise.all([other.close(), settled()]);
    await second.dataSource.destroy();
    const [after] = await shop.query('SELECT xmin::text FROM buyer');
    expect(after).not.toEqual(before);
    expect(await lazyRows()).toBe(1);
  });

  test('a plain pg user asks for an upgrade of the row it has read', async () => {
    const [id = ''] = await insertStale(1);
    const email = keyturn.column('buyer', 'email');
    const [row] = await shop.query('SELECT email FROM buyer');
    expect(await email.decrypt({ pk: id }, String(row?.['email']))).toMatchObject({ stale: true });
    email.upgrade({ pk: id });
    await waitForCurrent(1);
  });
});

describe('what is not upgraded', () => {
  test('I9 a transaction that is rolled back leaves its rows stale; one that commits upgrades them after its end', async () => {
    await insertStale(2);
    const { dataSource } = orm;
    await dataSource
      .transaction(async (manager) => {
        await manager.find(Buyer);
        throw new Error('undo');
      })
      .catch(() => undefined);
    expect(keyturn.parts.upgrades.counts().queued).toBe(0);
    await dataSource.transaction(async (manager) => {
      await manager.find(Buyer);
      await manager.transaction(async (nested) => void (await nested.find(Buyer)));
      expect(keyturn.parts.upgrades.counts().queued).toBe(0);
    });
    expect(keyturn.parts.upgrades.counts().queued).toBe(2);
    await waitForCurrent(2);
  });

  test('I9 reads of a read-only transaction, a read-only connection and a replica attempt no write', async () => {
    await insertStale(2);
    await orm.dataSource.transaction(async (manager) => {
      await manager.query('SET TRANSACTION READ ONLY');
      expect(await manager.find(Buyer)).toHaveLength(2);
    });
    const readOnly = await openOrmShop(shop.url, keyturn, {
      extra: { options: '-c default_transaction_read_only=on' },
    } as object);
    expect(await readOnly.dataSource.manager.find(Buyer)).toHaveLength(2);
    await readOnly.dataSource.destroy();
    const replicated = await openOrmShop(shop.url, keyturn, {
      replication: { master: { url: shop.url }, slaves: [{ url: shop.url }] },
    } as object);
    expect(await replicated.dataSource.manager.find(Buyer)).toHaveLength(2);
    expect(keyturn.parts.upgrades.counts().queued).toBe(0);
    const master = replicated.dataSource.createQueryRunner('master');
    await master.manager.find(Buyer);
    await master.release();
    await replicated.dataSource.destroy();
    expect(keyturn.parts.upgrades.counts().queued).toBe(2);
    await waitForCurrent(2);
  });

  test('I9 a write that the database refuses never reaches the reader, and the value stays as it is', async () => {
    const ids = await insertStale(3);
    await shop.query(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      IF NEW.id = ${ids[1] ?? ''} THEN RAISE EXCEPTION 'no'; END IF; RETURN NEW; END $$`);
    await shop.query('CREATE TRIGGER refuse BEFORE UPDATE ON buyer FOR EACH ROW EXECUTE FUNCTION refuse()');
    expect(await orm.dataSource.manager.find(Buyer)).toHaveLength(3);
    await waitForCurrent(2);
    // A row that is refused is left alone for a while, and later for longer.
    await settled();
    const { dropped } = keyturn.parts.upgrades.counts();
    expect(await orm.dataSource.manager.find(Buyer)).toHaveLength(3);
    expect(keyturn.parts.upgrades.counts()).toMatchObject({ queued: 0, dropped: dropped + 1 });
    await shop.query('DROP TRIGGER refuse ON buyer');
    await until(
      async () => {
        expect(await orm.dataSource.manager.find(Buyer)).toHaveLength(3);
        return (await countCurrent()) === 3;
      },
      { what: 'the refused row', deadlineMs: 20_000 },
    );
  });

  test('I9 a row that the database always refuses is told once', async () => {
    const [id = ''] = await insertStale(1);
    await shop.query(
      `CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$`,
    );
    await shop.query('CREATE TRIGGER never BEFORE UPDATE ON buyer FOR EACH ROW EXECUTE FUNCTION never()');
    const { upgrades, statements, troubles, close } = await startCounted();
    const target = targetNamed('buyer');
    await until(
      async () => {
        upgrades.offer(target, [id]);
        return statements('rewriting') >= 2;
      },
      { what: 'a second attempt', deadlineMs: 20_000 },
    );
    await until(async () => upgrades.counts().queued === 0, { what: 'an empty buffer', deadlineMs: 10_000 });
    await shop.query('DROP TRIGGER never ON buyer');
    await close();
    expect(troubles).toMatchObject([
      { code: 'DATABASE_ERROR', message: expect.stringMatching(/a row of public.buyer .*SQLSTATE P0001/) as unknown },
    ]);
  });

  test('I9 a row that somebody holds locked is left alone, without waiting', async () => {
    const [id = ''] = await insertStale(2);
    const holder = new pg.Client({ connectionString: shop.url });
    await holder.connect();
    await holder.query('BEGIN');
    await holder.query('SELECT 1 FROM buyer WHERE id = $1 FOR UPDATE', [id]);
    await orm.dataSource.manager.find(Buyer);
    await waitForCurrent(1);
    await holder.query('COMMIT');
    await holder.end();
    expect(await lazyRows()).toBe(1);
    await orm.dataSource.manager.find(Buyer);
    await waitForCurrent(2);
  });

  test('the switch in the keyring works without a restart, and so do rate and sample', async () => {
    await insertStale(3);
    const { context } = shop.control;
    expect(await setLazyUpgrades(context, undefined, { isOn: false }, 'busy day')).toMatchObject({
      lazy_upgrades: 'off',
    });
    await orm.dataSource.manager.find(Buyer);
    await settled();
    await orm.dataSource.manager.find(Buyer);
    expect(keyturn.parts.upgrades.counts().queued).toBe(0);
    expect(await countCurrent()).toBe(0);
    await setLazyUpgrades(context, undefined, { isOn: true, rowsPerSecond: 1, sample: 0.5 }, 'slowly');
    const [audit] = await shop.query(
      `SELECT reason, after FROM keyturn.audit WHERE action = 'keyring.lazy' ORDER BY id DESC LIMIT 1`,
    );
    expect(audit).toEqual({ reason: 'slowly', after: { isOn: true, rowsPerSecond: 1, sample: 0.5 } });
    await until(
      async () => {
        await orm.dataSource.manager.find(Buyer);
        return (await countCurrent()) > 0;
      },
      { what: 'the first row', deadlineMs: 20_000 },
    );
    await setLazyUpgrades(context, undefined, { rowsPerSecond: 500, sample: 1 }, 'fast again');
    await until(
      async () => {
        await orm.dataSource.manager.find(Buyer);
        return (await countCurrent()) === 3;
      },
      { what: 'all rows', deadlineMs: 20_000 },
    );
    await expect(setLazyUpgrades(context, undefined, { sample: 0 }, 'none')).rejects.toMatchObject({ code: 'USAGE' });
    await expect(setLazyUpgrades(context, undefined, { rowsPerSecond: 1.5 }, 'none')).rejects.toMatchObject({
      code: 'USAGE',
    });
  });
});

describe('how far and how fast', () => {
  test('I9 wide rows are read and written some megabytes at a time', async () => {
    await shop.query(`INSERT INTO buyer SELECT * FROM stale_buyer WHERE login LIKE 'wide-%'`);
    expect(await orm.dataSource.manager.find(Buyer)).toHaveLength(16);
    await waitForCurrent(16);
    const [slices] = await shop.query('SELECT count(DISTINCT xmin::text)::int AS slices FROM buyer');
    // 400 kB each as text: at most five or six fit.
    expect(Number(slices?.['slices'])).toBeGreaterThanOrEqual(3);
    expect(await orm.dataSource.manager.findOneByOrFail(Buyer, { login: 'wide-3' })).toMatchObject({ email: wide });
  });

  // Twelve statements: of two rows each with settings twice, a read and a write; or of two slices, each with the same.
  test.each([
    [
      'a low rate costs few statements, however many rows wait, and closing goes on when it may',
      { stale: 400, rowsPerSecond: 1, rowsToSee: 2 },
    ],
    [
      'with more waiting than the rate allows, rows are written a second’s worth at a time, not one by one',
      { stale: 300, rowsPerSecond: 50, rowsToSee: 100 },
    ],
  ])('%s', async (_, { stale, rowsPerSecond, rowsToSee }) => {
    const ids = await insertStale(stale);
    const { context } = shop.control;
    await setLazyUpgrades(context, undefined, { rowsPerSecond }, 'slow');
    const { upgrades, statements, close } = await startCounted();
    for (const id of ids) upgrades.offer(targetNamed('buyer'), [id]);
    await until(async () => upgrades.counts().rowsUpdated >= rowsToSee, {
      what: `${rowsToSee} rows`,
      deadlineMs: 20_000,
    });
    expect(statements('all')).toBeLessThanOrEqual(12);
    await setLazyUpgrades(context, undefined, { rowsPerSecond: 100_000 }, 'fast');
    await close();
    expect(upgrades.counts()).toMatchObject({ queued: 0, dropped: 0, rowsUpdated: ids.length });
    await setLazyUpgrades(context, undefined, { rowsPerSecond: 500 }, 'as ever');
  });
});

describe('gradual rotation', () => {
  test('the buffer is bounded, what finds no room stays readable, and closing writes what is queued', async () => {
    const ids = await insertStale(1_100);
    const { context } = shop.control;
    await setLazyUpgrades(context, undefined, { rowsPerSecond: 100_000 }, 'all at once');
    const other = await shop.open('short-lived');
    const second = await openOrmShop(shop.url, other);
    expect(await second.dataSource.manager.find(Buyer)).toHaveLength(ids.length);
    const { queued, rowsUpdated, dropped } = other.parts.upgrades.counts();
    expect(queued).toBeLessThanOrEqual(1_000);
    expect(dropped).toBeGreaterThanOrEqual(100);
    expect(queued + rowsUpdated + dropped).toBeLessThanOrEqual(ids.length);
    await other.close();
    await second.dataSource.destroy();
    expect(other.parts.upgrades.counts()).toEqual({ queued: 0, rowsUpdated: ids.length - dropped, dropped });
    expect(await countCurrent()).toBe(ids.length - dropped);
    await setLazyUpgrades(context, undefined, { rowsPerSecond: 500 }, 'as ever');
  });

  test('status tells what reads have moved and what is left; a run finishes the rest', async () => {
    const ids = await insertStale(6);
    await orm.dataSource.manager.findBy(
      Buyer,
      ids.slice(0, 4).map((id) => ({ id })),
    );
    await waitForCurrent(4);
    const [keyring] = (await readStatus(shop.control.context)).keyrings;
    expect(keyring?.lazy).toMatchObject({
      is_on: true,
      rows_updated: countedBefore + 4,
      stale_cells: 4,
      is_exact: true,
    });
    await Promise.all([shop.startSupervisor(), shop.startWorker()]);
    const run = await shop.waitForRun(await shop.order());
    expect(run).toMatchObject({ state: 'succeeded', rows_examined: 6, rows_updated: 2, rows_skipped_all_on_target: 4 });
    const [after] = (await readStatus(shop.control.context)).keyrings;
    expect(after?.lazy).toMatchObject({ rows_updated: countedBefore + 4, stale_cells: 0 });
  });

  test('I9 the application role upgrades with its own rights and the counting function alone', async () => {
    const { createTestRole } = await import('../support/roles.js');
    const { grantsFor } = await import('../../src/store/grants.js');
    const role = await createTestRole();
    try {
      for (const statement of [
        ...grantsFor({ app: role.name }, []).own,
        `GRANT SELECT, INSERT, UPDATE ON buyer, seat TO ${role.name}`,
      ])
        await shop.query(statement);
      const { openKeyturn } = await import('../../src/app.js');
      const [id = ''] = await insertStale(1);
      const narrow = await openKeyturn({
        config: ormConfig,
        environment: { ...shop.environment(), DATABASE_URL: role.urlFor(shop.url) },
        name: 'narrow',
      });
      const narrowOrm = await openOrmShop(role.urlFor(shop.url), narrow);
      await narrowOrm.dataSource.manager.findOneByOrFail(Buyer, { id });
      await waitForCurrent(1);
      expect(await lazyRows()).toBe(1);
      await expect(narrowOrm.dataSource.query('SELECT * FROM keyturn.lazy_upgrade')).rejects.toThrow(
        /permission denied/,
      );
      await narrowOrm.dataSource.destroy();
      await narrow.close();
      expect(Seat).toBeDefined();
    } finally {
      await shop.query(`DROP OWNED BY ${role.name}`);
      await role.drop();
    }
  });
});
