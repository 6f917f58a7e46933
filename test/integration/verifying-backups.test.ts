// backup verify: a backup that opens what is stored now says so after it has decrypted some of it with its own keys; one that
// lacks a key, holds another key under the same number or does not know a column says which values would be lost.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeAll, beforeEach, afterAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { createBackup } from '../../src/control/backups.js';
import { init } from '../../src/control/init.js';
import { typedPassphrase } from '../../src/control/secret-input.js';
import { refuseUnlessOpened, verifyBackup, type BackupVerification } from '../../src/control/verify-backup.js';
import { commitmentOf, generateDataKey } from '../../src/crypto/data-key.js';
import { createRootKey } from '../../src/crypto/root-key.js';
import { decodeBackup, encodeBackup, type BackupContents } from '../../src/keys/backup.js';
import { lockBackup, unlockBackup } from '../../src/keys/backup-lock.js';
import { outcomeOf } from '../support/outcome-of.js';
import { customerTable, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

const passphrase = typedPassphrase('seven-quiet-otters-count-nine-lamps');
const lock = { kind: 'passphrase', passphrase, workFactor: 5 } as const;
const opener = { kind: 'passphrase', passphrase } as const;
const otherRoot = '7f'.repeat(15) + '0123456789abcdef'.repeat(2) + '0c';

/** With a table that was registered over plaintext, and nobody has adopted. */
const config: ConfigFile = {
  ...shopConfig,
  targets: [...(shopConfig.targets ?? []), { table: 'public.note', keyring: 'customers', columns: { body: {} } }],
};
const ddl = [
  customerTable,
  'CREATE TABLE note (id bigint PRIMARY KEY, body text)',
  `INSERT INTO note VALUES (1, 'plain')`,
];

let shop: Shop;
let folder: string;
let files = 0;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-verifying-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

beforeEach(async () => {
  shop = await openShop({ config, ddl });
  await insert(1, 3);
  await shop.rotate();
  await insert(4, 40);
});
afterEach(() => shop.close());

async function insert(from: number, to: number): Promise<void> {
  const keyturn = await shop.open();
  await insertCustomers(
    shop,
    keyturn,
    Array.from({ length: to - from + 1 }, (_, at) => from + at),
  );
  await keyturn.close();
}

/** A control of its own: an environment gives its root keys once. `root`: what it holds. */
async function withControl<T>(
  root: string,
  work: (context: ReturnType<typeof openControl>['context']) => Promise<T>,
): Promise<T> {
  const control = openControl({ environment: { ...shop.environment(), KEYTURN_ROOT_KEY: root }, file: config });
  return work(control.context).finally(() => control.close());
}

async function takeBackup({ includeRoots }: { includeRoots: boolean }): Promise<string> {
  const output = join(folder, `${++files}.age`);
  await withControl(shop.rootKey, (context) =>
    createBackup(context, { output, lock, includeRoots, force: false, reason: 'test' }),
  );
  return output;
}

async function altered(change: (contents: BackupContents) => Promise<BackupContents>): Promise<string> {
  const whole = await unlockBackup(readFileSync(await takeBackup({ includeRoots: true })), opener);
  const output = join(folder, `${++files}.age`);
  writeFileSync(output, await lockBackup(encodeBackup(await change(decodeBackup(whole))), lock));
  return output;
}

function verify(input: string, root = ''): Promise<BackupVerification> {
  return withControl(root, (context) => verifyBackup(context, { input, opener }));
}

async function refusalOf(report: BackupVerification): Promise<string> {
  return outcomeOf(async () => refuseUnlessOpened(report));
}

describe('a backup with root keys', () => {
  test('opens values of every column and key without any other root key, at most 20 of each, and nothing is written', async () => {
    const input = await takeBackup({ includeRoots: true });
    const images = (): Promise<unknown[]> => Promise.all(['keyturn', 'public'].map((schema) => imageOf(shop, schema)));
    const before = await images();
    const report = await verify(input);
    expect(await images()).toEqual(before);
    expect(await refusalOf(report)).toBe('done');
    expect(report).toMatchObject({
      has_root_keys: true,
      missing_keys: [],
      missing_columns: [],
      failures: [],
      // The plaintext of the column that nobody has adopted.
      cells_without_key: 1,
      keys: [
        { key: 'customers v1 (id 1)', state: 'decrypt_only', is_opened: true, cells: 12 },
        { key: 'customers v2 (id 2)', state: 'active', is_opened: true },
        { key: 'customers v3 (id 3)', state: 'staged', is_opened: true, cells: 0, values_tried: 0 },
      ],
    });
    const counted = report.samples.map(({ field, key_id: key, ...counts }) => ({ field, key, ...counts }));
    for (const field of ['email', 'phone', 'profile.ssn', 'profile.iban'])
      for (const key of [1, 2]) {
        const [{ n }] = (await shop.query(
          `SELECT count(*)::int AS n FROM customer WHERE ${key === 1 ? 'id < 4' : 'id >= 4'} AND ${{ email: 'email', phone: 'phone', 'profile.ssn': `profile #>> '{ssn}'`, 'profile.iban': `profile #>> '{bank,iban}'` }[field]} IS NOT NULL`,
        )) as [{ n: number }];
        const tried = Math.min(n, 20);
        expect(counted).toContainEqual({
          target: 'public.customer',
          field,
          key,
          cells: n,
          values_tried: tried,
          values_opened: tried,
        });
      }
    expect(counted).toHaveLength(8);
  });

  test('is not helped by the root key at hand, nor hindered by a wrong one', async () => {
    expect(await refusalOf(await verify(await takeBackup({ includeRoots: true }), otherRoot))).toBe('done');
    const carrying = await altered(async (contents) => ({
      ...contents,
      rootKeyBytes: [{ id: contents.rootKeys[0]?.id ?? 0, key: otherRoot }],
    }));
    expect(await outcomeOf(() => verify(carrying, shop.rootKey))).toBe('BACKUP_DAMAGED');
  });
});

describe('a backup without root keys', () => {
  test('is opened with the root key at hand, and says which it needs where that is missing or another one', async () => {
    const input = await takeBackup({ includeRoots: false });
    const report = await verify(input, shop.rootKey);
    expect(report).toMatchObject({ has_root_keys: false, failures: [], missing_keys: [] });
    expect(report.keys.map(({ values_opened: opened }) => opened > 0)).toEqual([true, true, false]);
    expect(await refusalOf(report)).toBe('done');
    expect(await outcomeOf(() => verify(input))).toBe('ROOT_KEY_UNAVAILABLE');
    expect(await outcomeOf(() => verify(input, otherRoot))).toBe('MASTER_KEY_MISMATCH');
  });
});

describe('a backup that does not bring everything back', () => {
  test('since values name a key made after it: names the key, counts the values and ends as BACKUP_INCOMPLETE', async () => {
    const input = await takeBackup({ includeRoots: true });
    // The standby that is in the backup, and the one after it.
    await shop.rotate();
    expect(await refusalOf(await verify(input))).toBe('done');
    await shop.rotate();
    await insert(50, 51);
    const report = await verify(input);
    expect(report).toMatchObject({ missing_keys: [{ key_id: 4, cells: 8 }], failures: [] });
    await expect(async () => refuseUnlessOpened(report)).rejects.toMatchObject({
      code: 'BACKUP_INCOMPLETE',
      message: expect.stringContaining('values name key 4, which it lacks') as string,
    });
    expect(await refusalOf(await verify(await takeBackup({ includeRoots: true })))).toBe('done');
  });

  test('since another key has the number of one that values name: no value under it opens', async () => {
    const input = await altered(async (contents) => {
      const cluster = contents.cluster.id;
      const root = createRootKey(Buffer.from(shop.rootKey, 'hex'), cluster);
      const dataKeys = contents.dataKeys.map(async (key) => {
        if (key.id !== 1) return key;
        const { id, algorithm, purpose, scope_id: scope } = key;
        const identity = { id, algorithm, purpose, cluster, scope };
        const material = generateDataKey();
        const rootId = key.wraps[0]?.root_key_id ?? 0;
        const blob = await root.wrap(rootId, identity, material);
        return {
          ...key,
          commitment: `\\x${commitmentOf(identity, material).toString('hex')}`,
          wraps: key.wraps.map((wrap) => ({ ...wrap, blob: `\\x${blob.toString('hex')}` })),
        };
      });
      return { ...contents, dataKeys: await Promise.all(dataKeys) };
    });
    const report = await verify(input);
    expect(report.keys).toMatchObject([
      { key_id: 1, is_opened: true, cells: 12, values_tried: 12, values_opened: 0 },
      { key_id: 2 },
      { key_id: 3 },
    ]);
    expect(report.failures).toContainEqual({
      target: 'public.customer',
      field: 'email',
      cause: 'KEY_CHECK_DIFFERS',
      key_id: 1,
      values: 3,
    });
    expect(await refusalOf(report)).toBe('BACKUP_INCOMPLETE');
  });

  test('since a table was registered after it: names the columns whose ids it does not know', async () => {
    const input = await takeBackup({ includeRoots: true });
    await shop.query('CREATE TABLE later (id bigint PRIMARY KEY, secret text)');
    const later = { table: 'public.later', keyring: 'customers', columns: { secret: {} } };
    const extended = openControl({
      environment: shop.environment(),
      file: { ...config, targets: [...(config.targets ?? []), later] },
    });
    await init(extended.context);
    await extended.close();
    expect(await refusalOf(await verify(input))).toBe('done');
    const keyturn = await shop.open();
    const stored = await keyturn.column('public.later', 'secret').encrypt({ pk: 1 }, 'value');
    await shop.query('INSERT INTO later VALUES (1, $1)', [stored]);
    await keyturn.close();
    const report = await verify(input);
    expect(report).toMatchObject({ missing_columns: ['public.later.secret'], missing_keys: [], failures: [] });
    expect(await refusalOf(report)).toBe('BACKUP_INCOMPLETE');
  });

  test('since a value was moved to another row: counts it under its key, with the cause (I2)', async () => {
    const input = await takeBackup({ includeRoots: true });
    await shop.query('UPDATE customer SET email = (SELECT email FROM customer WHERE id = 2) WHERE id = 1');
    const report = await verify(input);
    expect(report.failures).toEqual([
      { target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 1, values: 1 },
    ]);
    expect(report.samples).toContainEqual({
      target: 'public.customer',
      field: 'email',
      key_id: 1,
      cells: 3,
      values_tried: 3,
      values_opened: 2,
    });
    expect(await refusalOf(report)).toBe('BACKUP_INCOMPLETE');
  });

  test('since it is of another cluster: it is refused before any value is read', async () => {
    const other = await openShop();
    const output = join(folder, `${++files}.age`);
    await createBackup(other.control.context, { output, lock, includeRoots: false, force: false, reason: 'test' });
    await other.close();
    expect(await outcomeOf(() => verify(output))).toBe('BACKUP_REFUSED');
  });
});
