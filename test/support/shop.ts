// A small shop to rotate: one database with a customer table of several tenants, initialised, with helpers that write and
// read through the library and start supervisor and workers on either queue backend.
import { randomBytes } from 'node:crypto';
import { inject } from 'vitest';
import { openControl, openKeyturn, type Keyturn } from '../../src/app.js';
import { startSupervisorProcess, startWorker, type LongRunning } from '../../src/app-runners.js';
import type { OpenControl } from '../../src/control/context.js';
import type { ConfigFile, Environment } from '../../src/config.js';
import { init } from '../../src/control/init.js';
import { activate, rotateKey, stageKey } from '../../src/control/keys.js';
import { orderRun, showRun, type RunReport, type RunRequest } from '../../src/control/runs.js';
import type { ReachPoint } from '../../src/engine/services.js';
import { isFinished } from '../../src/rotation/run.js';
import { createTestDatabase } from './database.js';
import { until } from './until.js';

export type Backend = 'postgres' | 'redis';

export const customerColumns = { email: {}, phone: {}, profile: { paths: { ssn: ['ssn'], iban: ['bank', 'iban'] } } };

export const shopConfig: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [{ table: 'public.customer', keyring: 'customers', scope: 'tenant_id', columns: customerColumns }],
};

export const customerTable = `CREATE TABLE customer (
  id bigint PRIMARY KEY, tenant_id text NOT NULL, email text, phone bytea, profile jsonb NOT NULL DEFAULT '{}',
  updated_at timestamptz NOT NULL DEFAULT 'epoch', version integer NOT NULL DEFAULT 1)`;

export interface Shop {
  readonly url: string;
  readonly backend: Backend;
  readonly rootKey: string;
  readonly control: OpenControl;
  query(text: string, parameters?: unknown[]): Promise<Record<string, unknown>[]>;
  /** A fresh copy each time: root providers remove what they read. */
  environment(): Record<string, string>;
  open(name?: string): Promise<Keyturn>;
  startWorker(reachPoint?: ReachPoint): Promise<LongRunning>;
  /** Paced only where asked for: how busy the machine is must decide no test but those of pacing. */
  startSupervisor(options?: { readonly isPaced: boolean }): Promise<LongRunning>;
  rotate(): Promise<number>;
  order(request?: Partial<RunRequest>): Promise<number>;
  waitForRun(id: number, deadlineMs?: number): Promise<RunReport>;
  close(): Promise<void>;
}

/** Redis database numbers keep test files apart. */
function redisUrlFor(): string {
  const url = new URL(inject('redisUrl') ?? '');
  url.pathname = `/${1 + (Number(process.env['VITEST_POOL_ID'] ?? 1) % 14)}`;
  return url.toString();
}

export async function openShop(
  options: {
    backend?: Backend;
    config?: ConfigFile;
    ddl?: readonly string[];
    redisUrl?: string;
    adminUrl?: string;
    /** Beside the root key and the addresses, for every process of the shop. */
    environment?: Readonly<Record<string, string>>;
  } = {},
): Promise<Shop> {
  const backend = options.backend ?? 'postgres';
  const config = options.config ?? shopConfig;
  const database = await createTestDatabase({ adminUrl: options.adminUrl, isMigrated: true });
  for (const statement of options.ddl ?? [customerTable]) await database.pool.query(statement);
  const rootKey = randomBytes(32).toString('hex');
  const running: LongRunning[] = [];
  const opened: Keyturn[] = [];

  const environment = (): Record<string, string> => ({
    DATABASE_URL: database.url,
    KEYTURN_ROOT_KEY: rootKey,
    LOG_LEVEL: process.env['TEST_LOG_LEVEL'] ?? 'silent',
    ...options.environment,
    ...(backend === 'redis' ? { REDIS_URL: options.redisUrl ?? redisUrlFor() } : {}),
  });
  const control = openControl({ environment: environment() as Environment, file: config });
  await init(control.context);

  const keep = (process: LongRunning): LongRunning => {
    running.push(process);
    return process;
  };

  return {
    url: database.url,
    backend,
    rootKey,
    control,
    query: async (text, parameters) => (await database.pool.query(text, parameters)).rows as Record<string, unknown>[],
    environment,
    async open(name = 'test') {
      const keyturn = await openKeyturn({ config, environment: environment(), name });
      opened.push(keyturn);
      return keyturn;
    },
    startWorker: async (reachPoint) =>
      keep(
        await startWorker({
          environment: environment(),
          name: 'worker',
          ...(reachPoint === undefined ? {} : { reachPoint }),
        }),
      ),
    startSupervisor: async ({ isPaced } = { isPaced: false }) =>
      keep(await startSupervisorProcess({ environment: environment(), name: 'supervisor', isPaced })),
    async rotate() {
      const staged = await stageKey(control.context, undefined, 'test');
      await activate(control.context, undefined, String(staged.key.id), 'test');
      return staged.key.id;
    },
    async order(request = {}) {
      const run = await orderRun(control.context, {
        kind: 'reencrypt',
        keyring: undefined,
        target: undefined,
        scope: undefined,
        deep: false,
        reason: 'test',
        ...request,
      });
      return run.id;
    },
    waitForRun: (id, deadlineMs = 60_000) =>
      until(
        async () => {
          const report = await showRun(control.context, id);
          return (isFinished(report.state) || report.state === 'paused') && report;
        },
        { what: `run ${id} to end`, deadlineMs },
      ),
    async close() {
      await Promise.all(opened.map((keyturn) => keyturn.close()));
      await Promise.all(running.map((process) => process.stop()));
      await control.close();
      await database.drop();
    },
  };
}

export { rotateKey };

export interface Customer {
  readonly id: number;
  readonly tenant: string;
  readonly email: string | null;
  readonly phone: Buffer | null;
  readonly ssn: string | null;
  readonly iban: string | null;
}

export function customer(id: number): Customer {
  return {
    id,
    tenant: `tenant-${id % 3}`,
    email: id % 11 === 0 ? null : `customer-${id}@example.com`,
    phone: id % 7 === 0 ? null : Buffer.from(`+49 30 ${id}`),
    ssn: id % 5 === 0 ? '' : `ssn-${id}`,
    iban: id % 13 === 0 ? null : `DE00 ${id}`,
  };
}

/** Inserts customers through the library, as an application would. */
export async function insertCustomers(shop: Shop, keyturn: Keyturn, ids: Iterable<number>): Promise<void> {
  const columns = ['email', 'phone', 'profile.ssn', 'profile.iban'].map((name) =>
    keyturn.column('public.customer', name),
  );
  for (const id of ids) {
    const made = customer(id);
    const address = { pk: id, scope: made.tenant };
    const [email, phone, ssn, iban] = await Promise.all(
      [made.email, made.phone, made.ssn, made.iban].map(async (value, at) =>
        value === null ? null : columns[at]?.encrypt(address, value),
      ),
    );
    await shop.query('INSERT INTO customer (id, tenant_id, email, phone, profile) VALUES ($1, $2, $3, $4, $5)', [
      id,
      made.tenant,
      email,
      phone,
      JSON.stringify({ ssn, bank: { iban, name: 'kept' }, plain: id }),
    ]);
  }
}

/** Decrypts every cell and answers what differs from what was written, in words. */
export async function findDifferences(
  shop: Shop,
  keyturn: Keyturn,
  expected: (id: number) => Customer = customer,
): Promise<string[]> {
  const email = keyturn.column('public.customer', 'email');
  const phone = keyturn.column('public.customer', 'phone');
  const ssn = keyturn.column('public.customer', 'profile.ssn');
  const iban = keyturn.column('public.customer', 'profile.iban');
  const differences: string[] = [];
  for (const row of await shop.query(
    `SELECT id::int, tenant_id, email, phone, profile #>> '{ssn}' AS ssn, profile #>> '{bank,iban}' AS iban FROM customer ORDER BY id`,
  )) {
    const wanted = expected(Number(row['id']));
    const address = { pk: wanted.id, scope: String(row['tenant_id']) };
    for (const [name, column, stored, value] of [
      ['email', email, row['email'], wanted.email],
      ['phone', phone, row['phone'], wanted.phone],
      ['ssn', ssn, row['ssn'], wanted.ssn],
      ['iban', iban, row['iban'], wanted.iban],
    ] as const) {
      const seen = stored === null ? null : (await column.decrypt(address, stored as string | Buffer)).plaintext;
      const isEqual = Buffer.isBuffer(value) ? Buffer.isBuffer(seen) && seen.equals(value) : seen === value;
      if (!isEqual) differences.push(`row ${wanted.id} ${name}`);
    }
  }
  return differences;
}
