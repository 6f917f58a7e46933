// Backups restored: on a machine that has nothing else, onto newer and older keys, in either order, onto the wrong database.
// Reading every value again is the proof.
import { execFileSync, spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import { createBackup, inspectBackup, restoreBackup, type RestoreReport } from '../../src/control/backups.js';
import { containKey } from '../../src/control/compromise.js';
import type { OpenControl } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { activate, restore as restoreKey, rotateKey, stageKey } from '../../src/control/keys.js';
import { getKeyring } from '../../src/store/keys.js';
import { typedPassphrase } from '../../src/control/secret-input.js';
import { countUnbackedKeys, readKeyTables } from '../../src/store/backups.js';
import { encodeBackup, decodeBackup, type BackupContents, type KeyTables } from '../../src/keys/backup.js';
import { lockBackup, unlockBackup } from '../../src/keys/backup-lock.js';
import { verifyAudit } from '../../src/control/audit.js';
import { openKeyturnProcess } from '../cli/keyturn-process.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { startChild } from '../support/child.js';
import { failAt } from '../support/failing-database.js';
import { failFileAt } from '../support/failing-files.js';
import { outcomeOf } from '../support/outcome-of.js';
import { customerTable, findDifferences, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

const passphrase = typedPassphrase('seven-quiet-otters-count-nine-lamps');
// The smallest that is no joke: the default costs a second each time, and one test of the command line pays it.
const lock = { kind: 'passphrase', passphrase, workFactor: 10 } as const;
const opener = { kind: 'passphrase', passphrase } as const;

let shop: Shop;
let folder: string;
let files = 0;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-backups-'));
  shop = await openShop();
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3, 4]);
  await keyturn.close();
  await shop.rotate();
  const later = await shop.open();
  await insertCustomers(shop, later, [5, 6, 7, 8]);
  await later.close();
});

afterAll(async () => {
  await shop.close();
  rmSync(folder, { recursive: true });
});

const deadlineMs = 30_000;
/** A process of its own that takes or restores a backup, and ends at a point of it. */
async function killKeeper(databaseUrl: string, args: readonly string[]): Promise<void> {
  const child = startChild('key-keeper', {
    env: {
      ...shop.environment(),
      DATABASE_URL: databaseUrl,
      TEST_PASSPHRASE: passphrase.expose(),
    },
    onlyEnv: true,
    args,
  });
  expect(await child.waitForExit(deadlineMs)).toMatchObject({ signal: 'SIGKILL' });
}

async function takeBackup(from: { readonly control: OpenControl }, includeRoots = false): Promise<string> {
  const output = join(folder, `${++files}.age`);
  await createBackup(from.control.context, { output, lock, includeRoots, force: false, reason: 'test' });
  return output;
}

/** With the root keys: a process of its own, since an environment can be read once. */
async function takeWholeBackup(): Promise<string> {
  const control = openControl({ environment: shop.environment(), file: shopConfig });
  try {
    return await takeBackup({ control }, true);
  } finally {
    await control.close();
  }
}

interface Machine {
  readonly database: TestDatabase;
  readonly control: OpenControl;
  restore(input: string, apply?: boolean, rootsTo?: string): Promise<RestoreReport>;
  keyTables(): Promise<KeyTables>;
}

function keyTablesOf({ context }: OpenControl): Promise<KeyTables> {
  return context.database.transaction(readKeyTables);
}

const machines: Machine[] = [];
const opened: OpenControl[] = [];

afterEach(async () => {
  for (const control of opened.splice(0)) await control.close();
  for (const machine of machines.splice(0)) {
    await machine.control.close();
    await machine.database.drop();
  }
});

/** A database without a control schema; `rootKey`: what the environment holds. */
async function openMachine(rootKey: string | undefined = shop.rootKey): Promise<Machine> {
  const database = await createTestDatabase();
  const environment = {
    DATABASE_URL: database.url,
    LOG_LEVEL: 'silent',
    ...(rootKey === undefined ? {} : { KEYTURN_ROOT_KEY: rootKey }),
  };
  const control = openControl({ environment, file: shopConfig });
  const machine: Machine = {
    database,
    control,
    restore: (input, apply = true, rootsTo) =>
      restoreBackup(control.context, { input, opener, apply, rootsTo, reason: 'drill' }),
    keyTables: () => keyTablesOf(control),
  };
  machines.push(machine);
  return machine;
}

/** As pg_dump does where it is there and knows the server, else row by row. */
async function copyApplicationTables(to: TestDatabase): Promise<void> {
  const dump = spawnSync('pg_dump', ['--no-owner', '--table=public.customer', shop.url], { encoding: 'utf8' });
  if (dump.status === 0) {
    execFileSync('psql', ['--quiet', '--set=ON_ERROR_STOP=1', to.url], {
      input: dump.stdout,
      stdio: ['pipe', 'ignore', 'pipe'],
    });
    return;
  }
  process.stdout.write('no pg_dump for this server: rows are copied one by one\n');
  await to.pool.query(customerTable);
  for (const row of await shop.query('SELECT to_jsonb(c) AS row FROM customer c'))
    await to.pool.query('INSERT INTO customer SELECT * FROM jsonb_populate_record(NULL::customer, $1)', [
      JSON.stringify(row['row']),
    ]);
}

async function differencesOn(machine: Machine, rootKey: string, config = shopConfig): Promise<string[]> {
  const keyturn = await openKeyturn({
    config,
    environment: { DATABASE_URL: machine.database.url, KEYTURN_ROOT_KEY: rootKey, LOG_LEVEL: 'silent' },
  });
  try {
    const query: Shop['query'] = async (text, parameters) =>
      (await machine.database.pool.query(text, parameters)).rows as Record<string, unknown>[];
    return await findDifferences({ ...shop, query }, keyturn);
  } finally {
    await keyturn.close();
  }
}

describe('a bare machine', () => {
  test('reads every value from backup, passphrase and a dump of the application tables alone', async () => {
    const input = await takeWholeBackup();
    const machine = await openMachine('');
    await copyApplicationTables(machine.database);
    const rootFile = join(folder, 'root-1.key');
    // As an operator does it, who has nothing but these in the environment.
    const environment = (): Record<string, string> => ({ DATABASE_URL: machine.database.url, LOG_LEVEL: 'silent' });
    const config = { ...shopConfig, keyrings: { customers: { root: `file:${rootFile}` } } };
    const keyturn = openKeyturnProcess({ environment }, config);
    try {
      const restored = await keyturn.runFed(
        `${passphrase.expose()}\n`,
        ...['backup', 'restore', '--input', input, '--passphrase-fd', '0', '--apply', '--roots-to', folder, '--json'],
      );
      expect(restored).toMatchObject({ code: 0, stderr: '' });
      expect(JSON.parse(restored.stdout)).toMatchObject({
        applied: true,
        creates_cluster: true,
        unopened_keys: [],
        targets_waiting: [],
        keys_counted_as_spent: [],
        root_files: [rootFile],
      });
      expect(statSync(rootFile).mode & 0o777).toBe(0o600);
      const control = openControl({ environment: environment(), file: config });
      opened.push(control);
      await init(control.context);
      expect(await verifyAudit(control.context, undefined)).toMatchObject({ intact: true });
      expect(await differencesOn(machine, readFileSync(rootFile, 'utf8').trim())).toEqual([]);
    } finally {
      keyturn.remove();
      rmSync(rootFile, { force: true });
    }
  });

  test('may be given its tables afterwards: init finds them by name', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine();
    expect(await machine.restore(input)).toMatchObject({ targets_waiting: ['public.customer'] });
    await copyApplicationTables(machine.database);
    const control = openControl({
      environment: { DATABASE_URL: machine.database.url, KEYTURN_ROOT_KEY: shop.rootKey },
      file: shopConfig,
    });
    await init(control.context);
    await control.close();
    expect(await differencesOn(machine, shop.rootKey)).toEqual([]);
  });

  test('is left as it was by a dry run', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine();
    expect(await machine.restore(input, false)).toMatchObject({
      applied: false,
      creates_cluster: true,
      keys_added: expect.arrayContaining([1, 2]),
    });
    const { rows } = await machine.database.pool.query(`SELECT to_regnamespace('keyturn') AS schema`);
    expect(rows).toEqual([{ schema: null }]);
  });

  test('takes the keys without the root key, and says that none was tried', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine('');
    expect((await machine.restore(input)).unopened_keys).toEqual(expect.arrayContaining([1, 2]));
  });

  test('takes a key that waited for its destruction as a retired one, which may be restored or asked for anew', async () => {
    const { context } = shop.control;
    const retiring = `UPDATE keyturn.data_key SET state = 'retired' WHERE id = 1`;
    await shop.query(retiring);
    await shop.query(`INSERT INTO keyturn.destruction (data_key_id, wait_days, reason) VALUES (1, 7, 'test')`);
    await shop.query(`UPDATE keyturn.data_key SET state = 'pending_destruction' WHERE id = 1`);
    await shop.query('UPDATE keyturn.keyring SET generation = generation + 1');
    const input = await takeBackup(shop);
    await shop.query(retiring);
    await shop.query(`UPDATE keyturn.data_key SET state = 'decrypt_only' WHERE id = 1`);
    await shop.query('UPDATE keyturn.keyring SET generation = generation + 1');
    expect((await getKeyring(context.database, 'customers')).keys[0]?.state).toBe('decrypt_only');

    const machine = await openMachine();
    await copyApplicationTables(machine.database);
    for (let times = 0; times < 2; times++) {
      await machine.restore(input);
      expect((await machine.keyTables()).dataKeys[0]).toMatchObject({ id: 1, state: 'retired' });
    }
    const { rows } = await machine.database.pool.query(
      `SELECT record -> 'state' AS state FROM (SELECT after::jsonb AS record FROM keyturn.audit WHERE object = 'key 1') a`,
    );
    expect(rows).toEqual([{ state: 'retired' }]);
    await restoreKey(machine.control.context, undefined, 'v1', 'still needed');
    expect(await differencesOn(machine, shop.rootKey)).toEqual([]);
  });

  test('whose root key is another one gets MASTER_KEY_MISMATCH and no schema', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine('7f'.repeat(15) + '0123456789abcdef'.repeat(2) + '0c');
    expect(await outcomeOf(() => machine.restore(input))).toBe('MASTER_KEY_MISMATCH');
    const { rows } = await machine.database.pool.query(`SELECT to_regnamespace('keyturn') AS schema`);
    expect(rows).toEqual([{ schema: null }]);
  });
});

describe('a database that has keys', () => {
  /** A machine that went through the first backup, and one that has the second, of the same history. */
  async function takeTwo(): Promise<{ older: string; newer: string }> {
    const older = await takeBackup(shop);
    await shop.rotate();
    await stageKey(shop.control.context, undefined, 'test');
    await shop.query(
      `UPDATE keyturn.data_key SET state = 'retired', retired_at = clock_timestamp() WHERE version = 1 AND purpose = 1 AND state = 'decrypt_only'`,
    );
    await shop.query('UPDATE keyturn.keyring SET generation = generation + 1');
    return { older, newer: await takeBackup(shop) };
  }

  test('ends equal whichever of two backups is restored first, and equal to where they were taken', async () => {
    const { older, newer } = await takeTwo();
    const [forward, backward] = [await openMachine(), await openMachine()];
    for (const input of [older, newer]) await forward.restore(input);
    for (const input of [newer, older]) await backward.restore(input);
    const tables = await forward.keyTables();
    expect(await backward.keyTables()).toEqual(tables);
    const source = await keyTablesOf(shop.control);
    const comparable = ({ targets, ...rest }: KeyTables): unknown => ({
      ...rest,
      targets: targets.map(({ id }) => id),
    });
    expect(comparable(tables)).toEqual(comparable(source));
  });

  test('follows a standby that was discarded, and one that was active for a while before the other came back', async () => {
    const { context } = shop.control;
    const older = await takeBackup(shop);
    const { keys } = await getKeyring(context.database, 'customers');
    const [active, discarded] = ['active', 'staged'].map((state) => keys.find((key) => key.state === state));
    await containKey(context, {
      keyring: undefined,
      key: String(discarded?.id),
      reason: 'leaked',
      isRootSuspect: false,
    });
    const between = await takeBackup(shop);
    await rotateKey(context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' });
    await activate(context, undefined, String(active?.id), 'roll back');
    const newer = await takeBackup(shop);
    const machine = await openMachine();
    for (const input of [older, between, newer]) await machine.restore(input);
    const { dataKeys } = await machine.keyTables();
    expect(dataKeys).toEqual((await keyTablesOf(shop.control)).dataKeys);
    expect(dataKeys.find(({ id }) => id === discarded?.id)).toMatchObject({ state: 'destroyed', compromised: true });
  });

  test('keeps what is newer than the backup, to the row, and records one restore (I10)', async () => {
    const input = await takeBackup(shop);
    await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' });
    const query: Shop['query'] = (text, parameters) => shop.query(text, parameters);
    const keyTables = async (): Promise<unknown> => {
      const { data_key, data_key_wrap, keyring, root_key, target, target_column, cluster } = await imageOf(
        { query },
        'keyturn',
      );
      return { data_key, data_key_wrap, keyring, root_key, target, target_column, cluster };
    };
    const before = await keyTables();
    const [{ n: recordsBefore } = { n: 0 }] = await shop.query('SELECT count(*)::int AS n FROM keyturn.audit');
    await restoreBackup(openedAgain().context, { input, opener, apply: true, rootsTo: undefined, reason: 'drill' });
    expect(await keyTables()).toEqual(before);
    const records = await shop.query('SELECT action FROM keyturn.audit ORDER BY id DESC');
    expect(records.length).toBe(Number(recordsBefore) + 1);
    expect(records[0]).toEqual({ action: 'backup.restore' });
  });

  test('gets lost keys back, and its members notice', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine();
    await machine.restore(input);
    // As no verb ever does: what keeps keys from getting lost is taken away first.
    await machine.database.pool.query(
      `ALTER TABLE keyturn.data_key_wrap DISABLE TRIGGER USER; ALTER TABLE keyturn.data_key DISABLE TRIGGER USER;
       DELETE FROM keyturn.data_key_wrap WHERE data_key_id = 2; DELETE FROM keyturn.key_usage WHERE data_key_id = 2; DELETE FROM keyturn.data_key WHERE id = 2;
       ALTER TABLE keyturn.data_key_wrap ENABLE TRIGGER USER; ALTER TABLE keyturn.data_key ENABLE TRIGGER USER`,
    );
    const before = await machine.keyTables();
    expect((await machine.restore(input)).keys_added).toEqual([2]);
    const after = await machine.keyTables();
    expect(after.dataKeys.find(({ id }) => id === 2)?.wraps).toHaveLength(1);
    expect(after.keyrings[0]?.generation).toBe(Number(before.keyrings[0]?.generation) + 1);
    const { rows } = await machine.database.pool.query(
      `SELECT action, object FROM keyturn.audit WHERE action = 'key.import' ORDER BY id DESC LIMIT 1`,
    );
    expect(rows).toEqual([{ action: 'key.import', object: 'key 2' }]);
  });

  test('of another cluster refuses the backup', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine();
    const control = openControl({
      environment: { DATABASE_URL: machine.database.url, KEYTURN_ROOT_KEY: shop.rootKey },
      file: { keyrings: shopConfig.keyrings },
    });
    await init(control.context);
    await control.close();
    await expect(machine.restore(input)).rejects.toMatchObject({ code: 'BACKUP_REFUSED', message: /of cluster/ });
  });

  test('refuses a backup in which an id stands for another key, and changes nothing', async () => {
    const input = await takeBackup(shop);
    const machine = await openMachine();
    await machine.restore(input);
    // The machine goes on by itself: its next key takes the id that the shop's next key takes too.
    await rotateKey(machine.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' });
    await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' });
    const other = await takeBackup(shop);
    const before = await machine.keyTables();
    await expect(machine.restore(other)).rejects.toMatchObject({ code: 'BACKUP_REFUSED', message: /is one key in it/ });
    expect(await machine.keyTables()).toEqual(before);
  });

  test('yields to a newer backup only with a root key that opens it', async () => {
    const { older, newer } = await takeTwo();
    const machine = await openMachine('');
    await machine.restore(older);
    await expect(machine.restore(newer)).rejects.toMatchObject({
      code: 'BACKUP_REFUSED',
      message: /no root key at hand/,
    });
  });

  test('is before or after a restore whose n-th statement fails, for every n, and never between', async () => {
    const { older, newer } = await takeTwo();
    const machine = await openMachine();
    await machine.restore(older);
    const before = await machine.keyTables();
    const untroubled = await openMachine();
    for (const input of [older, newer]) await untroubled.restore(input);
    const after = await untroubled.keyTables();
    const restoreWith = (database: typeof machine.control.context.database): Promise<unknown> =>
      restoreBackup(
        { ...machine.control.context, database },
        { input: newer, opener, apply: true, rootsTo: undefined, reason: 'drill' },
      );
    // A sequence does not go back with its transaction: then ids are passed over, and none is used twice.
    const rowsOf = (tables: KeyTables): string => JSON.stringify({ ...tables, lastIds: undefined });
    const seen = { before: 0, after: 0 };
    for (let nth = 1; ; nth++) {
      const failing = failAt(machine.control.context.database, nth);
      const outcome = await outcomeOf(() => restoreWith(failing.database));
      const now = await machine.keyTables();
      const isBefore = rowsOf(now) === rowsOf(before);
      seen[isBefore ? 'before' : 'after']++;
      expect(isBefore ? after : now).toEqual(after);
      if (failing.asked() < nth) break;
      expect(outcome).toBe('DATABASE_UNAVAILABLE');
    }
    expect(await machine.keyTables()).toEqual(after);
    expect(await machine.keyTables()).toMatchObject({ dataKeys: (await keyTablesOf(shop.control)).dataKeys });
    expect(seen.before).toBeGreaterThanOrEqual(20);
    expect(await verifyAudit(machine.control.context, undefined)).toMatchObject({ intact: true });
  });

  function openedAgain(): OpenControl {
    const control = openControl({ environment: shop.environment(), file: shopConfig });
    opened.push(control);
    return control;
  }
});

describe('root keys of a backup', () => {
  let input: string;
  let rootFile: string;
  let roots: string;

  beforeAll(async () => {
    input = await takeWholeBackup();
  });
  beforeEach(() => {
    roots = mkdtempSync(join(folder, 'roots-'));
    rootFile = join(roots, 'root-1.key');
  });

  const schemaOf = async (machine: Machine): Promise<unknown> =>
    (await machine.database.pool.query(`SELECT to_regnamespace('keyturn')::text AS schema`)).rows;

  test('are refused a place that is missing, open or taken before anything is written, and a file with the same key stays', async () => {
    const machine = await openMachine('');
    const refusals = [
      { make: () => rmSync(roots, { recursive: true }), code: 'BACKUP_REFUSED', message: /no folder .*mkdir -m 700/ },
      { make: () => chmodSync(roots, 0o777), code: 'BACKUP_REFUSED', message: /others can write to .*chmod go-w/ },
      {
        make: () => writeFileSync(rootFile, 'another key\n', { mode: 0o600 }),
        code: 'BACKUP_REFUSED',
        message: /root-1.key is there and holds something else; give another folder, or move it away/,
      },
      {
        make: () => writeFileSync(rootFile, `${shop.rootKey}\n`, { mode: 0o644 }),
        code: 'BACKUP_REFUSED',
        message: /others can read it; run: chmod 600/,
      },
      { make: () => symlinkSync(input, rootFile), code: 'BACKUP_REFUSED', message: /no regular file/ },
    ];
    for (const { make, code, message } of refusals) {
      make();
      const refused: unknown = await machine.restore(input, true, roots).catch((error: unknown) => error);
      expect(refused).toMatchObject({ code, message });
      expect((refused as Error).message).not.toContain('--force');
      expect(await schemaOf(machine)).toEqual([{ schema: null }]);
      rmSync(roots, { recursive: true, force: true });
      mkdirSync(roots, { mode: 0o700 });
    }
    await expect(machine.restore(input, false, roots)).rejects.toMatchObject({ code: 'USAGE', message: /add --apply/ });
    const without = await takeBackup(shop);
    await expect(machine.restore(without, true, roots)).rejects.toMatchObject({
      code: 'BACKUP_REFUSED',
      message: /it holds no root keys/,
    });
    writeFileSync(rootFile, `${shop.rootKey}\n`, { mode: 0o600 });
    const { ino } = statSync(rootFile);
    expect((await machine.restore(input, true, roots)).root_files).toEqual([rootFile]);
    expect(statSync(rootFile).ino).toBe(ino);
  });

  test('are whole or not there, and the keys with them, when the n-th file operation of a restore fails, for every n', async () => {
    const machine = await openMachine('');
    let nth = 1;
    for (; ; nth++) {
      const { files: failing, asked } = failFileAt(nth);
      const outcome = await outcomeOf(() =>
        restoreBackup(
          { ...machine.control.context, files: failing },
          { input, opener, apply: true, rootsTo: roots, reason: 'drill' },
        ),
      );
      const isOver = asked() < nth;
      expect(outcome).toBe(isOver ? 'done' : 'FILE_UNAVAILABLE');
      if (isOver) break;
      expect(await outcomeOf(() => getKeyring(machine.control.context.database, 'customers'))).not.toBe('done');
      for (const name of readdirSync(roots)) {
        expect(name).toBe('root-1.key');
        expect(readFileSync(rootFile, 'utf8')).toBe(`${shop.rootKey}\n`);
        expect(statSync(rootFile).mode & 0o777).toBe(0o600);
        rmSync(rootFile);
      }
    }
    expect(nth).toBeGreaterThan(10);
    expect(readFileSync(rootFile, 'utf8')).toBe(`${shop.rootKey}\n`);
    expect((await getKeyring(machine.control.context.database, 'customers')).keys.length).toBeGreaterThan(1);
  });

  test('and the keys come in at the next attempt after a SIGKILL before the commit; test/chaos has the other points', async () => {
    const machine = await openMachine('');
    await killKeeper(machine.database.url, ['restore', input, 'restore.commit', roots]);
    expect(await outcomeOf(() => getKeyring(machine.control.context.database, 'customers'))).not.toBe('done');
    expect(await machine.restore(input, true, roots)).toMatchObject({ unopened_keys: [], root_files: [rootFile] });
    expect(readdirSync(roots)).toEqual(['root-1.key']);
    expect((await machine.keyTables()).dataKeys).toEqual((await keyTablesOf(shop.control)).dataKeys);
  });
});

describe('taking a backup', () => {
  async function recorded(): Promise<unknown[]> {
    return (await shop.query(`SELECT encode(file_hash, 'hex') AS hash FROM keyturn.backup ORDER BY id`)).map(
      ({ hash }) => hash,
    );
  }
  const hashOf = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex');

  test('leaves the file that was there or the new one, whole, and no record of one that is not there, when the n-th file operation fails, for every n', async () => {
    const output = await takeBackup(shop);
    const older = hashOf(output);
    const before = await recorded();
    let nth = 1;
    for (; ; nth++) {
      const { files: failing, asked } = failFileAt(nth, 'ENOSPC');
      const outcome = await outcomeOf(() =>
        createBackup(
          { ...shop.control.context, files: failing },
          { output, lock, includeRoots: false, force: true, reason: 'test' },
        ),
      );
      expect(statSync(output).mode & 0o777).toBe(0o600);
      expect(await inspectBackup(output, opener)).toMatchObject({ has_root_keys: false });
      const isOver = asked() < nth;
      expect(outcome).toBe(isOver ? 'done' : 'FILE_UNAVAILABLE');
      if (isOver) break;
      expect(await recorded()).toEqual(before);
    }
    expect(nth).toBeGreaterThan(8);
    expect(hashOf(output)).not.toBe(older);
    expect(await recorded()).toEqual([...before, hashOf(output)]);
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  test('records nothing when it is killed after the rename; test/chaos has the other points', async () => {
    const output = await takeBackup(shop);
    const before = await recorded();
    await killKeeper(shop.url, ['create', output, 'backup.rename']);
    expect(await inspectBackup(output, opener)).toMatchObject({ cluster: expect.any(String) as string });
    expect(statSync(output).mode & 0o777).toBe(0o600);
    expect(await recorded()).toEqual(before);
    await createBackup(shop.control.context, { output, lock, includeRoots: false, force: true, reason: 'test' });
    expect(readdirSync(folder).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });
});

describe('a backup that cannot be trusted', () => {
  async function altered(change: (contents: BackupContents) => BackupContents): Promise<string> {
    const whole = await unlockBackup(readFileSync(await takeBackup(shop)), opener);
    const output = join(folder, `${++files}.age`);
    writeFileSync(output, await lockBackup(encodeBackup(change(decodeBackup(whole))), lock));
    return output;
  }

  test('because a key in it does not open is refused before anything is written', async () => {
    const input = await altered((contents) => ({
      ...contents,
      dataKeys: contents.dataKeys.map((key, at) =>
        at === 0 ? { ...key, commitment: key.commitment.replace(/.$/, (last) => (last === '0' ? '1' : '0')) } : key,
      ),
    }));
    const machine = await openMachine();
    await expect(machine.restore(input)).rejects.toMatchObject({ code: 'BACKUP_DAMAGED', message: /does not open/ });
    const { rows } = await machine.database.pool.query(`SELECT to_regnamespace('keyturn') AS schema`);
    expect(rows).toEqual([{ schema: null }]);
  });

  test('because its passphrase is another one is refused, and says so', async () => {
    const input = await takeBackup(shop);
    const other = { kind: 'passphrase', passphrase: typedPassphrase('another-one-altogether-9') } as const;
    await expect(inspectBackup(input, other)).rejects.toMatchObject({ code: 'BACKUP_REFUSED' });
  });

  test('because the file ends early is refused as damaged', async () => {
    const input = await takeBackup(shop);
    writeFileSync(input, readFileSync(input).subarray(0, -20));
    await expect(inspectBackup(input, opener)).rejects.toMatchObject({ code: 'BACKUP_DAMAGED' });
  });
});

describe('the record of backups', () => {
  test('knows which keys are in none, and a rotation says which it leaves', async () => {
    // A staged key that is left over is activated before one is made.
    await shop.rotate();
    await takeBackup(shop);
    const { database } = shop.control.context;
    expect(await countUnbackedKeys(database)).toBe(0);
    const rotated = await rotateKey(shop.control.context, {
      keyring: undefined,
      ifOlderThanMs: undefined,
      reason: 'test',
    });
    // The standby was in the backup; the one made after it is not.
    expect(rotated.unbackedKeys).toEqual([rotated.key.id + 1]);
    expect(await countUnbackedKeys(database)).toBe(1);
  });

  test('refuses every step of a rotation where the keyring requires a backup first, and none after one', async () => {
    const { context } = shop.control;
    const rotate = (): Promise<unknown> =>
      rotateKey(context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' });
    await takeBackup(shop);
    await shop.query(`UPDATE keyturn.keyring SET backup_policy = 'require'`);
    try {
      // Making the next standby asks for nothing; what comes after it waits for a backup, over and over.
      for (let round = 0; round < 2; round++) {
        await rotate();
        const { keys } = await getKeyring(context.database, 'customers');
        const standby = keys.find(({ state }) => state === 'staged');
        for (const step of [
          () => stageKey(context, undefined, 'test'),
          () => activate(context, undefined, String(standby?.id), 'test'),
          rotate,
        ])
          expect(await outcomeOf(step)).toBe('BACKUP_REQUIRED');
        await takeBackup(shop);
      }
      const { keys } = await getKeyring(context.database, 'customers');
      const standby = keys.find(({ state }) => state === 'staged');
      expect(await outcomeOf(() => activate(context, undefined, String(standby?.id), 'test'))).toBe('done');
    } finally {
      await shop.query(`UPDATE keyturn.keyring SET backup_policy = 'warn'`);
    }
  });

  test('does not count a key as backed up under a root key that it is no longer wrapped under', async () => {
    await takeBackup(shop);
    await shop.query('UPDATE keyturn.backup SET root_key_ids = ARRAY[4000000]');
    expect(await countUnbackedKeys(shop.control.context.database)).toBeGreaterThan(1);
    await takeBackup(shop);
    expect(await countUnbackedKeys(shop.control.context.database)).toBe(0);
  });
});
