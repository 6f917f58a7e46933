// init: brings everything up once, changes nothing the second time, never makes a second key, and refuses the wrong root
// key before the first write. And the grants it prints: each role can do its work with them, and no more.
import { randomBytes } from 'node:crypto';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import { startSupervisorProcess, startWorker } from '../../src/app-runners.js';
import type { ConfigFile } from '../../src/config.js';
import type { OpenControl } from '../../src/control/context.js';
import { init, type InitReport } from '../../src/control/init.js';
import { printSql } from '../../src/control/print-sql.js';
import { activate, listKeys, stageKey } from '../../src/control/keys.js';
import { readStatus } from '../../src/control/status.js';
import { availableBackends } from '../support/backends.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { outcomeOf } from '../support/outcome-of.js';
import { createTestRole, type TestRole } from '../support/roles.js';
import {
  customer,
  customerTable,
  findDifferences,
  insertCustomers,
  openShop,
  shopConfig,
  type Shop,
} from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { loseKey, withoutGuards } from '../support/without-guards.js';

type Rows = Record<string, unknown>[];

const newRoot = (): string => randomBytes(32).toString('hex');

describe('init on an empty database', () => {
  let database: TestDatabase;
  const opened: OpenControl[] = [];

  beforeEach(async () => {
    database = await createTestDatabase();
    await database.pool.query(customerTable);
  });

  afterEach(async () => {
    await Promise.all(opened.splice(0).map((control) => control.close()));
    await database.drop();
  });

  const query = async (text: string, parameters?: unknown[]): Promise<Rows> =>
    (await database.pool.query(text, parameters)).rows as Rows;

  function control(root: string, file: ConfigFile = shopConfig): OpenControl {
    const created = openControl({ environment: { DATABASE_URL: database.url, KEYTURN_ROOT_KEY: root }, file });
    opened.push(created);
    return created;
  }

  test('makes schema, keyring, first key and targets, and reports them; the second time it changes not one row', async () => {
    const root = newRoot();
    const first = await init(control(root).context);
    expect(first).toMatchObject({
      migrations: ['ControlSchema1767225600000'],
      keyrings: [{ name: 'customers', isNew: true }],
      targets: [
        { name: 'public.customer', columns: ['email', 'phone', 'profile.ssn', 'profile.iban'], change: 'registered' },
      ],
      warnings: [],
      grants: [],
    });
    const before = await imageOf({ query }, 'keyturn');
    expect(before['audit']?.length).toBeGreaterThan(0);

    const second = await init(control(root).context);
    expect(second).toMatchObject({
      migrations: [],
      keyrings: [{ name: 'customers', isNew: false, activeKeyId: first.keyrings[0]?.activeKeyId }],
      targets: [{ name: 'public.customer', change: 'unchanged' }],
    });
    expect(await imageOf({ query }, 'keyturn')).toEqual(before);
  });

  test('I10 the first key leaves one audit record for each thing that happened', async () => {
    await init(control(newRoot()).context);
    const actions = (await query('SELECT action, actor FROM keyturn.audit ORDER BY id')).map(({ action }) => action);
    expect(actions).toEqual([
      'keyring.create',
      'root.register',
      'key.stage',
      'key.activate',
      'target.register',
      ...Array(4).fill('target.column'),
      'audit-key.create',
      'key.stage',
    ]);
  });

  test('I5 four inits at once end with one cluster, one active key and one standby, whoever was first', async () => {
    const root = newRoot();
    const settled = await Promise.allSettled(Array.from({ length: 4 }, () => init(control(root).context)));
    const succeeded = settled.filter((one) => one.status === 'fulfilled');
    expect(succeeded.length).toBeGreaterThan(0);
    const reasons = settled.flatMap((one) => (one.status === 'rejected' ? [String(one.reason)] : []));
    const asked = 'KeyturnError: another init created this cluster a moment ago; run keyturn init again';
    expect(reasons.filter((reason) => reason !== asked)).toEqual([]);
    expect(await query('SELECT state, version, purpose FROM keyturn.data_key ORDER BY version, purpose')).toEqual([
      { state: 'active', version: 1, purpose: 1 },
      { state: 'active', version: 1, purpose: 3 },
      { state: 'staged', version: 2, purpose: 1 },
    ]);
    expect(await query('SELECT FROM keyturn.cluster')).toHaveLength(1);
    expect(await query('SELECT FROM keyturn.root_key')).toHaveLength(1);
    expect(await init(control(root).context)).toMatchObject({ migrations: [], targets: [{ change: 'unchanged' }] });
  });

  test('I5 four inits at once that add a keyring to a cluster make one active key and one standby in it', async () => {
    const root = newRoot();
    await init(control(root).context);
    const file: ConfigFile = {
      ...shopConfig,
      keyrings: { ...shopConfig.keyrings, patients: { root: 'env:KEYTURN_ROOT_KEY', algorithm: 'aes-256-gcm' } },
    };
    const reports = await Promise.all(Array.from({ length: 4 }, () => init(control(root, file).context)));
    const made = reports.flatMap(({ keyrings }) => keyrings.filter(({ isNew }) => isNew).map(({ name }) => name));
    expect(made).toEqual(['patients']);
    expect(
      await query(
        'SELECT r.name, k.state, k.algorithm FROM keyturn.data_key k JOIN keyturn.keyring r ON r.id = k.keyring_id ORDER BY 1, k.version',
      ),
    ).toEqual([
      { name: 'customers', state: 'active', algorithm: 'xaes-256-gcm' },
      { name: 'customers', state: 'staged', algorithm: 'xaes-256-gcm' },
      { name: 'patients', state: 'active', algorithm: 'aes-256-gcm' },
      { name: 'patients', state: 'staged', algorithm: 'aes-256-gcm' },
    ]);
    expect(await query('SELECT FROM keyturn.root_key')).toHaveLength(1);
  });

  test('an init that died between staging and activating its first key is finished by the next', async () => {
    const root = newRoot();
    await init(control(root).context);
    // What such a death leaves behind; no key goes back to it by itself.
    await loseKey(query, 2);
    await withoutGuards(query, () =>
      query(
        `UPDATE keyturn.data_key SET state = 'staged', activated_at = NULL, activated_generation = NULL WHERE purpose = 1`,
      ),
    );
    const report = await init(control(root).context);
    expect(report.keyrings).toMatchObject([{ isNew: false, activeKeyId: 1 }]);
    expect(await query('SELECT id::int, state FROM keyturn.data_key WHERE purpose = 1 ORDER BY id')).toEqual([
      { id: 1, state: 'active' },
      { id: 3, state: 'staged' },
    ]);
  });

  test('a new algorithm in the file is recorded, and holds for keys made from then on; both kinds decrypt', async () => {
    const root = newRoot();
    await init(control(root).context);
    const environment = (): Record<string, string> => ({
      DATABASE_URL: database.url,
      KEYTURN_ROOT_KEY: root,
      LOG_LEVEL: 'silent',
    });
    const before = await openKeyturn({ config: shopConfig, environment: environment() });
    const stored = await before.column('customer', 'email').encrypt({ pk: 1, scope: 'a' }, 'Ada');
    await before.close();

    const file: ConfigFile = {
      ...shopConfig,
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY', algorithm: 'aes-256-gcm' } },
    };
    const changed = control(root, file);
    await init(changed.context);
    expect(
      await query(
        `SELECT before ->> 'algorithm' AS before, after ->> 'algorithm' AS after FROM keyturn.audit WHERE action = 'keyring.update'`,
      ),
    ).toEqual([{ before: 'xaes-256-gcm', after: 'aes-256-gcm' }]);
    const staged = await stageKey(changed.context, undefined, undefined);
    expect(staged.key.algorithm).toBe('aes-256-gcm');
    await activate(changed.context, undefined, undefined, undefined);
    const after = await openKeyturn({ config: file, environment: environment() });
    const column = after.column('customer', 'email');
    expect(await column.decrypt({ pk: 1, scope: 'a' }, stored)).toMatchObject({ plaintext: 'Ada', stale: true });
    const again = await column.encrypt({ pk: 1, scope: 'a' }, 'Eve');
    expect(String(again)).toHaveLength(4 + Math.ceil(((40 + 3) * 4) / 3));
    expect(await column.decrypt({ pk: 1, scope: 'a' }, again)).toMatchObject({ plaintext: 'Eve', stale: false });
    await after.close();
  });

  test('the printed SQL is all of it: run by hand on an empty database, it leaves init nothing to migrate', async () => {
    const root = newRoot();
    const sql = await printSql(control(root).context);
    await query(sql);
    const report = await init(control(root).context);
    expect(report.migrations).toEqual([]);
    expect(report.keyrings).toMatchObject([{ isNew: true }]);
    expect(sql).not.toContain(root);
  });
});

describe('the wrong root key', () => {
  let shop: Shop;
  let wrong: string;

  beforeAll(async () => {
    shop = await openShop();
    wrong = newRoot();
  });

  afterAll(() => shop.close());

  const attempts: readonly { what: string; attempt: (environment: Record<string, string>) => Promise<unknown> }[] = [
    { what: 'the library', attempt: (environment) => openKeyturn({ config: shopConfig, environment }) },
    { what: 'a worker', attempt: (environment) => startWorker({ environment, name: 'worker' }) },
    { what: 'init', attempt: (environment) => withControl(environment, ({ context }) => init(context)) },
    {
      what: 'init that would add a keyring',
      attempt: (environment) =>
        withControl(environment, ({ context }) => init(context), {
          ...shopConfig,
          keyrings: { ...shopConfig.keyrings, more: { root: 'env:KEYTURN_ROOT_KEY' } },
        }),
    },
    {
      what: 'key stage',
      attempt: (environment) => withControl(environment, ({ context }) => stageKey(context, undefined, undefined)),
    },
    {
      what: 'key activate',
      attempt: (environment) => withControl(environment, ({ context }) => activate(context, undefined, '1', undefined)),
    },
  ];

  async function withControl(
    environment: Record<string, string>,
    work: (control: OpenControl) => Promise<unknown>,
    file: ConfigFile = shopConfig,
  ): Promise<unknown> {
    const control = openControl({ environment, file });
    return work(control).finally(control.close);
  }

  for (const { what, attempt } of attempts) {
    test(`${what} ends with MasterKeyMismatch, both short fingerprints and not one write`, async () => {
      const before = { keyturn: await imageOf(shop, 'keyturn'), bullmq: await imageOf(shop, 'bullmq') };
      const [root] = await shop.query(
        `SELECT encode(substring(fingerprint FROM 1 FOR 8), 'hex') AS short FROM keyturn.root_key`,
      );
      const error: unknown = await attempt({ ...shop.environment(), KEYTURN_ROOT_KEY: wrong }).catch(
        (thrown: unknown) => thrown,
      );
      expect(error).toMatchObject({
        code: 'MASTER_KEY_MISMATCH',
        kind: 'root_mismatch',
        details: {
          keyring: 'customers',
          expected: root?.['short'],
          given: expect.stringMatching(/^[0-9a-f]{16}$/) as string,
        },
      });
      expect(String(error)).toMatch(
        new RegExp(
          `MasterKeyMismatch: the keys of keyring customers are wrapped under root key ${String(root?.['short'])}, the given root key is [0-9a-f]{16}; nothing was written`,
        ),
      );
      expect(String(error)).not.toContain(wrong.slice(0, 8));
      expect({ keyturn: await imageOf(shop, 'keyturn'), bullmq: await imageOf(shop, 'bullmq') }).toEqual(before);
    });
  }

  test('what needs no key material works without any root key', async () => {
    const control = openControl({ environment: { DATABASE_URL: shop.url }, file: shopConfig });
    try {
      expect((await readStatus(control.context)).keyrings).toMatchObject([
        { keyring: 'customers', next: 'nothing to do' },
      ]);
      expect(await listKeys(control.context, undefined)).toMatchObject([
        {
          keyring: 'customers',
          keys: [
            { id: 1, state: 'active' },
            { id: 2, state: 'staged' },
          ],
        },
      ]);
    } finally {
      await control.close();
    }
  });
});

describe('a schema of another version', () => {
  let shop: Shop;

  beforeAll(async () => {
    shop = await openShop();
  });

  afterAll(() => shop.close());

  const outcomes = async (): Promise<string[]> => [
    await outcomeOf(() => openKeyturn({ config: shopConfig, environment: shop.environment() })),
    await outcomeOf(() => startWorker({ environment: shop.environment(), name: 'worker' })),
    await outcomeOf(() => startSupervisorProcess({ environment: shop.environment(), name: 'supervisor' })),
  ];

  test('newer than this process knows is refused, by init too, and says what to upgrade', async () => {
    await shop.query(`INSERT INTO keyturn.migration (timestamp, name) VALUES (1999999999999, 'FromTheFuture')`);
    const before = await imageOf(shop, 'keyturn');
    expect(await outcomes()).toEqual(Array(3).fill('SCHEMA_TOO_NEW'));
    await expect(init(shop.control.context)).rejects.toMatchObject({
      code: 'SCHEMA_TOO_NEW',
      message: 'the keyturn schema is at migration 2, this version knows 1; upgrade this process',
    });
    expect(await imageOf(shop, 'keyturn')).toEqual(before);
    await shop.query(`DELETE FROM keyturn.migration WHERE name = 'FromTheFuture'`);
  });

  test('older is refused and names init', async () => {
    await shop.query('CREATE TABLE public.kept AS SELECT * FROM keyturn.migration');
    await shop.query('DELETE FROM keyturn.migration');
    expect(await outcomes()).toEqual(Array(3).fill('SCHEMA_TOO_OLD'));
    await shop.query('INSERT INTO keyturn.migration SELECT * FROM public.kept');
  });

  test('none at all is refused and names init', async () => {
    await shop.query('ALTER SCHEMA keyturn RENAME TO elsewhere');
    expect(await outcomes()).toEqual(Array(3).fill('NOT_INITIALIZED'));
    await shop.query('ALTER SCHEMA elsewhere RENAME TO keyturn');
  });
});

describe('the printed grants', () => {
  let shop: Shop;
  let app: TestRole;
  let worker: TestRole;
  let auditor: TestRole;
  let config: ConfigFile;

  beforeAll(async () => {
    [app, worker, auditor] = await Promise.all([createTestRole(), createTestRole(), createTestRole()]);
    config = { ...shopConfig, roles: { app: app.name, worker: worker.name, auditor: auditor.name } };
    shop = await openShop({ config });
    await shop.query(`GRANT SELECT, INSERT, UPDATE ON customer TO ${app.name}`);
  });

  afterAll(async () => {
    await shop.close();
    await Promise.all([app, worker, auditor].map((role) => role.drop()));
  });

  const environmentOf = (role: TestRole): Record<string, string> => ({
    ...shop.environment(),
    DATABASE_URL: role.urlFor(shop.url),
  });

  /** The statements that the role is not refused for lack of a privilege. */
  async function allowed(role: TestRole, statements: readonly string[]): Promise<string[]> {
    const found: string[] = [];
    for (const statement of statements) {
      // Two statements in one message are one transaction, which SET LOCAL lasts for.
      const outcome = await outcomeOf(() => shop.query(`SET LOCAL ROLE ${role.name}; ${statement}`));
      if (outcome !== '42501') found.push(`${statement}: ${outcome}`);
    }
    return found;
  }

  test('init reports them, and granting again changes nothing', async () => {
    const report: InitReport = await init(shop.control.context);
    expect(report.grants).toContain(
      `GRANT SELECT, UPDATE ("email", "phone", "profile") ON "public"."customer" TO "${worker.name}"`,
    );
    expect(report.grants.some((statement) => statement.includes(app.name) && statement.includes('batch'))).toBe(false);
  });

  test('the application role opens the library, encrypts and decrypts, and leaves', async () => {
    const keyturn = await openKeyturn({ config, environment: environmentOf(app), name: 'app' });
    const column = keyturn.column('customer', 'email');
    const stored = await column.encrypt({ pk: 1, scope: 'a' }, 'Ada');
    expect(await column.decrypt({ pk: 1, scope: 'a' }, stored)).toMatchObject({ plaintext: 'Ada', stale: false });
    expect(await shop.query('SELECT name FROM keyturn.member')).toEqual([{ name: 'app' }]);
    await keyturn.close();
    expect(await shop.query('SELECT FROM keyturn.member')).toEqual([]);
  });

  test('the application role cannot read runs and batches, nor change keys, targets or the record', async () => {
    const statements = [
      'SELECT FROM keyturn.batch',
      'SELECT FROM keyturn.run',
      'SELECT FROM keyturn.quarantine',
      'SELECT FROM keyturn.audit',
      `UPDATE keyturn.data_key SET state = 'retired'`,
      'DELETE FROM keyturn.data_key_wrap',
      'DELETE FROM keyturn.target',
      `UPDATE keyturn.keyring SET generation = 99`,
      `INSERT INTO keyturn.audit (action, object) VALUES ('key.retire', 'key 1')`,
      `SELECT nextval('keyturn.key_id')`,
      'CREATE TABLE keyturn.own ()',
      'SELECT FROM bullmq.job',
    ];
    expect(await allowed(app, statements)).toEqual([]);
  });

  test.for(availableBackends())(
    'the worker role runs supervisor and worker and moves every row [%s]',
    async (backend, { onTestFinished }) => {
      const shop = await openShop({ config, backend });
      onTestFinished(() => shop.close());
      const environment = (): Record<string, string> => ({
        ...shop.environment(),
        DATABASE_URL: worker.urlFor(shop.url),
      });
      const keyturn = await shop.open();
      const ids = [1, 2, 3, 4, 5];
      await insertCustomers(shop, keyturn, ids);
      await keyturn.close();
      const keyId = await shop.rotate();
      const supervisor = await startSupervisorProcess({ environment: environment(), name: 'supervisor' });
      const process = await startWorker({ environment: environment(), name: 'worker' });
      try {
        const report = await shop.waitForRun(await shop.order({ deep: true }));
        expect(report).toMatchObject({ state: 'succeeded', rows_updated: ids.length, target_key_id: keyId });
      } finally {
        await process.stop();
        await supervisor.stop();
      }
      const after = await shop.open();
      expect(await findDifferences(shop, after, customer)).toEqual([]);
      await after.close();
    },
  );

  test('the worker role cannot change keys, targets, other columns or the record of what was done', async () => {
    const statements = [
      `UPDATE keyturn.data_key SET state = 'active'`,
      `INSERT INTO keyturn.data_key_wrap (data_key_id, root_key_id, blob) VALUES (1, 1, '')`,
      'DELETE FROM keyturn.target_column',
      'UPDATE keyturn.cluster SET id = gen_random_uuid()',
      'DELETE FROM keyturn.ledger',
      'DELETE FROM keyturn.audit',
      `UPDATE keyturn.audit SET action = 'x'`,
      `UPDATE customer SET tenant_id = 'other'`,
      'DELETE FROM customer',
    ];
    expect(await allowed(worker, statements)).toEqual([]);
  });

  test('the auditor reads everything of ours and writes nothing', async () => {
    const tables = await shop.query(
      `SELECT relname FROM pg_class WHERE relnamespace = 'keyturn'::regnamespace AND relkind = 'r'`,
    );
    const reads = tables.map(({ relname }) => `SELECT FROM keyturn."${String(relname)}"`);
    expect(await allowed(auditor, reads)).toEqual(reads.map((read) => `${read}: done`));
    const statements = [
      'SELECT FROM customer',
      `UPDATE keyturn.run SET state = 'failed'`,
      `INSERT INTO keyturn.audit (action, object) VALUES ('x', 'y')`,
    ];
    expect(await allowed(auditor, statements)).toEqual([]);
  });

  test('I10 the record, its links and its seals are append-only, for their owner too', async () => {
    const before = await imageOf(shop, 'keyturn');
    for (const [table, column] of [
      ['audit', 'action'],
      ['audit_link', 'hash'],
      ['audit_seal', 'mac'],
    ] as const) {
      for (const statement of [
        `UPDATE keyturn.${table} SET ${column} = ${column}`,
        `DELETE FROM keyturn.${table}`,
        `TRUNCATE keyturn.${table} CASCADE`,
      ]) {
        await expect(shop.query(statement)).rejects.toMatchObject({
          code: '42501',
          message: expect.stringMatching(/^keyturn\.audit\w* is append-only$/) as string,
        });
      }
    }
    expect(await imageOf(shop, 'keyturn')).toEqual(before);
  });
});
