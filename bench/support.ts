// What every benchmark stands on: a database of its own, an initialised keyring, tables filled with encrypted values, one
// batch driven without a queue, medians of alternated rounds.
import { randomBytes, randomUUID } from 'node:crypto';
import pg from 'pg';
import { openControl } from '../src/app.js';
import type { OpenControl } from '../src/control/context.js';
import type { ConfigFile } from '../src/config.js';
import { init } from '../src/control/init.js';
import { activate, stageKey } from '../src/control/keys.js';
import { orderRun } from '../src/control/runs.js';
import { encrypt } from '../src/codec.js';
import { createCellBuilder } from '../src/engine/cells-of-target.js';
import { startMembership, type Membership } from '../src/engine/membership.js';
import { passPoint } from '../src/engine/services.js';
import { workBatch } from '../src/engine/work-batch.js';
import { startEmbeddedPostgres } from '../src/embedded/postgres.js';
import { openRootKey } from '../src/keys/roots/open-root-key.js';
import { targetTitle } from '../src/rotation/target.js';
import { dispatchDue, insertBatch } from '../src/store/batches.js';
import { openDatabase, type Database } from '../src/store/database.js';
import { createKeyStore, getClusterId } from '../src/store/keys.js';
import { listTargets } from '../src/store/registry.js';
import { getRun, moveRunIfState } from '../src/store/runs.js';
import { Secret } from '../src/crypto/secret.js';

export const plaintextBytes = 100;

export interface Bench {
  readonly url: string;
  readonly rootKey: string;
  readonly pool: pg.Pool;
  readonly control: OpenControl;
  readonly database: Database;
  readonly membership: Membership;
  environment(): Record<string, string>;
  close(): Promise<void>;
}

/** A fresh database on DATABASE_URL's server, or on an embedded one. `tables` are created as (id bigint, secret bytea). */
export async function openBench(tables: readonly string[]): Promise<Bench> {
  const given = process.env['DATABASE_URL'];
  const server = given === undefined ? await startEmbeddedPostgres() : { url: given, stop: async () => undefined };
  const admin = new pg.Client({ connectionString: server.url });
  await admin.connect();
  const name = `keyturn_bench_${randomUUID().slice(0, 8)}`;
  await admin.query(`CREATE DATABASE ${name}`);
  const address = new URL(server.url);
  address.pathname = `/${name}`;
  const url = address.toString();
  const pool = new pg.Pool({ connectionString: url, max: 2 });
  // Dropping the database at the end may reach a connection that is just closing.
  pool.on('error', () => undefined);
  for (const table of tables)
    await pool.query(`CREATE TABLE ${table} (id bigint PRIMARY KEY, secret bytea) WITH (autovacuum_enabled = off)`);

  const rootKey = randomBytes(32).toString('hex');
  const environment = (): Record<string, string> => ({
    DATABASE_URL: url,
    KEYTURN_ROOT_KEY: rootKey,
    LOG_LEVEL: 'silent',
  });
  const config: ConfigFile = {
    keyrings: { bench: { root: 'env:KEYTURN_ROOT_KEY' } },
    targets: tables.map((table) => ({ table: `public.${table}`, keyring: 'bench', columns: { secret: {} } })),
  };
  const control = openControl({ environment: environment(), file: config });
  await init(control.context);
  const database = openDatabase({ url: new Secret(url), maxConnections: 5, applicationName: 'keyturn bench' });
  const cluster = await getClusterId(database);
  const membership = await startMembership({
    database,
    store: createKeyStore(database),
    kind: 'worker',
    name: 'bench',
    version: 'bench',
    keyrings: ['bench'],
    openRoots: async () => [await openRootKey('env:KEYTURN_ROOT_KEY', { cluster, env: environment() })],
    onTrouble: (error) => {
      throw error;
    },
  });
  return {
    url,
    rootKey,
    pool,
    control,
    database,
    membership,
    environment,
    async close() {
      await membership.close();
      await database.close();
      await control.close();
      await pool.end();
      await admin.query(`DROP DATABASE ${name} WITH (FORCE)`);
      await admin.end();
      await server.stop();
    },
  };
}

/** Appends rows `from`..`upto` with envelopes of random plaintexts, of `bytes` each, under the active key. */
export async function fill(
  bench: Bench,
  table: string,
  from: number,
  upto: number,
  bytes = plaintextBytes,
): Promise<void> {
  const target = (await listTargets(bench.database)).find((candidate) => targetTitle(candidate) === `public.${table}`);
  if (target === undefined) throw new Error(`no target ${table}`);
  const keyring = bench.membership.current('bench');
  const builder = createCellBuilder(target, keyring.cluster);
  const chunk = 5_000;
  for (let start = from; start <= upto; start += chunk) {
    const ids = Array.from({ length: Math.min(chunk, upto - start + 1) }, (_, at) => start + at);
    const values = ids.map((id) => encrypt(keyring, builder.cellsOf([String(id)], null)(0), randomBytes(bytes)));
    await bench.pool.query(`INSERT INTO ${table} SELECT * FROM unnest($1::bigint[], $2::bytea[])`, [ids, values]);
  }
}

/** A new active key that this process holds. */
export async function rotate(bench: Bench): Promise<void> {
  const { key } = await stageKey(bench.control.context, undefined, 'bench');
  await settleMember(bench);
  const activated = activate(bench.control.context, undefined, String(key.id), 'bench');
  await settleMember(bench);
  await activated;
}

/** The member's own refresh comes every 5 s; the convergence it is asked for is waited for by `activate`. */
async function settleMember(bench: Bench): Promise<void> {
  await bench.membership.refresh('bench');
}

/** What the ledger says of some batches: milliseconds of three parts, which overlap. */
export interface Parts {
  readonly readMs: number;
  readonly cryptoMs: number;
  readonly writeMs: number;
  readonly rows: number;
  readonly slices: number;
}

/** With milliseconds of wall time and of this process's processor time. */
export interface Moved extends Parts {
  readonly milliseconds: number;
  readonly cpuMs: number;
}

export async function sumLedger(bench: Bench, batchIds: readonly string[]): Promise<Parts> {
  const { rows } = await bench.pool.query<{
    read: number;
    crypto: number;
    write: number;
    rows: string;
    slices: string;
  }>(
    'SELECT sum(read_ms) AS read, sum(crypto_ms) AS crypto, sum(write_ms) AS write, sum(rows_updated) AS rows, count(*) AS slices FROM keyturn.ledger WHERE batch_id = ANY ($1)',
    [batchIds],
  );
  const sums = rows[0];
  return {
    readMs: sums?.read ?? 0,
    cryptoMs: sums?.crypto ?? 0,
    writeMs: sums?.write ?? 0,
    rows: Number(sums?.rows),
    slices: Number(sums?.slices),
  };
}

/** Where the time of a row goes. */
export function describeParts(parts: Parts): string {
  const perRow = microsecondsPerRow(parts);
  return `overlapping, per row: read ${perRow(parts.readMs)}, crypto ${perRow(parts.cryptoMs)}, write ${perRow(parts.writeMs)} µs; ${Math.round(parts.rows / parts.slices)} rows per slice`;
}

export function describeMoved(moved: Moved): string {
  const perRow = microsecondsPerRow(moved);
  return `wall ${perRow(moved.milliseconds)} µs per row, processor of this process ${perRow(moved.cpuMs)}; ${describeParts(moved)}`;
}

function microsecondsPerRow({ rows }: Pick<Parts, 'rows'>): (milliseconds: number) => string {
  return (milliseconds) => ((milliseconds * 1_000) / rows).toFixed(1);
}

/** Moves a whole table as one batch in this process, without a queue; answers milliseconds and slices. */
export async function reencryptTable(bench: Bench, table: string): Promise<Moved> {
  const { database } = bench;
  const run = await orderRun(bench.control.context, {
    kind: 'reencrypt',
    keyring: undefined,
    target: `public.${table}`,
    scope: undefined,
    deep: false,
    reason: 'bench',
  });
  await database.transaction((client) => moveRunIfState(client, run, { to: 'running', pass: 1 }));
  const running = await getRun(database, run.id);
  await insertBatch(database, { runId: run.id, pass: 1, targetId: running.targetId ?? '', kind: 'reencrypt' });
  const [batch] = await dispatchDue(database, 1);
  if (batch === undefined) throw new Error('nothing was dispatched');
  const services = {
    database,
    keyrings: bench.membership,
    memberId: bench.membership.id,
    reachPoint: passPoint,
  };
  const startedAt = performance.now();
  const cpuFrom = process.cpuUsage();
  const worked = await workBatch(
    services,
    { batchId: batch.id, generation: batch.generation },
    new AbortController().signal,
  );
  const milliseconds = performance.now() - startedAt;
  const cpu = process.cpuUsage(cpuFrom);
  if (worked.end !== 'done') throw new Error(`the batch ended as ${worked.end}`);
  const parts = await sumLedger(bench, [String(batch.id)]);
  await database.transaction(async (client) =>
    moveRunIfState(client, await getRun(client, run.id), { to: 'cancelling' }),
  );
  return { ...parts, milliseconds, cpuMs: (cpu.user + cpu.system) / 1_000 };
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}
