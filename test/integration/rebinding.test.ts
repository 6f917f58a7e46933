// Rows that were renumbered or moved to another tenant in SQL: their values do not decrypt until rebind binds them to where
// they are. It takes no other value, and none is ever readable at two addresses.
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import pg from 'pg';
import { openControl, type Keyturn } from '../../src/app.js';
import { openRootsOf } from '../../src/control/keys.js';
import { listQuarantine } from '../../src/control/quarantine.js';
import { rebindValues, type RebindReport, type RebindRequest } from '../../src/control/rebind.js';
import { rebindRows } from '../../src/engine/rebind.js';
import type { Keyring } from '../../src/keys/keyring.js';
import { openKeyring } from '../../src/keys/open-keyring.js';
import { getKeyring } from '../../src/store/keys.js';
import { getTarget, listTargets } from '../../src/store/registry.js';
import { runCapturedWith, type Captured } from '../cli/captured.js';
import { damage } from '../support/damage.js';
import { startDirectRunner } from '../support/direct-run.js';
import {
  customer,
  customerTable,
  findDifferences,
  insertCustomers,
  openShop,
  shopConfig,
  type Shop,
} from '../support/shop.js';
import { outcomeOf } from '../support/outcome-of.js';
import { imageOf } from '../support/table-image.js';

let shop: Shop;
let app: Keyturn;

beforeAll(async () => {
  shop = await openShop({
    config: {
      ...shopConfig,
      targets: [
        ...(shopConfig.targets ?? []),
        { table: 'public.line', keyring: 'customers', columns: { note: {}, remark: {} } },
      ],
    },
    ddl: [
      customerTable,
      'CREATE TABLE line (order_id bigint, code text, note text, remark text, PRIMARY KEY (order_id, code))',
    ],
  });
  app = await shop.open();
});
afterAll(() => shop.close());

beforeEach(async () => {
  await shop.query('TRUNCATE customer, line');
  await shop.query('DELETE FROM keyturn.quarantine');
});

function rebind(request: Partial<RebindRequest>): Promise<RebindReport> {
  return rebindValues(shop.control.context, {
    target: 'customer',
    pk: undefined,
    wasPk: undefined,
    scope: undefined,
    wasScope: undefined,
    column: undefined,
    isDryRun: false,
    reason: 'test',
    ...request,
  });
}

function runRebind(...args: string[]): Promise<Captured> {
  const environment = shop.environment();
  return runCapturedWith({ environment, openControl }, 'rebind', ...args, '--json');
}

/** Its plaintext, or the code of the error. */
async function readEmail(id: number, scope: string, stored: unknown): Promise<string> {
  let read = '';
  const outcome = await outcomeOf(async () => {
    read = String((await app.column('customer', 'email').decrypt({ pk: id, scope }, String(stored))).plaintext);
  });
  return outcome === 'done' ? read : outcome;
}

async function emailOf(id: number): Promise<unknown> {
  const [row] = await shop.query('SELECT email FROM customer WHERE id = $1', [id]);
  return row?.['email'];
}

const records = (): Promise<Record<string, unknown>[]> =>
  shop.query(`SELECT object, reason, before, after FROM keyturn.audit WHERE action = 'target.rebind' ORDER BY id`);

describe('one row', () => {
  test('that was renumbered is readable at its new key, jsonb paths too, and no value is readable at two keys (I2)', async () => {
    await insertCustomers(shop, app, [1, 2]);
    const before = await emailOf(1);
    await shop.query('UPDATE customer SET id = 1001 WHERE id = 1');
    expect(await readEmail(1001, 'tenant-1', before)).toBe('DECRYPT_FAILED');
    const [neighbour] = await shop.query('SELECT xmin, c.* FROM customer c WHERE id = 2');

    expect(await rebind({ pk: ['1001'], wasPk: ['1'] })).toMatchObject({
      rows_examined: 1,
      rows_updated: 1,
      fields_reencrypted: 4,
      fields_current: 0,
      fields_failed: 0,
      failures: [],
    });
    expect(await findDifferences(shop, app, (id) => ({ ...customer(id === 1001 ? 1 : id), id }))).toEqual([]);
    const after = await emailOf(1001);
    expect(await readEmail(1001, 'tenant-1', after)).toBe('customer-1@example.com');
    expect(await readEmail(1, 'tenant-1', after)).toBe('DECRYPT_FAILED');
    expect(await shop.query('SELECT xmin, c.* FROM customer c WHERE id = 2')).toEqual([neighbour]);

    const repaired = await imageOf(shop, 'public');
    expect(await rebind({ pk: ['1001'], wasPk: ['1'] })).toMatchObject({ rows_updated: 0, fields_current: 4 });
    expect(await imageOf(shop, 'public')).toEqual(repaired);
  });

  test('with a composite key is repaired for one column alone where one is named', async () => {
    const columns = [app.column('line', 'note'), app.column('line', 'remark')] as const;
    const was = { pk: [7n, 'a, b'] };
    const stored = await Promise.all(columns.map((column) => column.encrypt(was, 'kept')));
    await shop.query('INSERT INTO line VALUES (7, $1, $2, $3)', ['c d', ...stored]);
    const address = { target: 'line', pk: ['7', 'c d'], wasPk: ['7', 'a, b'] };
    expect(await rebind({ ...address, column: 'note' })).toMatchObject({ fields_reencrypted: 1, fields_current: 0 });
    expect(await shop.query('SELECT remark FROM line')).toEqual([{ remark: stored[1] }]);
    expect(await rebind(address)).toMatchObject({ fields_reencrypted: 1, fields_current: 1 });
    const [row] = await shop.query('SELECT note, remark FROM line');
    for (const [at, name] of ['note', 'remark'].entries())
      expect(await columns[at]?.decrypt({ pk: [7n, 'c d'] }, String(row?.[name]))).toMatchObject({ plaintext: 'kept' });
  });

  test('with key and tenant changed at once needs both named, and its record holds neither (I7)', async () => {
    await insertCustomers(shop, app, [4]);
    await shop.query(`UPDATE customer SET id = 777000777, tenant_id = 'tenant-new' WHERE id = 4`);
    const before = await imageOf(shop, 'public');
    for (const wrong of [{ wasPk: ['4'] }, { wasScope: 'tenant-1' }, { wasPk: ['5'], wasScope: 'tenant-1' }])
      expect(await rebind({ pk: ['777000777'], ...wrong })).toMatchObject({ fields_reencrypted: 0, fields_failed: 4 });
    expect(await imageOf(shop, 'public')).toEqual(before);

    const recordsBefore = (await records()).length;
    const { code, stdout, stderr } = await runRebind(
      ...['--target', 'customer', '--pk', '777000777', '--was-pk', '4'],
      ...['--scope', 'tenant-new', '--was-scope', 'tenant-1', '--reason', 'merged'],
    );
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout + JSON.stringify(await records())).not.toMatch(/777000777|tenant-/);
    expect((await records()).slice(recordsBefore)).toEqual([
      {
        object: 'target public.customer',
        reason: 'merged',
        before: null,
        after: { rows_updated: 1, fields_reencrypted: 4 },
      },
    ]);
    expect(await readEmail(777000777, 'tenant-new', await emailOf(777000777))).toBe('customer-4@example.com');
  });

  test('is refused in words where there is none, where nothing changed, and where the address does not fit', async () => {
    await insertCustomers(shop, app, [1]);
    const refused = (request: Partial<RebindRequest>): Promise<string> => outcomeOf(() => rebind(request));
    expect(await refused({ pk: ['9'], wasPk: ['1'] })).toBe('ROW_NOT_FOUND');
    expect(await refused({ pk: ['1'], wasPk: ['2'], scope: 'tenant-2' })).toBe('ROW_NOT_FOUND');
    expect(await refused({ pk: ['1'], wasPk: ['1'] })).toBe('USAGE');
    expect(await refused({ pk: ['1'] })).toBe('USAGE');
    expect(await refused({ wasPk: ['1'] })).toBe('USAGE');
    expect(await refused({ scope: 'tenant-1', wasScope: 'tenant-1' })).toBe('USAGE');
    expect(await refused({ pk: ['1', '2'], wasPk: ['3'] })).toBe('VALUE_INVALID');
    expect(await refused({ pk: ['one'], wasPk: ['3'] })).toBe('VALUE_INVALID');
    expect(await refused({ target: 'line', wasScope: 'tenant-1' })).toBe('VALUE_INVALID');
    expect(await refused({ pk: ['1'], wasPk: ['2'], column: 'name' })).toBe('TARGET_NOT_FOUND');
  });
});

describe('the rows of a tenant', () => {
  const ids = Array.from({ length: 240 }, (_, at) => at + 1);
  const merged = ids.filter((id) => id % 3 === 1);
  const cellsOf = (some: readonly number[]): number =>
    some
      .map((id) => Object.values(customer(id)).filter((value) => value !== null).length - 2)
      .reduce((sum, cells) => sum + cells, 0);
  const merge = (): Promise<unknown> =>
    shop.query(`UPDATE customer SET tenant_id = 'tenant-0' WHERE tenant_id = 'tenant-1'`);

  test('that was merged into another are repaired slice by slice while the application writes them (I3)', async () => {
    await insertCustomers(shop, app, ids);
    await merge();
    const written = new Map<number, string>();
    const before = await imageOf(shop, 'public');
    const dry = await rebind({ scope: 'tenant-0', wasScope: 'tenant-1', isDryRun: true });
    expect(dry).toMatchObject({ rows_examined: 160, fields_reencrypted: cellsOf(merged), fields_failed: 0 });
    expect(await imageOf(shop, 'public')).toEqual(before);
    const recordsBefore = (await records()).length;

    let isDone = false;
    const rebinding = rebind({ scope: 'tenant-0', wasScope: 'tenant-1' }).finally(() => (isDone = true));
    for (let at = 0; !isDone || at < 20; at++) {
      const id = merged[(at * 7) % merged.length] ?? 1;
      const email = `live-${at}@example.com`;
      const stored = await app.column('customer', 'email').encrypt({ pk: id, scope: 'tenant-0' }, email);
      await shop.query('UPDATE customer SET email = $2 WHERE id = $1', [id, stored]);
      written.set(id, email);
    }
    const report = await rebinding;
    expect(report).toMatchObject({ rows_examined: 160, rows_conflicted: 0, fields_conflicted: 0, fields_failed: 0 });
    expect(
      await findDifferences(shop, app, (id) => ({ ...customer(id), email: written.get(id) ?? customer(id).email })),
    ).toEqual([]);
    expect((await records()).length).toBeGreaterThan(recordsBefore + 1);
  });

  test('stay byte for byte as they were under a wrong former tenant, with exit 6', async () => {
    await insertCustomers(shop, app, [1, 2, 3]);
    await merge();
    const before = await imageOf(shop, 'public');
    const { code, stdout } = await runRebind('--target', 'customer', '--scope', 'tenant-0', '--was-scope', 'tenant-2');
    expect({ code, ...(JSON.parse(stdout) as object) }).toMatchObject({
      code: 6,
      rows_examined: 2,
      rows_failed: 1,
      fields_current: cellsOf([3]),
      fields_reencrypted: 0,
      failures: ['email', 'phone', 'profile.iban', 'profile.ssn'].map((field) => ({
        target: 'public.customer',
        field,
        cause: 'AUTHENTICATION_FAILED',
        cells: 1,
      })),
    });
    expect(await imageOf(shop, 'public')).toEqual(before);
  });

  test('are repaired around one that is damaged, one that the database refuses and one that is held, which stay', async () => {
    await insertCustomers(shop, app, [1, 4, 10, 16]);
    const damaged = damage.bitFlipped(String(await emailOf(4)));
    await shop.query('UPDATE customer SET email = $1 WHERE id = 4', [damaged]);
    await merge();
    await shop.query(`CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;
      CREATE TRIGGER refuse BEFORE UPDATE ON customer FOR EACH ROW WHEN (NEW.id = 10) EXECUTE FUNCTION refuse()`);
    const holder = new pg.Client({ connectionString: shop.url });
    await holder.connect();
    await holder.query('BEGIN; SELECT 1 FROM customer WHERE id = 16 FOR UPDATE');
    const report = await rebind({ wasScope: 'tenant-1' }).finally(() => holder.end());
    await shop.query('DROP FUNCTION refuse CASCADE');
    expect(report).toMatchObject({
      rows_examined: 4,
      rows_updated: 1,
      rows_failed: 2,
      rows_conflicted: 1,
      fields_reencrypted: 4 + 3,
      fields_conflicted: cellsOf([16]),
      fields_failed: 1 + cellsOf([10]),
    });
    expect(await emailOf(4)).toBe(damaged);
    expect(report.failures).toContainEqual({
      target: 'public.customer',
      field: 'email',
      cause: 'REFUSED_P0001',
      key_id: null,
      cells: 1,
    });
    await rebind({ pk: ['10'], wasScope: 'tenant-1' });
    await rebind({ pk: ['16'], wasScope: 'tenant-1' });
    await shop.query('DELETE FROM customer WHERE id = 4');
    expect(await findDifferences(shop, app)).toEqual([]);
  });

  test('that had none are repaired too', async () => {
    const email = await app.column('customer', 'email').encrypt({ pk: 1, scope: null }, 'alone');
    await shop.query(`INSERT INTO customer (id, tenant_id, email) VALUES (1, 'tenant-0', $1)`, [email]);
    const { code } = await runRebind('--target', 'customer', '--scope', 'tenant-0', '--was-unscoped');
    expect({ code, email: await readEmail(1, 'tenant-0', await emailOf(1)) }).toEqual({ code: 0, email: 'alone' });
  });
});

describe('after a rotation', () => {
  async function openNow(): Promise<Keyring> {
    const stored = await getKeyring(shop.control.context.database, 'customers');
    return openKeyring(stored, await openRootsOf(shop.control.context, stored), new Map());
  }

  test('entries in quarantine of the repaired cells are resolved and no others, and a key that was replaced meanwhile is not written with', async () => {
    await insertCustomers(shop, app, [1, 2]);
    await app.close();
    await shop.query(`UPDATE customer SET tenant_id = 'tenant-0' WHERE id = 1`);
    await shop.query(`UPDATE customer SET email = 'in clear' WHERE id = 2`);
    const before = await openNow();
    const keyId = await shop.rotate();
    const runner = await startDirectRunner(shop);
    expect(await runner.finish(await shop.order()).finally(runner.close)).toMatchObject({ fields_failed: 4 + 1 });

    const { database } = shop.control.context;
    const [found] = (await listTargets(database)).filter(({ table }) => table === 'customer');
    const target = await getTarget(database, found?.id ?? '');
    const snapshots = [before];
    const { keyring, counts } = await rebindRows(
      { database, onProgress: () => undefined, openKeyring: async () => snapshots.pop() ?? openNow() },
      {
        target,
        columns: new Set(target.columns.keys()),
        key: ['1'],
        scope: undefined,
        former: (row) => ({ key: row.key, scope: 'tenant-1' }),
        isDryRun: false,
        reason: undefined,
      },
    );
    expect(counts).toMatchObject({ rowsExamined: 1, rowsUpdated: 1, cellsReencrypted: 4, cellsConflicted: 0 });
    expect(keyring.active?.id).toBe(keyId);
    app = await shop.open();
    const { keyId: writtenWith } = await app
      .column('customer', 'email')
      .decrypt({ pk: 1, scope: 'tenant-0' }, String(await emailOf(1)));
    expect(writtenWith).toBe(keyId);
    const left = await listQuarantine(
      shop.control.context,
      { run: undefined, target: undefined, cause: undefined },
      10,
    );
    expect(left.rows.map(({ primary_key: key, field }) => [key, field])).toEqual([[{ id: '2' }, 'email']]);
  });

  test('a value under a retired key stops the command, which says how to bring the key back', async () => {
    const stored = await app.column('customer', 'email').encrypt({ pk: 1, scope: 'tenant-1' }, 'old');
    await shop.query(`INSERT INTO customer (id, tenant_id, email) VALUES (1, 'tenant-0', $1)`, [stored]);
    await shop.query(`UPDATE keyturn.data_key SET state = 'retired' WHERE id = 1`);
    await shop.query('UPDATE customer SET email = $1', [damage.namingKey(stored.toString(), 1)]);
    const { code, stdout } = await runRebind('--target', 'customer', '--was-scope', 'tenant-1');
    expect({ code, stdout }).toEqual({
      code: 7,
      stdout: expect.stringContaining('keyturn key restore 1, and repeat'),
    });
  });
});
