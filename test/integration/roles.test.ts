// Everything under the least privilege: a superuser runs the printed SQL and nothing else, then owner, application, worker
// and auditor each do their work as themselves. And what each of them can not do, table by table; every command under every
// role is in test/doors/cli-roles.test.ts.
import { randomBytes, randomUUID } from 'node:crypto';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl, openKeyturn, type Keyturn } from '../../src/app.js';
import { startSupervisorProcess, startWorker } from '../../src/app-runners.js';
import type { ConfigFile, Environment } from '../../src/config.js';
import { listRecords, verifyAudit } from '../../src/control/audit.js';
import type { ControlContext, OpenControl } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { listKeys, restore, retire, rotateKey } from '../../src/control/keys.js';
import { printSql } from '../../src/control/print-sql.js';
import { rebindValues } from '../../src/control/rebind.js';
import { listRuns, orderRun, showRun } from '../../src/control/runs.js';
import { readStatus } from '../../src/control/status.js';
import type { KeyturnError } from '../../src/errors.js';
import { isFinished } from '../../src/rotation/run.js';
import type { Queryable } from '../../src/store/database.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { outcomeOf } from '../support/outcome-of.js';
import { createTestRole, type TestRole } from '../support/roles.js';
import { customerTable, shopConfig } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';

const roleNames = ['owner', 'app', 'worker', 'auditor'] as const;
type RoleName = (typeof roleNames)[number];

const rootKey = randomBytes(32).toString('hex');
const everything = {
  keyring: undefined,
  target: undefined,
  scope: undefined,
  deep: false,
  reason: 'under roles',
} as const;

let database: TestDatabase;
let roles: Readonly<Record<RoleName, TestRole>>;
let config: ConfigFile;
const controls: OpenControl[] = [];

const query = async (text: string, parameters?: unknown[]): Promise<Record<string, unknown>[]> =>
  (await database.pool.query(text, parameters)).rows as Record<string, unknown>[];

const environmentOf = (role: TestRole): Record<string, string> => ({
  DATABASE_URL: role.urlFor(database.url),
  KEYTURN_ROOT_KEY: rootKey,
  LOG_LEVEL: 'silent',
});

function contextOf(role: RoleName): ControlContext {
  const control = openControl({ environment: environmentOf(roles[role]) as Environment, file: config });
  controls.push(control);
  return control.context;
}

/** Of a verb that is refused with statements for the owner of a table; answers how many they are. */
async function runStatementsOf(verb: () => Promise<unknown>): Promise<number> {
  const keys = 'SELECT xmin, id, state FROM keyturn.data_key ORDER BY id';
  const before = await query(keys);
  const error: unknown = await verb().catch((thrown: unknown) => thrown);
  expect(error).toMatchObject({ code: 'FORBIDDEN', details: { table: 'public.customer' } });
  expect(await query(keys)).toEqual(before);
  const { statements } = (error as KeyturnError).details;
  if (!Array.isArray(statements)) throw new Error('the refusal names no statements');
  for (const statement of statements) await query(String(statement));
  return statements.length;
}

const openAs = (role: TestRole): Promise<Keyturn> =>
  openKeyturn({ config, environment: environmentOf(role), name: 'shop' });

beforeAll(async () => {
  const [owner, app, worker, auditor] = await Promise.all([
    createTestRole(),
    createTestRole(),
    createTestRole(),
    createTestRole(),
  ]);
  roles = { owner, app, worker, auditor };
  config = {
    ...shopConfig,
    roles: { owner: owner.name, app: app.name, worker: worker.name, auditor: auditor.name },
  };
  database = await createTestDatabase();
  await query(customerTable);
  await query(`GRANT SELECT, INSERT, UPDATE ON customer TO ${app.name}`);
  const { context } = openControl({ environment: { DATABASE_URL: 'postgres://' } as Environment, file: config });
  await query(await printSql({ config: context.config }));
  await init(contextOf('owner'), 'bring it up');
});

afterAll(async () => {
  await Promise.all(controls.map((control) => control.close()));
  await database.drop();
  await Promise.all(Object.values(roles).map((role) => role.drop()));
});

describe('the whole story, each part under its own role', () => {
  test('the printed SQL leaves init nothing that asks for more than the owner has, and a second init changes nothing', async () => {
    const before = await imageOf({ query }, 'keyturn');
    const report = await init(contextOf('owner'), 'again');
    expect(report).toMatchObject({ migrations: [], keyrings: [{ isNew: false }], targets: [{ change: 'unchanged' }] });
    expect(await imageOf({ query }, 'keyturn')).toEqual(before);
    const [owner] = await query(
      `SELECT has_database_privilege($1, current_database(), 'CREATE') AS database, has_table_privilege($1, 'customer', 'UPDATE, INSERT, DELETE') AS rows`,
      [roles.owner.name],
    );
    expect(owner).toEqual({ database: false, rows: false });
  });

  test('init as an owner who may not grant on a table says which statements its own owner has to run', async () => {
    const { name } = roles.worker;
    await query(`REVOKE UPDATE (phone) ON customer FROM ${name}`);
    const lacking = await init(contextOf('owner'));
    const grant = `GRANT SELECT, UPDATE ("email", "phone", "profile") ON "public"."customer" TO "${name}"`;
    expect(lacking.warnings).toMatchObject([{ check: 'rights', subject: 'public.customer' }]);
    expect(lacking.warnings[0]?.remedy).toContain(`${grant};`);
    expect(lacking.grants).not.toContain(grant);
    await query(grant);
    expect((await init(contextOf('owner'))).warnings).toEqual([]);
  });

  test('I10 the reason given to init stands in every record it made, under the login of the owner', async () => {
    const records = await listRecords(contextOf('auditor'), {
      since: undefined,
      object: undefined,
      action: undefined,
      limit: 100,
    });
    expect(new Set(records.map(({ actor, reason }) => `${actor} ${reason}`))).toEqual(
      new Set([`${roles.owner.name} bring it up`]),
    );
  });

  test('application, operator, supervisor and worker rotate, move every row, retire and restore', async () => {
    const owner = contextOf('owner');
    const keyturn = await openAs(roles.app);
    const column = keyturn.column('customer', 'email');
    for (const id of [1, 2, 3]) {
      const stored = await column.encrypt({ pk: id, scope: 'a' }, `Ada ${id}`);
      await query('INSERT INTO customer (id, tenant_id, email) VALUES ($1, $2, $3)', [id, 'a', stored]);
    }
    const supervisor = await startSupervisorProcess({ environment: environmentOf(roles.worker), name: 'supervisor' });
    const worker = await startWorker({ environment: environmentOf(roles.worker), name: 'worker' });
    try {
      const { key } = await rotateKey(owner, { keyring: undefined, ifOlderThanMs: undefined, reason: 'quarterly' });
      const run = await orderRun(owner, { ...everything, kind: 'reencrypt' });
      const report = await until(
        async () => {
          const current = await showRun(owner, run.id);
          return isFinished(current.state) && current;
        },
        { what: 'the run to end', deadlineMs: 60_000 },
      );
      expect(report).toMatchObject({ state: 'succeeded', rows_updated: 3, target_key_id: key.id });
      // The table is not the owner's, so its fence is for somebody else: refused with the statements, which are then run.
      expect(await runStatementsOf(() => retire(owner, undefined, 'v1', 'all rows moved'))).toBe(6);
      expect(await retire(owner, undefined, 'v1', 'all rows moved')).toMatchObject({ key: { state: 'retired' } });
      expect(await runStatementsOf(() => restore(owner, undefined, 'v1', 'too early'))).toBe(4);
      expect(await restore(owner, undefined, 'v1', 'too early')).toMatchObject({ key: { state: 'decrypt_only' } });
      await query(`UPDATE customer SET tenant_id = 'b' WHERE id = 3`);
      const moved = {
        ...everything,
        target: 'customer',
        pk: ['3'],
        wasPk: undefined,
        wasScope: 'a',
        column: undefined,
      };
      await expect(rebindValues(owner, { ...moved, isDryRun: false })).rejects.toMatchObject({ code: 'FORBIDDEN' });
      expect(await rebindValues(owner, { ...moved, isDryRun: true })).toMatchObject({ fields_reencrypted: 1 });
      expect(await rebindValues(contextOf('worker'), { ...moved, isDryRun: false })).toMatchObject({ rows_updated: 1 });
    } finally {
      await worker.stop();
      await supervisor.stop();
    }
    const [row] = await query('SELECT email FROM customer WHERE id = 2');
    expect(await column.decrypt({ pk: 2, scope: 'a' }, String(row?.['email']))).toMatchObject({
      plaintext: 'Ada 2',
      stale: false,
    });
    await keyturn.close();
    expect(await query('SELECT FROM keyturn.member')).toEqual([]);
    const actors = await query(
      `SELECT DISTINCT actor FROM keyturn.audit WHERE object LIKE 'run %' AND action <> 'run.create'`,
    );
    expect(actors).toEqual([{ actor: roles.worker.name }]);
  });

  test('the auditor reads status, keys, runs and the record, and proves the record whole, seals included', async () => {
    const auditor = contextOf('auditor');
    // Whose values it may not read, and so not look at.
    expect((await readStatus(auditor)).keyrings).toMatchObject([{ keyring: 'customers', not_envelopes: null }]);
    expect(await listKeys(auditor, undefined)).toHaveLength(1);
    expect(await listRuns(auditor, 5)).toHaveLength(1);
    const verified = await verifyAudit(auditor, undefined);
    expect(verified).toMatchObject({ intact: true, damage: null });
    expect(verified.seals.checked).toBe(verified.seals.stored);
    // The worker sealed as it stopped.
    expect(verified.seals.sealed_to).toBe(verified.records);
  });
});

describe('what each role can not do', () => {
  /** As PostgreSQL writes rights: r SELECT, a INSERT, w UPDATE, d DELETE, D TRUNCATE, x REFERENCES, t TRIGGER; (w) of columns. */
  const rights: Readonly<Record<string, Readonly<Record<'app' | 'worker' | 'auditor', string>>>> = {
    audit: { app: '', worker: 'ar', auditor: 'r' },
    audit_head: { app: '', worker: 'r', auditor: 'r' },
    audit_link: { app: '', worker: 'r', auditor: 'r' },
    audit_seal: { app: '', worker: 'ar', auditor: 'r' },
    backup: { app: '', worker: 'r', auditor: 'r' },
    batch: { app: '', worker: 'arw', auditor: 'r' },
    cluster: { app: 'r', worker: 'r(w)', auditor: 'r' },
    data_key: { app: 'r', worker: 'r', auditor: 'r' },
    data_key_wrap: { app: 'r', worker: 'r', auditor: 'r' },
    expected_member: { app: '', worker: 'r', auditor: 'r' },
    destruction: { app: '', worker: 'r', auditor: 'r' },
    fence: { app: '', worker: 'r', auditor: 'r' },
    keyring: { app: 'r', worker: 'r', auditor: 'r' },
    key_usage: { app: '', worker: 'r', auditor: 'r' },
    lazy_upgrade: { app: '', worker: 'r', auditor: 'r' },
    leadership: { app: '', worker: 'arw', auditor: 'r' },
    ledger: { app: '', worker: 'ar', auditor: 'r' },
    member: { app: '', worker: 'dr', auditor: 'r' },
    member_keyring: { app: '', worker: 'r', auditor: 'r' },
    migration: { app: 'r', worker: 'r', auditor: 'r' },
    occurrence: { app: '', worker: 'arw', auditor: 'r' },
    pace: { app: '', worker: 'arw', auditor: 'r' },
    quarantine: { app: '', worker: 'arw', auditor: 'r' },
    retirement: { app: '', worker: 'r', auditor: 'r' },
    root_key: { app: 'r', worker: 'r', auditor: 'r' },
    run: { app: '', worker: 'arw', auditor: 'r' },
    run_target: { app: '', worker: 'arw', auditor: 'r' },
    schedule: { app: '', worker: 'r(w)', auditor: 'r' },
    target: { app: 'r', worker: 'r', auditor: 'r' },
    target_column: { app: 'r', worker: 'r', auditor: 'r' },
  };

  test('every table has a decision for every role, and the database agrees with it', async () => {
    const found: Record<string, Record<string, string>> = {};
    for (const role of ['app', 'worker', 'auditor'] as const) {
      const rows = await query(
        `SELECT c.relname, string_agg(CASE WHEN has_table_privilege($1, c.oid, p.name) THEN p.letter
            WHEN p.letter IN ('r', 'a', 'w', 'x') AND has_any_column_privilege($1, c.oid, p.name) THEN '(' || p.letter || ')' END, '' ORDER BY p.letter COLLATE "C") AS rights
         FROM pg_class c, (VALUES ('r', 'SELECT'), ('a', 'INSERT'), ('w', 'UPDATE'), ('d', 'DELETE'), ('D', 'TRUNCATE'), ('x', 'REFERENCES'), ('t', 'TRIGGER')) p(letter, name)
         WHERE c.relnamespace = 'keyturn'::regnamespace AND c.relkind = 'r' GROUP BY c.relname`,
        [roles[role].name],
      );
      for (const row of rows) (found[String(row['relname'])] ??= {})[role] = String(row['rights'] ?? '');
    }
    expect(found).toEqual(rights);
  });

  test('no role but the owner uses a sequence, and functions are open to application and worker only as named', async () => {
    const open = {
      app: ['beat', 'count_lazy_upgrade', 'leave', 'reserve_encryptions'],
      worker: ['beat', 'leave', 'reserve_encryptions'],
      auditor: [],
    };
    for (const role of ['app', 'worker', 'auditor'] as const) {
      const sequences = await query(
        `SELECT relname FROM pg_class WHERE relnamespace = 'keyturn'::regnamespace AND CASE WHEN relkind = 'S' THEN has_sequence_privilege($1, oid, 'USAGE, SELECT, UPDATE') END`,
        [roles[role].name],
      );
      expect(sequences).toEqual([]);
      const functions = await query(
        `SELECT proname FROM pg_proc WHERE pronamespace = 'keyturn'::regnamespace AND prorettype <> 'trigger'::regtype AND has_function_privilege($1, oid, 'EXECUTE') ORDER BY 1`,
        [roles[role].name],
      );
      expect(functions.map(({ proname }) => proname)).toEqual(open[role]);
    }
  });

  test('every function that runs with the rights of the owner has a pinned search path', async () => {
    const functions = await query(
      `SELECT proname, proconfig FROM pg_proc WHERE pronamespace = 'keyturn'::regnamespace AND prosecdef ORDER BY 1`,
    );
    expect(functions).toEqual(
      ['beat', 'chain_audit', 'count_lazy_upgrade', 'leave', 'reserve_encryptions'].map((proname) => ({
        proname,
        proconfig: ['search_path=pg_catalog, pg_temp'],
      })),
    );
  });

  test('an application touches its own member row alone: no other login, no worker, no supervisor', async () => {
    const other = await createTestRole();
    await query(`GRANT ${roles.app.name} TO ${other.name}`);
    const [app, worker] = [contextOf('app').database, contextOf('worker').database];
    const beat = (by: Queryable, id: string, kind: string | null): Promise<unknown> =>
      by.query('SELECT keyturn.beat($1, $2)', [
        JSON.stringify({ id, kind, name: 'x', host: 'x', pid: 1, version: 'x', formats: [], algorithms: [] }),
        '[]',
      ]);
    const workerId = randomUUID();
    await beat(worker, workerId, 'worker');
    const [mine, theirs] = [await openAs(roles.app), await openAs(other)];
    try {
      const image = () =>
        query('SELECT id, login, kind, name, heartbeat_at > started_at FROM keyturn.member ORDER BY id');
      const members = await query('SELECT id, login FROM keyturn.member WHERE login <> $1', [roles.app.name]);
      expect(new Set(members.map(({ login }) => login))).toEqual(new Set([other.name, roles.worker.name]));
      const before = await image();
      for (const { id } of members) {
        await app.query('SELECT keyturn.leave($1)', [id]);
        expect(await outcomeOf(() => beat(app, String(id), 'application'))).toBe('FORBIDDEN');
      }
      for (const kind of ['worker', 'supervisor', null])
        expect(await outcomeOf(() => beat(app, randomUUID(), kind))).toBe('FORBIDDEN');
      expect(await image()).toEqual(before);
    } finally {
      await worker.query('SELECT keyturn.leave($1)', [workerId]);
      await mine.close();
      await theirs.close();
      await other.drop();
    }
    expect(await query('SELECT FROM keyturn.member')).toEqual([]);
  });
});
