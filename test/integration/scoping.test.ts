// A run over one tenant, one table or one keyring visits exactly its rows and leaves all others where they are.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { ConfigFile } from '../../src/config.js';
import { rotateKey } from '../../src/control/keys.js';
import { orderRun, type RunRequest } from '../../src/control/runs.js';
import { takeCensus } from '../../src/control/targets.js';
import { availableBackends } from '../support/backends.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import { openShop, type Shop } from '../support/shop.js';

const acme = '0191f2a4-7c1b-7000-8000-00000000aaaa';
const bolt = '0191f2a4-7c1b-7000-8000-00000000bbbb';

const config: ConfigFile = {
  keyrings: {
    customers: { root: 'env:KEYTURN_ROOT_KEY' },
    patients: { root: 'env:KEYTURN_ROOT_KEY', algorithm: 'aes-256-gcm' },
  },
  targets: [
    { table: 'by_text', keyring: 'customers', scope: 'tenant', columns: { secret: {} } },
    { table: 'by_uuid', keyring: 'customers', scope: 'tenant', columns: { secret: {} } },
    { table: 'by_int', keyring: 'customers', scope: 'tenant', columns: { secret: {} } },
    { table: 'shared', keyring: 'customers', columns: { secret: {} } },
    { table: 'patient', keyring: 'patients', columns: { secret: {} } },
  ],
};

/** Table to the tenants of its rows, one row for each. */
const tenants: Readonly<Record<string, readonly (string | null)[]>> = {
  by_text: ['acme', "o'neil", 'acme', null, '5'],
  by_uuid: [acme, bolt, acme],
  by_int: ['5', '-6', '5', '5'],
  shared: [null, null],
  patient: [null, null, null],
};
const types: Readonly<Record<string, string>> = {
  by_text: 'text',
  by_uuid: 'uuid',
  by_int: 'int',
  shared: 'text',
  patient: 'text',
};

let shop: Shop;
let runner: DirectRunner;

beforeAll(async () => {
  shop = await openShop({
    config,
    ddl: Object.keys(tenants).map(
      (table) => `CREATE TABLE ${table} (id int PRIMARY KEY, tenant ${types[table]}, secret text)`,
    ),
  });
  const keyturn = await shop.open();
  for (const [table, scopes] of Object.entries(tenants)) {
    const column = keyturn.column(table, 'secret');
    const isScoped = table.startsWith('by_');
    for (const [at, scope] of scopes.entries()) {
      const stored = await column.encrypt(isScoped ? { pk: at, scope } : { pk: at }, `${table} ${at}`);
      await shop.query(`INSERT INTO ${table} VALUES ($1, $2, $3)`, [at, scope, stored]);
    }
  }
  await keyturn.close();
  for (const keyring of ['customers', 'patients'])
    await rotateKey(shop.control.context, { keyring, ifOlderThanMs: undefined, reason: undefined });
  runner = await startDirectRunner(shop);
});

afterAll(async () => {
  await runner.close();
  await shop.close();
});

const places = (): Promise<Record<string, unknown>[]> =>
  shop.query(
    Object.keys(tenants)
      .map(
        (table) =>
          `SELECT '${table}' AS "table", id, coalesce(tenant::text, '-') AS tenant, ctid::text AS place FROM ${table}`,
      )
      .join(' UNION ALL ') + ' ORDER BY 1, 2',
  );

/** The rows that a run moved, as `table id`. */
async function movedBy(request: Partial<RunRequest>): Promise<string[]> {
  const before = new Map((await places()).map((row) => [`${String(row['table'])} ${String(row['id'])}`, row['place']]));
  const report = await runner.finish(await shop.order(request));
  expect(report).toMatchObject({ state: 'succeeded', fields_failed: 0, fields_stale: 0 });
  const moved = (await places()).filter(
    (row) => before.get(`${String(row['table'])} ${String(row['id'])}`) !== row['place'],
  );
  expect(report.rows_updated).toBe(moved.length);
  expect(report.rows_examined).toBe(moved.length + report.rows_skipped_all_on_target);
  return moved.map((row) => `${String(row['table'])} ${String(row['id'])}`);
}

describe('runs', () => {
  test('over one tenant move its rows in every table that has tenants, whatever the type of the column', async () => {
    expect(await movedBy({ keyring: 'customers', target: 'by_text', scope: 'acme' })).toEqual([
      'by_text 0',
      'by_text 2',
    ]);
    expect(await movedBy({ keyring: 'customers', target: 'by_text', scope: "o'neil" })).toEqual(['by_text 1']);
    expect(await movedBy({ keyring: 'customers', target: 'by_uuid', scope: acme.toUpperCase() })).toEqual([
      'by_uuid 0',
      'by_uuid 2',
    ]);
    expect(await movedBy({ keyring: 'customers', target: 'public.by_int', scope: '5' })).toEqual([
      'by_int 0',
      'by_int 2',
      'by_int 3',
    ]);
    expect(await movedBy({ keyring: 'customers', target: 'by_text', scope: 'nobody' })).toEqual([]);
  });

  test('a verification of one tenant sees its rows alone', async () => {
    expect(
      await runner.finish(await shop.order({ kind: 'verify', keyring: 'customers', target: 'by_text', scope: 'acme' })),
    ).toMatchObject({ state: 'succeeded', rows_examined: 2, scope: 'acme', targets: ['public.by_text'] });
    expect(
      await runner.finish(await shop.order({ kind: 'verify', keyring: 'customers', target: 'by_text' })),
    ).toMatchObject({ state: 'completed_with_failures', rows_examined: 5, fields_stale: 2 });
  });

  test('over one table move the rest of it, rows without a tenant included', async () => {
    expect(await movedBy({ keyring: 'customers', target: 'by_text' })).toEqual(['by_text 3', 'by_text 4']);
    expect(await movedBy({ keyring: 'customers', target: 'shared' })).toEqual(['shared 0', 'shared 1']);
  });

  test('over a keyring move what is left of its tables, and nothing of another keyring', async () => {
    expect(await movedBy({ keyring: 'customers' })).toEqual(['by_int 1', 'by_uuid 1']);
    const stale = (await takeCensus(shop.control.context, undefined)).filter(({ state }) => state === 'decrypt_only');
    expect(stale.map(({ target, cells }) => [target, cells])).toEqual([['public.patient', 3]]);
    expect(await movedBy({ keyring: 'patients' })).toEqual(['patient 0', 'patient 1', 'patient 2']);
  });

  test('every value decrypts in the end', async () => {
    const keyturn = await shop.open();
    for (const [table, scopes] of Object.entries(tenants)) {
      for (const [at, scope] of scopes.entries()) {
        const [row] = await shop.query(`SELECT secret FROM ${table} WHERE id = $1`, [at]);
        const address = table.startsWith('by_') ? { pk: at, scope } : { pk: at };
        expect(await keyturn.column(table, 'secret').decrypt(address, String(row?.['secret']))).toMatchObject({
          plaintext: `${table} ${at}`,
          stale: false,
        });
      }
    }
    await keyturn.close();
  });
});

describe('what is refused', () => {
  const refusals: readonly { what: string; request: Partial<RunRequest>; code: string; says: string }[] = [
    {
      what: 'no keyring where there are two',
      request: {},
      code: 'USAGE',
      says: 'there are several keyrings (customers, patients); say which with --keyring',
    },
    {
      what: 'a keyring that is not there',
      request: { keyring: 'staff' },
      code: 'KEYRING_NOT_FOUND',
      says: 'there is no keyring "staff"; known: customers, patients',
    },
    {
      what: 'a table that is not registered',
      request: { keyring: 'customers', target: 'nobody' },
      code: 'TARGET_NOT_FOUND',
      says: 'there is no target "nobody"',
    },
    {
      what: 'a table of another keyring',
      request: { keyring: 'customers', target: 'patient' },
      code: 'TARGET_INVALID',
      says: 'target patient belongs to keyring patients, not customers',
    },
    {
      what: 'a tenant where no table has tenants',
      request: { keyring: 'patients', scope: 'acme' },
      code: 'TARGET_NOT_FOUND',
      says: 'no target of it has a scope column',
    },
    {
      what: 'a tenant of a table without tenants',
      request: { keyring: 'customers', target: 'shared', scope: 'acme' },
      code: 'TARGET_NOT_FOUND',
      says: 'no target of it has a scope column',
    },
  ];

  for (const { what, request, code, says } of refusals) {
    test(`${what} is refused before a run exists`, async () => {
      const runs = await shop.query('SELECT count(*) FROM keyturn.run');
      const order = orderRun(shop.control.context, {
        kind: 'reencrypt',
        keyring: undefined,
        target: undefined,
        scope: undefined,
        deep: false,
        reason: undefined,
        ...request,
      });
      await expect(order).rejects.toMatchObject({ code, message: expect.stringContaining(says) as string });
      expect(await shop.query('SELECT count(*) FROM keyturn.run')).toEqual(runs);
    });
  }

  test('a tenant that the type of the column cannot hold is refused, without naming the tenant (I7)', async () => {
    const order = orderRun(shop.control.context, {
      kind: 'reencrypt',
      keyring: 'customers',
      target: 'by_int',
      scope: 'acme',
      deep: false,
      reason: undefined,
    });
    await expect(order).rejects.toMatchObject({
      code: 'TARGET_INVALID',
      message:
        'tenant column public.by_int.tenant is integer and cannot hold the given tenant; say which tables are meant with --target',
    });
  });
});

describe('runs beside each other', () => {
  test.each(availableBackends())(
    'one that cannot go on, because its table changed, says why and holds no other up [%s]',
    async (backend) => {
      const own = await openShop({
        backend,
        config,
        ddl: Object.keys(tenants).map(
          (table) => `CREATE TABLE ${table} (id int PRIMARY KEY, tenant ${types[table]}, secret text)`,
        ),
      });
      try {
        const stuck = await own.order({ keyring: 'patients' });
        await own.query('ALTER TABLE patient DROP COLUMN secret');
        const free = await own.order({ keyring: 'customers' });
        await own.startSupervisor();
        await own.startWorker();
        expect(await own.waitForRun(free)).toMatchObject({ state: 'succeeded' });
        const [row] = await own.query('SELECT state, held_back_by FROM keyturn.run WHERE id = $1', [stuck]);
        expect(row).toEqual({
          state: 'pending',
          held_back_by:
            'registered column public.patient.secret is gone; expected text, varchar, bytea or jsonb; see: keyturn doctor',
        });
      } finally {
        await own.close();
      }
    },
  );
});
