// A shop whose columns hold foreign formats, with an application, a supervisor and a worker that know the secrets.
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { DataSource, type DataSourceOptions } from 'typeorm';
import { expect } from 'vitest';
import { openKeyturn, type Keyturn } from '../../src/app.js';
import { startSupervisorProcess, startWorker } from '../../src/app-runners.js';
import { beginMove, finalizeMove, type MoveRequest } from '../../src/control/adopt.js';
import type { ControlContext } from '../../src/control/context.js';
import type { RunReport } from '../../src/control/runs.js';
import type { ConfigFile } from '../../src/config.js';
import { foreignFormatByName } from '../../src/formats/registry.js';
import { installKeyturn } from '../../src/orm/index.js';
import { openShop, type Shop } from './shop.js';

const modulePath = join(import.meta.dirname, 'formats/rot47.mjs');
export const secrets = { OLD_SECRET: randomBytes(32).toString('hex'), OLD_PASSPHRASE: 'correct horse battery staple' };
const target = (table: string, columns: string[]): NonNullable<ConfigFile['targets']>[number] => ({
  table,
  keyring: 'people',
  columns: Object.fromEntries(columns.map((column) => [column, {}])),
});
const config: ConfigFile = {
  keyrings: { people: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [
    target('person', ['plain']),
    target('diary', ['note']),
    {
      ...target('account', ['cbc', 'gcm', 'pgp', 'bare', 'own']),
      columns: { cbc: {}, gcm: {}, pgp: {}, bare: {}, own: {}, papers: { paths: { passport: ['passport'] } } },
    },
    target('badge', ['short', 'wide']),
  ],
};
const ddl = [
  'CREATE EXTENSION pgcrypto',
  'CREATE TABLE diary (id bigint PRIMARY KEY, note bytea)',
  `CREATE TABLE account (id bigint PRIMARY KEY, cbc varchar(400), gcm text, pgp bytea, bare bytea, own text, papers jsonb)`,
  'CREATE TABLE badge (id bigint PRIMARY KEY, short varchar(90), wide bytea)',
];
export const rows = 60;
const ids = Array.from({ length: rows }, (_, at) => at + 1);
export const valueOf = (id: number): string => (id % 9 === 0 ? '' : `value ${id} ü`);
export const everyValue = ids.map(valueOf);

/** The plaintexts are there before Keyturn is. */
const personDdl = [
  'CREATE TABLE person (id bigint PRIMARY KEY, plain text)',
  `INSERT INTO person VALUES ${ids.map((id) => `(${id}, '${valueOf(id)}')`).join(', ')}`,
];

export interface MovingShop {
  readonly shop: Shop;
  readonly context: ControlContext;
  readonly app: Keyturn;
  /** The application as it is after a restart: a member and a data source of its own while `work` goes on. */
  restarted<T>(entities: DataSourceOptions['entities'], work: (dataSource: DataSource) => Promise<T>): Promise<T>;
  /** Runs to the end. */
  move(wanted: MoveRequest, kind?: 'reencrypt' | 'dry_run'): Promise<RunReport>;
  finalize(place: string): ReturnType<typeof finalizeMove>;
  /** What the application reads, in the order of ids. */
  readAll(place: string, expression?: string): Promise<string[]>;
  close(): Promise<void>;
}

export async function openMovingShop(): Promise<MovingShop> {
  const shop = await openShop({ config, ddl: [...ddl, ...personDdl] });
  const environment = (): Record<string, string> => ({
    ...shop.environment(),
    ...secrets,
    KEYTURN_FORMATS: modulePath,
  });
  const context = { ...shop.control.context, patienceMs: 20_000 };
  const app = await openKeyturn({ config, environment: environment(), name: 'application' });
  const running = [
    await startSupervisorProcess({ environment: environment(), name: 'supervisor' }),
    await startWorker({ environment: environment(), name: 'worker' }),
  ];
  await fill(shop);
  return {
    shop,
    context,
    app,
    async restarted(entities, work) {
      const again = await openKeyturn({ config, environment: environment(), name: 'restarted' });
      const dataSource = new DataSource({ type: 'postgres', url: shop.url, entities: entities ?? [] });
      try {
        await dataSource.initialize();
        await installKeyturn(dataSource, again);
        return await work(dataSource);
      } finally {
        await again.close();
        if (dataSource.isInitialized) await dataSource.destroy();
      }
    },
    async move(wanted, kind = 'reencrypt') {
      const { report } = await beginMove(context, { ...wanted, kind }, nobody);
      return shop.waitForRun(report.run_id);
    },
    finalize: (place) => finalizeMove(context, { ...nameOf(place), reason: 'test' }),
    async readAll(place, expression) {
      const { target: table, column: name } = nameOf(place);
      const found = await shop.query(
        `SELECT id::int, ${expression ?? `"${name}"`} AS stored FROM ${table} ORDER BY id`,
      );
      const column = app.column(table, name);
      return Promise.all(
        found.map(async ({ id, stored }) =>
          (await column.decrypt({ pk: Number(id) }, stored as string | Buffer)).plaintext.toString(),
        ),
      );
    },
    async close() {
      await app.close();
      for (const process of running) await process.stop();
      await shop.close();
    },
  };
}

const nobody = { require: async () => undefined, start: async () => undefined };

async function fill(shop: Shop): Promise<void> {
  const stored = (name: string, storage: 'text' | 'bytes'): (string | Buffer)[] => {
    const format = foreignFormatByName(name);
    const key = format?.readKey(Buffer.from(secrets.OLD_SECRET));
    if (format === undefined || key === undefined) throw new Error(`no format ${name}`);
    return everyValue.map((value) => format.encrypt(Buffer.from(value), key, storage));
  };
  await shop.query(
    `INSERT INTO account (id, cbc, gcm, pgp, bare, own, papers)
     SELECT id, cbc, gcm, pgp_sym_encrypt(v, $6), bare, own, jsonb_build_object('passport', v, 'kept', id)
     FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bytea[], $7::text[]) AS u(id, v, cbc, gcm, bare, own)`,
    [
      ids,
      everyValue,
      stored('typeorm-encrypted-cbc', 'text'),
      stored('typeorm-encrypted-gcm', 'text'),
      stored('aes-gcm-bytes', 'bytes'),
      secrets.OLD_PASSPHRASE,
      stored('rot47', 'text'),
    ],
  );
}

/** `place`: `table.column`, or `table.column.path`. */
export function request(
  place: string,
  format: string,
  secretUri?: string,
  move: MoveRequest['move'] = 'adopting',
): MoveRequest {
  return { ...nameOf(place), move, format, secretUri, reason: 'test' };
}

export function nameOf(place: string): { target: string; column: string } {
  const [table = '', ...column] = place.split('.');
  return { target: table, column: column.join('.') };
}

export const refusal = (code: string, words: RegExp = /./): unknown =>
  expect.objectContaining({ code, message: expect.stringMatching(words) as unknown });
