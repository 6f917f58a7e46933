// I7 shown by search: marker root keys, data keys, passwords and plaintexts, and the envelopes themselves, are looked for in
// everything that a shop in trouble leaves behind, in every form that a careless print gives to bytes. Envelopes may stand in
// the log of a PostgreSQL that logs parameters, which `doctor` warns of; nothing else may stand anywhere.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import pg from 'pg';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openKeyturn } from '../../src/app.js';
import { Secret } from '../../src/crypto/secret.js';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import { KeyturnError } from '../../src/errors.js';
import { openQueue } from '../../src/queue/connection.js';
import { batchQueueName, openBatchQueue } from '../../src/queue/jobs.js';
import { openDatabase } from '../../src/store/database.js';
import { migrate } from '../../src/store/schema.js';
import { availableBackends } from '../support/backends.js';
import { queueAddressOfShop } from '../support/branches.js';
import { openBareWorker } from '../support/by-hand.js';
import {
  argumentsOf,
  envelopeCanaries,
  findCanaries,
  keyCanaries,
  outputOf,
  printsOf,
  tablesOf,
  textCanary,
  type Canary,
  type Finding,
} from '../support/canaries.js';
import { startChild, startNode, type Child } from '../support/child.js';
import { watchRedis } from '../support/redis-witness.js';
import { startPrivateRedis } from '../support/redis.js';
import { customerTable, openShop, shopConfig, type Backend, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

vi.setConfig({ testTimeout: 240_000, hookTimeout: 120_000 });

const deadlineMs = 60_000;
const customers = 12;
const workers = join(import.meta.dirname, '..', '..', 'dist', 'workers');

/** A server that logs all it can. */
const talkative = {
  log_statement: 'all',
  log_min_duration_statement: '0',
  log_parameter_max_length: '-1',
  log_parameter_max_length_on_error: '-1',
  log_error_verbosity: 'verbose',
  log_connections: 'on',
};

let server: EmbeddedPostgres;
let folder: string;

beforeAll(async () => {
  server = await startEmbeddedPostgres({ settings: talkative });
  folder = mkdtempSync(join(tmpdir(), 'keyturn-canaries-'));
});

afterAll(async () => {
  await server.stop();
  rmSync(folder, { recursive: true });
});

function serverLog(): Finding {
  return { place: 'log of PostgreSQL', text: readFileSync(server.logFile, 'latin1') };
}

/** Rows that the database refuses to take back, each with another kind of error that carries the row or the value. */
const refusals = [
  `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
   DECLARE short varchar(5);
   BEGIN
     IF NEW.id = 7 THEN RAISE EXCEPTION 'not this value: %', NEW.email; END IF;
     IF NEW.id = 8 THEN short := NEW.email; END IF;
     IF NEW.id = 9 THEN RAISE EXCEPTION 'not this row' USING ERRCODE = 'check_violation', DETAIL = NEW::text, HINT = NEW.email; END IF;
     RETURN NEW;
   END $$`,
  'CREATE TRIGGER refuse BEFORE UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION refuse()',
  'ALTER TABLE customer ADD CONSTRAINT refuse_six CHECK (id <> 6 OR version < 0) NOT VALID',
  `CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$
   BEGIN
     RAISE EXCEPTION 'not allowed: %', NEW.email USING ERRCODE = 'insufficient_privilege';
   END $$`,
  'CREATE TRIGGER forbid BEFORE UPDATE ON customer FOR EACH ROW WHEN (NEW.id = 10) EXECUTE FUNCTION forbid()',
];

async function openLeakyShop(
  backend: Backend,
  onTestFinished: (release: () => Promise<void>) => void,
): Promise<{ shop: Shop; redisFindings: () => Promise<readonly Finding[]> }> {
  const redis = backend === 'redis' ? await startPrivateRedis() : undefined;
  if (backend === 'redis' && redis === undefined) throw new Error('a Redis to watch needs redis-server on PATH');
  const witness = redis === undefined ? undefined : await watchRedis(redis.url);
  const shop = await openShop({
    backend,
    adminUrl: server.url,
    ddl: [customerTable],
    ...(redis === undefined ? {} : { redisUrl: redis.url }),
  });
  onTestFinished(async () => {
    witness?.close();
    await shop.close();
    await redis?.stop();
  });
  return { shop, redisFindings: async () => (await witness?.findings()) ?? [] };
}

/** Stored where an envelope should be, by a session that the server does not log. */
async function storePlaintext(shop: Shop, id: number, plaintext: string): Promise<void> {
  const quiet = new pg.Client({
    connectionString: shop.url,
    options: '-c log_statement=none -c log_min_duration_statement=-1',
  });
  await quiet.connect();
  await quiet.query('UPDATE customer SET email = $2 WHERE id = $1', [id, plaintext]);
  await quiet.end();
}

async function rootCanaries(shop: Shop): Promise<readonly Canary[]> {
  const member = await openBareWorker(shop);
  const { held } = member.services.keyrings.current('customers');
  await member.close();
  expect(held).toHaveLength(3);
  return [
    ...keyCanaries('the root key', Buffer.from(shop.rootKey, 'hex')),
    ...held.flatMap((key) => keyCanaries(`data key ${key.id}`, key.material.export())),
  ];
}

async function storedEnvelopes(shop: Shop): Promise<readonly Canary[]> {
  const rows = await shop.query(`SELECT email, phone, profile ->> 'ssn' AS ssn FROM customer WHERE email LIKE 'kt1.%'`);
  return rows.flatMap((row) =>
    Object.entries(row).flatMap(([column, stored]) =>
      envelopeCanaries(`envelope of ${column}`, stored as string | Buffer),
    ),
  );
}

interface Provocation {
  readonly place: string;
  act(): Promise<unknown>;
}

/** Mistakes of operators, and statements that fail with values in flight. */
function provocations(
  shop: Shop,
  secrets: { password: string; wrongRoot: string; value: string },
): readonly Provocation[] {
  const withPassword = new URL(shop.url);
  withPassword.password = secrets.password;
  const wrongUrl = new Secret(withPassword.href);
  const openWith = (rootKey: string) => () =>
    openKeyturn({ config: shopConfig, environment: { ...shop.environment(), KEYTURN_ROOT_KEY: rootKey } });
  const unreachable = {
    backend: 'redis',
    url: new Secret(`redis://:${secrets.password}@127.0.0.1:1`),
    prefix: 'nowhere',
  } as const;
  const statements = [
    'INSERT INTO narrow VALUES ($1)',
    'SELECT $1::int',
    'INSERT INTO customer (id, tenant_id) VALUES (1, $1)',
    ...[6, 7, 8, 9].map((id) => `UPDATE customer SET email = $1 WHERE id = ${id}`),
  ];
  return [
    { place: 'the wrong root key', act: openWith(secrets.wrongRoot) },
    { place: 'half a root key', act: openWith(shop.rootKey.slice(0, 62)) },
    { place: 'a root key with a typing error', act: openWith(`${shop.rootKey.slice(0, 63)}g`) },
    {
      place: 'the wrong database password',
      act: () => openDatabase({ url: wrongUrl, maxConnections: 1, applicationName: 'test' }).query('SELECT 1'),
    },
    { place: 'a migration with the wrong password', act: () => migrate(wrongUrl) },
    {
      place: 'an unreachable queue',
      async act() {
        const queue = openBatchQueue(unreachable);
        await queue.send([{ batchId: 1, generation: 1 }]).finally(() => queue.close().catch(() => undefined));
      },
    },
    ...statements.map((statement) => failing(shop, statement, secrets.value)),
  ];
}

/** A statement that the database refuses with a value in flight. */
function failing(shop: Shop, statement: string, value: string): Provocation {
  return { place: statement, act: () => shop.control.context.database.query(statement, [value]) };
}

async function errorsOf(acts: readonly Provocation[]): Promise<readonly Finding[]> {
  const findings: Finding[] = [];
  for (const { place, act } of acts) {
    const error = await act().then(
      () => expect.fail(`${place} went well`),
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(KeyturnError);
    findings.push(printsOf(place, error));
  }
  return findings;
}

async function waitForLog(child: Child, message: string): Promise<void> {
  await until(async () => child.stderr().includes(`"msg":"${message}"`), {
    what: `pid ${child.pid} to log "${message}"`,
    deadlineMs,
  });
}

describe.concurrent.each(availableBackends())('leaking over the %s queue', (backend) => {
  test(`I7 no key, password or plaintext is printed, queued, recorded or logged anywhere, and no envelope outside the application's tables and the parameters of PostgreSQL's log [${backend}]`, async ({
    onTestFinished,
  }) => {
    const { shop, redisFindings } = await openLeakyShop(backend, onTestFinished);
    const traced = { env: { ...shop.environment(), LOG_LEVEL: 'trace' }, onlyEnv: true };
    const file = join(folder, backend);
    const application = startChild('confiding', {
      ...traced,
      args: [shopConfig, file, customers].map((argument) => JSON.stringify(argument)),
    });
    await application.waitForLine(/^confided/, deadlineMs);
    const plaintexts = (JSON.parse(readFileSync(file, 'utf8')) as string[]).map((text) =>
      textCanary('a plaintext', text),
    );
    const envelopes = [...(await storedEnvelopes(shop))];
    await storePlaintext(shop, 11, plaintexts[0]?.bytes.toString() ?? '');
    for (const statement of [...refusals, 'CREATE TABLE narrow (value varchar(3))']) await shop.query(statement);

    await shop.rotate();
    const run = await shop.order();
    const supervisor = startNode(join(workers, 'supervisor.js'), traced);
    await waitForLog(supervisor, 'supervisor leads');
    // A worker with a bug that carries a plaintext: what the queue keeps of it is searched below.
    const faulty = await shop.startWorker(async () => {
      throw new Error(plaintexts[1]?.bytes.toString());
    });
    await until(async () => (await shop.query(`SELECT 1 FROM keyturn.batch WHERE state = 'running'`)).length === 1, {
      what: 'the faulty worker to take the batch',
      deadlineMs,
    });
    await faulty.stop();
    // Stands for the passing of the 15 s of its lease.
    await shop.query(`UPDATE keyturn.batch SET lease_until = clock_timestamp() WHERE state = 'running'`);
    const worker = startNode(join(workers, 'reencrypt.js'), traced);
    await waitForLog(worker, 'batch released');
    const secrets = {
      password: randomBytes(18).toString('base64url'),
      wrongRoot: randomBytes(32).toString('hex'),
      value: `CANARY-value-${randomBytes(12).toString('base64url')}`,
    };
    const forbidden = await errorsOf([failing(shop, 'UPDATE customer SET email = $1 WHERE id = 10', secrets.value)]);
    await shop.query('DROP TRIGGER forbid ON customer');
    const errors = [...forbidden, ...(await errorsOf(provocations(shop, secrets)))];
    const report = await shop.waitForRun(run, deadlineMs);
    expect(report).toMatchObject({ state: 'completed_with_failures', rows_updated: customers - 5, rows_failed: 5 });
    expect(new Set(report.failures.map(({ cause }) => cause))).toEqual(
      new Set(['REFUSED_23514', 'REFUSED_P0001', 'REFUSED_22001', 'NOT_AN_ENVELOPE']),
    );

    const processes = [
      { place: 'application', child: application, code: 1 },
      { place: 'supervisor', child: supervisor, code: 143 },
      { place: 'worker', child: worker, code: 143 },
    ];
    const lines = processes.map(({ place, child }) => argumentsOf(place, child));
    for (const { child, code } of processes) {
      child.kill('SIGTERM');
      expect(await child.waitForExit(deadlineMs)).toEqual({ code, signal: null });
    }
    envelopes.push(...(await storedEnvelopes(shop)));
    const never = [
      ...(await rootCanaries(shop)),
      ...keyCanaries('the wrong root key', Buffer.from(secrets.wrongRoot, 'hex')),
      textCanary('the root key in hexadecimal', shop.rootKey),
      textCanary('the wrong password', secrets.password),
      textCanary('the password', new URL(shop.url).password),
      ...plaintexts,
    ];
    const findings = [
      ...processes.map(({ place, child }) => outputOf(place, child)),
      ...lines,
      ...errors,
      ...(await tablesOf(shop, 'keyturn')),
      ...(await tablesOf(shop, 'bullmq')),
      ...(await redisFindings()),
    ];
    expect(findCanaries(findings, [...never, ...envelopes, textCanary('a parameter', secrets.value)])).toEqual([]);
    expect(findCanaries([serverLog()], never)).toEqual([]);
    // The search looks where there is something to find: the server has logged the parameters of the writes.
    expect(findCanaries([serverLog()], envelopes)).not.toEqual([]);
  });

  test(`I7 a leak planted in any of the searched places is found [${backend}]`, async ({ onTestFinished }) => {
    const { shop, redisFindings } = await openLeakyShop(backend, onTestFinished);
    const text = `CANARY-planted-${randomBytes(12).toString('base64url')}`;
    const script = join(folder, `${backend}.mjs`);
    writeFileSync(script, 'console.error(process.argv[2]); setInterval(() => undefined, 1_000);');
    const child = startNode(script, { args: [text] });
    await until(async () => child.stderr() !== '', { what: 'the leaking child to print', deadlineMs });
    await shop.query(`INSERT INTO keyturn.audit (action, object, reason) VALUES ('test', 'test', $1)`, [text]);
    const { queue, close } = openQueue(await queueAddressOfShop(shop), batchQueueName);
    await queue.add(text, {});
    await close();
    const hits = findCanaries(
      [
        argumentsOf('child', child),
        outputOf('child', child),
        printsOf('details', new KeyturnError('DATABASE_ERROR', 'refused', { value: text })),
        printsOf('cause', new Error('outer', { cause: new Error('inner', { cause: Buffer.from(text) }) })),
        serverLog(),
        ...(await tablesOf(shop, 'keyturn')),
        ...(await tablesOf(shop, 'bullmq')),
        ...(await redisFindings()),
      ],
      [textCanary('leak', text)],
    );
    child.kill('SIGKILL');
    await child.waitForExit(deadlineMs);
    expect(hits).toEqual(
      expect.arrayContaining([
        'arguments of child: leak as raw',
        'output of child: leak as raw',
        'error of details: leak as raw',
        'error of cause: leak as hex',
        'log of PostgreSQL: leak as raw',
        'table keyturn.audit: leak as raw',
        ...(backend === 'redis'
          ? ['commands to Redis: leak as raw', 'contents of Redis: leak as raw']
          : ['table bullmq.job: leak as raw']),
      ]),
    );
  });
});

/** Prints of the same secret, none of them made by the code that searches. */
const prints: readonly { readonly how: string; readonly form: string; print(secret: Buffer): string }[] = [
  { how: 'as it is', form: 'raw', print: (secret) => secret.toString('latin1') },
  {
    how: 'as a latin1 string',
    form: 'latin1',
    print: (secret) => Buffer.from(secret.toString('latin1')).toString('latin1'),
  },
  { how: 'backwards', form: 'reversed', print: (secret) => Buffer.from(secret.toReversed()).toString('latin1') },
  { how: 'in capital hex', form: 'hex', print: (secret) => secret.toString('hex').toUpperCase() },
  { how: 'by inspecting the buffer', form: 'hex', print: (secret) => inspect(secret) },
  { how: 'in base64', form: 'base64', print: (secret) => secret.toString('base64') },
  {
    how: 'in base64, inside a text',
    form: 'base64',
    print: (secret) => Buffer.concat([Buffer.from('in front '), secret, Buffer.from(' behind')]).toString('base64'),
  },
  {
    how: 'in base64, inside a text one byte longer',
    form: 'base64',
    print: (secret) => Buffer.concat([Buffer.from('in front: '), secret, Buffer.from('!')]).toString('base64'),
  },
  {
    how: 'in base64, inside a text two bytes longer',
    form: 'base64',
    print: (secret) => Buffer.concat([Buffer.from('in front :'), secret]).toString('base64'),
  },
  {
    how: 'in base64url, inside a text',
    form: 'base64url',
    print: (secret) => Buffer.concat([Buffer.from('in front of'), secret]).toString('base64url'),
  },
  {
    how: 'in a URL',
    form: 'URL-encoded',
    print: (secret) => [...secret].map((byte) => `%${byte.toString(16).toUpperCase().padStart(2, '0')}`).join(''),
  },
  { how: 'as JSON of the buffer', form: 'JSON bytes', print: (secret) => JSON.stringify(secret) },
  {
    how: 'as indented JSON of the bytes',
    form: 'JSON bytes',
    print: (secret) => JSON.stringify({ key: [...secret] }, null, 2),
  },
  { how: 'by inspecting the bytes', form: 'JSON bytes', print: (secret) => inspect([...secret]) },
];

for (const { how, form, print } of prints) {
  test(`I7 the search finds a key printed ${how}, and no other key`, () => {
    const key = randomBytes(16);
    const canaries = [{ name: 'key', bytes: key }];
    expect(findCanaries([{ place: 'here', text: `before ${print(key)} after` }], canaries)).toContain(
      `here: key as ${form}`,
    );
    expect(findCanaries([{ place: 'here', text: `before ${print(randomBytes(16))} after` }], canaries)).toEqual([]);
  });
}
