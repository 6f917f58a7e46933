// key rotate as one unattended command: it may be repeated after any failure, and never makes a second key.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import { createTestDatabase } from '../support/database.js';
import { insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';

// Each command is a process of its own.
vi.setConfig({ testTimeout: 120_000 });

const unattended = ['key', 'rotate', '--if-older-than', '80d', '--reencrypt'] as const;

/** Stands for the passing of a quarter. */
async function ageActiveKey(shop: Shop): Promise<void> {
  await shop.query(
    `UPDATE keyturn.data_key SET activated_at = activated_at - interval '90 days' WHERE state = 'active'`,
  );
}

async function keyStates(shop: Shop): Promise<string[]> {
  return (await shop.query('SELECT state FROM keyturn.data_key WHERE purpose = 1 ORDER BY version')).map((row) =>
    String(row['state']),
  );
}

describe('an old key', () => {
  let shop: Shop;
  let keyturn: KeyturnProcess;

  beforeAll(async () => {
    shop = await openShop();
    const writer = await shop.open();
    await insertCustomers(
      shop,
      writer,
      Array.from({ length: 400 }, (_, at) => at + 1),
    );
    await writer.close();
    await ageActiveKey(shop);
    keyturn = openKeyturnProcess(shop, shopConfig);
  });
  afterAll(async () => {
    keyturn.remove();
    await shop.close();
  });

  test('I5 killed in the middle of the run and repeated, it goes on with that run and that key; repeated again, it has nothing to do', async () => {
    // A row that is locked cannot be moved, so the run does not end before the command is killed.
    const lock = new pg.Client({ connectionString: shop.url });
    await lock.connect();
    await lock.query('BEGIN');
    await lock.query('SELECT 1 FROM customer WHERE id = 399 FOR UPDATE');
    const killed = keyturn.start([...unattended, '--local', '1']);
    await until(
      async () =>
        Number(
          (await shop.query('SELECT coalesce(sum(rows_updated), 0)::int AS rows FROM keyturn.batch'))[0]?.['rows'],
        ) > 0,
      { what: 'rows to move', deadlineMs: 30_000 },
    );
    killed.kill('SIGKILL');
    await killed.waitForExit(10_000);
    await lock.query('ROLLBACK');
    await lock.end();
    const quiet = `SELECT 1 FROM keyturn.member UNION ALL SELECT 1 FROM keyturn.leadership WHERE expires_at > clock_timestamp()`;
    await until(async () => (await shop.query(quiet)).length === 0, {
      what: 'the runners of the killed command to drain',
      deadlineMs: 20_000,
    });
    expect(await keyStates(shop)).toEqual(['decrypt_only', 'active', 'staged']);

    const resumed = await keyturn.json(...unattended, '--local', '1');
    expect(resumed).toMatchObject({
      code: 0,
      object: { is_new: false, run_id: 1, state: 'succeeded', fields_stale: 0 },
    });
    expect(['joined', 'done']).toContain(resumed.object['begin']);
    const again = await keyturn.json(...unattended, '--wait');
    expect(again).toMatchObject({ code: 0, object: { begin: 'done', is_new: false, run_id: 1, state: 'succeeded' } });
    expect((await keyturn.run(...unattended, '--wait')).stdout).toMatch(
      /run 1 has moved and verified everything already/,
    );
    expect(await keyStates(shop)).toEqual(['decrypt_only', 'active', 'staged']);
  });
});

describe('what an earlier attempt left', () => {
  let shop: Shop;
  let keyturn: KeyturnProcess;

  beforeAll(async () => {
    shop = await openShop();
    keyturn = openKeyturnProcess(shop, shopConfig);
  });
  afterAll(async () => {
    keyturn.remove();
    await shop.close();
  });

  test('a young key stays, an old one is rotated once, and the standby is activated instead of another', async () => {
    expect(await keyturn.json('key', 'rotate', '--if-older-than', '80d')).toMatchObject({
      code: 0,
      object: { is_new: false },
    });
    await ageActiveKey(shop);
    expect(await keyturn.json('key', 'rotate', '--if-older-than', '80d')).toMatchObject({
      code: 0,
      object: { is_new: true, key: { version: 2 } },
    });
    expect(await keyturn.json('key', 'rotate', '--if-older-than', '80d')).toMatchObject({
      code: 0,
      object: { is_new: false, key: { version: 2 } },
    });
    await ageActiveKey(shop);
    expect((await keyturn.run('key', 'stage')).stdout).toMatch(/v3 .* was staged already/);
    expect(await keyturn.json('key', 'rotate', '--if-older-than', '80d')).toMatchObject({
      code: 0,
      object: { key: { version: 3 } },
    });
    expect(await keyStates(shop)).toEqual(['decrypt_only', 'decrypt_only', 'active', 'staged']);
  });

  test('a run is ordered once and joined from then on; a paused one is refused with its reason; a cancelled one is replaced', async () => {
    expect(await keyturn.json(...unattended)).toMatchObject({
      code: 0,
      object: { begin: 'ordered', run_id: 1, is_new: false },
    });
    expect(await keyturn.json(...unattended)).toMatchObject({ code: 0, object: { begin: 'joined', run_id: 1 } });
    // Each stands for a supervisor that settles what was asked for.
    await shop.query(`UPDATE keyturn.run SET state = 'paused', held_back_by = 'month end' WHERE id = 1`);
    const paused = await keyturn.run(...unattended, '--wait');
    expect({ code: paused.code, stdout: paused.stdout }).toEqual({ code: 4, stdout: '' });
    expect(paused.stderr).toMatch(/run 1 is paused \(month end\).*keyturn run resume 1/);
    await shop.query(`UPDATE keyturn.run SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = 1`);
    expect(await keyturn.json(...unattended)).toMatchObject({ code: 0, object: { begin: 'ordered', run_id: 2 } });
  });

  test('a run that verified everything counts until another key was active in between', async () => {
    await shop.query(
      `UPDATE keyturn.run SET state = 'succeeded', verified_at = clock_timestamp(), finished_at = clock_timestamp() WHERE id = 2`,
    );
    expect(await keyturn.json(...unattended)).toMatchObject({ object: { begin: 'done', run_id: 2 } });
    expect((await keyturn.run('key', 'activate', 'v1')).code).toBe(0);
    expect((await keyturn.run('key', 'activate', 'v3')).code).toBe(0);
    expect(await keyturn.json(...unattended)).toMatchObject({
      object: { begin: 'ordered', run_id: 3, is_new: false, key: { version: 3 } },
    });
  });

  test('without runners an old key is not rotated: exit 7 and nothing is changed', async () => {
    await ageActiveKey(shop);
    const before = await imageOf(shop, 'keyturn');
    expect((await keyturn.run(...unattended, '--wait')).code).toBe(7);
    expect(await imageOf(shop, 'keyturn')).toEqual(before);
  });

  test('retiring refuses a key that is in use or active, and names keys by version or id', async () => {
    const writer = await shop.open();
    await insertCustomers(shop, writer, [1]);
    await writer.close();
    await shop.rotate();
    const used = await keyturn.run('key', 'retire', 'v3');
    expect(used.code).toBe(4);
    expect(used.stderr).toMatch(/still named by 1 cells? of public\.customer/);
    expect((await keyturn.run('key', 'retire', 'v4')).stderr).toMatch(/active key; rotate first/);
    expect((await keyturn.run('key', 'retire', 'v9')).code).toBe(3);
    expect((await keyturn.run('key', 'retire', '2')).stdout).toMatch(
      /customers v2 \(id 2\) is retired[^]*undo: keyturn key restore 2/,
    );
    expect((await keyturn.run('key', 'restore', 'v2')).code).toBe(0);
  });
});

test('with several keyrings, the one that is meant has to be named', async () => {
  const database = await createTestDatabase();
  const root = 'env:KEYTURN_ROOT_KEY';
  const rootKey = randomBytes(32).toString('hex');
  const environment = () => ({ DATABASE_URL: database.url, KEYTURN_ROOT_KEY: rootKey });
  const keyturn = openKeyturnProcess({ environment }, { keyrings: { customers: { root }, payments: { root } } });
  try {
    expect((await keyturn.run('init')).code).toBe(0);
    const unnamed = await keyturn.run('key', 'stage');
    expect(unnamed.code).toBe(2);
    expect(unnamed.stderr).toMatch(/customers, payments.*--keyring/);
    expect((await keyturn.json('key', 'stage', '--keyring', 'payments')).object).toMatchObject({
      keyring: 'payments',
      key: { version: 2 },
    });
  } finally {
    keyturn.remove();
    await database.drop();
  }
});
