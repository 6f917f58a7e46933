// Encryptions per key, as the key tables count them: before use, over all processes, up to the limit and no further.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import { createBackup, restoreBackup } from '../../src/control/backups.js';
import { init } from '../../src/control/init.js';
import { rotateKey } from '../../src/control/keys.js';
import { readStatus } from '../../src/control/status.js';
import { encryptionLimits } from '../../src/crypto/algorithms.js';
import type { ConfigFile } from '../../src/config.js';
import { Secret } from '../../src/crypto/secret.js';
import { getKeyring } from '../../src/store/keys.js';
import { reserveEncryptions } from '../../src/store/usage.js';
import { createTestDatabase } from '../support/database.js';
import { startDirectRunner } from '../support/direct-run.js';
import { customerTable, openShop, shopConfig, type Shop } from '../support/shop.js';

const limited: ConfigFile = {
  ...shopConfig,
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY', algorithm: 'aes-256-gcm' } },
};
const limit = encryptionLimits['aes-256-gcm']?.refuse ?? 0;
const address = { pk: 1, scope: 'tenant-1' };
let shop: Shop;

beforeAll(async () => {
  shop = await openShop({ config: limited });
});
afterAll(() => shop.close());

async function reservedUnder(key: number): Promise<number> {
  const [row] = await shop.query(`SELECT reserved::float8 AS n FROM keyturn.key_usage WHERE data_key_id = ${key}`);
  return Number(row?.['n'] ?? 0);
}

test('a process reserves before it encrypts, and gives nothing back', async () => {
  const keyturn = await shop.open();
  const first = await reservedUnder(1);
  expect(first).toBeGreaterThan(0);
  await keyturn.column('customer', 'email').encrypt(address, 'x');
  await keyturn.close();
  expect(await reservedUnder(1)).toBe(first);
  const again = await shop.open();
  await again.close();
  expect(await reservedUnder(1)).toBe(2 * first);
});

test('reservations at once add up, and one whose transaction is cut off is as if never made', async () => {
  const { database } = shop.control.context;
  const before = await reservedUnder(1);
  const granted = await Promise.all(Array.from({ length: 8 }, () => reserveEncryptions(database, 1, 1_000)));
  expect(granted.every((one) => one.granted === 1_000)).toBe(true);
  expect(Math.max(...granted.map(({ reserved }) => reserved))).toBe(before + 8_000);
  await expect(
    database.transaction(async (client) => {
      await reserveEncryptions(client, 1, 1_000);
      throw new Error('cut off');
    }),
  ).rejects.toThrow('cut off');
  expect(await reservedUnder(1)).toBe(before + 8_000);
  await expect(reserveEncryptions(database, 1, 0)).rejects.toMatchObject({ code: 'DATABASE_ERROR' });
});

test('at the limit a key encrypts no more and says to rotate; the next key does, and reads go on', async () => {
  const { context } = shop.control;
  await shop.query(`UPDATE keyturn.key_usage SET reserved = ${limit - 3} WHERE data_key_id = 1`);
  const keyturn = await shop.open();
  const email = keyturn.column('customer', 'email');
  const stored = [];
  for (let n = 0; n < 3; n += 1) stored.push(await email.encrypt(address, 'x'));
  await expect(email.encrypt(address, 'x')).rejects.toMatchObject({
    code: 'KEY_SPENT',
    kind: 'refused',
    message:
      'customers v1 (id 1) has used up its 3865470566 encryptions with aes-256-gcm, or counts so since a restore, and encrypts no more; rotate now: keyturn key rotate',
  });
  expect(await email.decrypt(address, stored[0] ?? '')).toMatchObject({ plaintext: 'x' });
  expect((await readStatus(context)).keyrings).toMatchObject([
    { encryptions: limit, encryption_limit: limit, encryptions_near_limit: true, cryptoperiod_left_days: 90 },
  ]);
  await keyturn.close();
  for (const [reserved, isNear] of [
    [2 ** 31 - 1, false],
    [2 ** 31, true],
  ] as const) {
    await shop.query(`UPDATE keyturn.key_usage SET reserved = ${reserved} WHERE data_key_id = 1`);
    expect((await readStatus(context)).keyrings[0]?.encryptions_near_limit).toBe(isNear);
  }
  await shop.query(`UPDATE keyturn.key_usage SET reserved = ${limit} WHERE data_key_id = 1`);

  await shop.query('INSERT INTO customer (id, tenant_id, email) VALUES ($1, $2, $3)', [1, 'tenant-1', stored[0]]);
  await shop.rotate();
  const runner = await startDirectRunner(shop);
  expect(await runner.finish(await shop.order()).finally(runner.close)).toMatchObject({
    state: 'succeeded',
    fields_reencrypted: 1,
  });
  expect(await reservedUnder(1)).toBe(limit);
  expect(await reservedUnder(2)).toBeGreaterThan(0);
});

test('a restored key counts as spent, since encryptions after the backup were never counted: reads go on, and a rotation writes', async () => {
  const input = join(mkdtempSync(join(tmpdir(), 'keyturn-counted-')), 'keys.age');
  const passphrase = new Secret('seven-quiet-otters-count-nine-lamps');
  await createBackup(shop.control.context, {
    output: input,
    lock: { kind: 'passphrase', passphrase, workFactor: 10 },
    includeRoots: false,
    force: false,
    reason: 'test',
  });
  const opener = { kind: 'passphrase', passphrase } as const;
  const bare = await createTestDatabase();
  const environment = (): Record<string, string> => ({ ...shop.environment(), DATABASE_URL: bare.url });
  const control = openControl({ environment: environment(), file: limited });
  try {
    await bare.pool.query(customerTable);
    const restoring = { input, opener, apply: true, rootsTo: undefined, reason: 'drill' };
    const ids = (await getKeyring(shop.control.context.database, 'customers')).keys.map(({ id }) => Number(id));
    expect(await restoreBackup(control.context, restoring)).toMatchObject({ keys_counted_as_spent: ids });
    await init(control.context);
    const [stored] = await shop.query('SELECT email FROM customer LIMIT 1');
    const before = await openKeyturn({ config: limited, environment: environment() });
    const column = before.column('customer', 'email');
    expect(await column.decrypt(address, String(stored?.['email']))).toMatchObject({ plaintext: 'x' });
    await expect(column.encrypt(address, 'x')).rejects.toMatchObject({ code: 'KEY_SPENT' });
    await before.close();
    await rotateKey(control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'restored' });
    const after = await openKeyturn({ config: limited, environment: environment() });
    await after.column('customer', 'email').encrypt(address, 'x');
    await after.close();
    expect((await restoreBackup(control.context, restoring)).keys_counted_as_spent).toEqual([]);
    const counted = await reservedUnder(2);
    expect((await restoreBackup(shop.control.context, restoring)).keys_counted_as_spent).toEqual([]);
    expect(await reservedUnder(2)).toBe(counted);
  } finally {
    await control.close();
    await bare.drop();
    rmSync(dirname(input), { recursive: true });
  }
});
