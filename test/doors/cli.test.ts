// The command line against a real database, as an operator meets it from the first command on. Nobody runs here: what
// needs workers is in the files beside.
import { constants, getPriority } from 'node:os';
import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { generateX25519Identity, identityToRecipient } from 'age-encryption';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openControl } from '../../src/app.js';
import { knownCommands, runCapturedWith } from '../cli/captured.js';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { customerTable, shopConfig } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';

// Each command is a process of its own.
vi.setConfig({ testTimeout: 120_000 });

describe('a new database', () => {
  let database: TestDatabase;
  let keyturn: KeyturnProcess;
  const rootKey = randomBytes(32).toString('hex');

  beforeAll(async () => {
    database = await createTestDatabase();
    const environment = () => ({ DATABASE_URL: database.url, KEYTURN_ROOT_KEY: rootKey });
    keyturn = openKeyturnProcess({ environment }, shopConfig);
  });
  afterAll(async () => {
    keyturn.remove();
    await database.drop();
  });
  const image = () =>
    imageOf(
      {
        query: async (text, parameters) =>
          (await database.pool.query(text, parameters)).rows as Record<string, unknown>[],
      },
      'keyturn',
    );

  test('before init, status exits 4 and names init', async () => {
    const { code, stdout, stderr } = await keyturn.run('status');
    expect({ code, stdout }).toEqual({ code: 4, stdout: '' });
    expect(stderr).toMatch(/run: keyturn init/);
  });

  test('doctor exits 4 for a table that cannot be handled, with a reason and a remedy, and init registers nothing of it', async () => {
    await database.pool.query(customerTable.replace('PRIMARY KEY', ''));
    const doctor = await keyturn.run('doctor');
    expect(doctor.code).toBe(4);
    expect(doctor.stdout).toMatch(/refused[^]*public\.customer: it has no primary key[^]*remedy: ALTER TABLE/);
    expect((await keyturn.run('init')).code).toBe(4);
    await database.pool.query('ALTER TABLE customer ADD PRIMARY KEY (id)');
    expect((await database.pool.query('SELECT 1 FROM keyturn.target')).rows).toEqual([]);
  });

  test('a second init changes nothing and says so', async () => {
    const first = await keyturn.run('init');
    expect(first.code).toBe(0);
    expect(first.stdout).toMatch(/public\.customer .*registered/);
    const before = await image();
    const second = await keyturn.run('init');
    expect(second.code).toBe(0);
    expect(second.stdout).toMatch(/nothing was changed$/);
    expect(await image()).toEqual(before);
  });

  test('doctor is content afterwards, and status ends with the next command', async () => {
    expect(await keyturn.run('doctor')).toMatchObject({ code: 0, stderr: '' });
    const { code, stdout } = await keyturn.run('status');
    expect(code).toBe(0);
    expect(stdout).toMatch(/keyring customers[^]*active +customers v1[^]*\nnext: nothing to do$/);
  });

  test('a wrong root key ends init, staging and rotating with MasterKeyMismatch, both fingerprints, exit 8, and not one write', async () => {
    const before = await image();
    const wrong = { KEYTURN_ROOT_KEY: randomBytes(32).toString('hex') };
    for (const command of [
      ['init'],
      ['key', 'stage'],
      ['key', 'rotate', '--reencrypt', '--local', '1'],
      ['reencrypt', '--local', '1'],
    ]) {
      const { code, stdout, stderr } = await keyturn.runWith(wrong, ...command);
      expect({ command, code, stdout }).toEqual({ command, code: 8, stdout: '' });
      expect(stderr).toMatch(/MasterKeyMismatch: .*root key [0-9a-f]{16}, .*given root key is [0-9a-f]{16};/);
    }
    expect(await image()).toEqual(before);
  });

  test('init --print-sql prints all statements without a database', async () => {
    const { code, stdout } = await keyturn.runWith({ DATABASE_URL: '' }, 'init', '--print-sql');
    expect(code).toBe(0);
    expect(stdout).toMatch(/^-- Keyturn: [^]*\n\nCREATE SCHEMA IF NOT EXISTS keyturn;/);
    expect(stdout).toMatch(/CREATE TABLE keyturn\.data_key /);
    expect(stdout).toMatch(/bullmq/);
  });

  test('SIGTERM ends a supervisor, and a worker that still waits for its first one, with exit 143', async () => {
    const log = { LOG_LEVEL: 'info' };
    const worker = keyturn.start(['worker'], log);
    await until(async () => worker.stderr().includes('waiting for a first supervisor'), {
      what: 'the worker to wait',
      deadlineMs: 30_000,
    });
    // On a machine that it shares it takes what application and database leave.
    expect(getPriority(worker.pid)).toBe(constants.priority.PRIORITY_BELOW_NORMAL);
    worker.kill('SIGTERM');
    expect(await worker.waitForExit(20_000)).toEqual({ code: 143, signal: null });
    const supervisor = keyturn.start(['supervisor'], log);
    await until(async () => supervisor.stderr().includes('supervisor leads'), {
      what: 'the supervisor to lead',
      deadlineMs: 30_000,
    });
    supervisor.kill('SIGTERM');
    expect(await supervisor.waitForExit(20_000)).toEqual({ code: 143, signal: null });
    expect([...worker.lines, ...supervisor.lines]).toEqual([]);
  });

  test('a log level that does not exist is a configuration error, not a crash', async () => {
    expect(await keyturn.runWith({ LOG_LEVEL: 'verbose' }, 'worker')).toEqual({
      code: 2,
      stdout: '',
      stderr: 'keyturn: LOG_LEVEL is none of trace, debug, info, warn, error, fatal, silent\n',
    });
  });

  test('a config that is not there exits 2 and says where it was looked for', async () => {
    const { code, stderr } = await keyturn.run('--config', 'elsewhere.yaml', 'init');
    expect(code).toBe(2);
    expect(stderr).toMatch(/no readable config at .*elsewhere\.yaml/);
  });

  test('I7 a database that is away exits 7 without a word of the connection string', async () => {
    const { code, stderr } = await keyturn.runWith(
      { DATABASE_URL: 'postgres://shop:hunter2@127.0.0.1:1/shop' },
      'status',
    );
    expect(code).toBe(7);
    expect(stderr).toMatch(/no connection to the database/);
    expect(stderr).not.toMatch(/hunter2|127\.0\.0\.1/);
  });
});

describe('--json', () => {
  let database: TestDatabase;
  let keyturn: KeyturnProcess;
  const rootKey = randomBytes(32).toString('hex');
  const environment = () => ({ DATABASE_URL: database.url, KEYTURN_ROOT_KEY: rootKey });

  beforeAll(async () => {
    database = await createTestDatabase();
    await database.pool.query(customerTable);
    keyturn = openKeyturnProcess({ environment }, shopConfig);
  });
  afterAll(async () => {
    keyturn.remove();
    await database.drop();
  });

  test('every reporting command prints exactly one JSON object, with the names every door uses', {
    timeout: 120_000,
  }, async () => {
    const told: string[] = [];
    async function tell(command: string, ...args: string[]): Promise<Record<string, unknown>> {
      const { code, stdout } = await runCapturedWith(
        { openControl, environment: { ...environment(), KEYTURN_CONFIG: keyturn.config } },
        ...command.split(' '),
        ...args,
        '--json',
      );
      const object: unknown = JSON.parse(stdout);
      expect({ command, code, object }).toEqual({ command, code: 0, object: expect.any(Object) as unknown });
      expect(stdout.split('\n')).toEqual([expect.stringMatching(/^\{.*\}$/), '']);
      told.push(command);
      return object as Record<string, unknown>;
    }

    expect(await tell('init')).toMatchObject({
      keyrings: [{ name: 'customers', is_new: true }],
      targets: [{ change: 'registered' }],
    });
    expect(await tell('doctor')).toHaveProperty('findings');
    expect(await tell('key stage')).toMatchObject({
      is_new: false,
      key: { version: 2, state: 'staged', retired_at: null },
    });
    expect(await tell('key activate')).toMatchObject({ key: { version: 2, state: 'active' } });
    expect(await tell('key rotate', '--if-older-than', '80d')).toMatchObject({ is_new: false, key: { version: 2 } });
    expect(await tell('key retire', 'v1')).toMatchObject({ key: { state: 'retired' }, proof: { unregistered: {} } });
    expect(await tell('key destroy', 'v1', '--reason', 'over')).toMatchObject({
      key: { state: 'pending_destruction' },
      destruction: { request: 1, is_due: false, hash: expect.stringMatching(/^[0-9a-f]{64}$/) as string },
    });
    expect(await tell('key destroy', 'v1', '--cancel')).toMatchObject({ key: { state: 'retired' } });
    expect(await tell('key restore', 'v1')).toMatchObject({ key: { state: 'decrypt_only' } });
    expect(await tell('key list')).toMatchObject({
      keyrings: [{ keyring: 'customers', keys: [{ version: 1 }, { version: 2 }, { version: 3, state: 'staged' }] }],
    });
    expect(await tell('root status')).toMatchObject({
      roots: [{ id: 1, state: 'current', data_keys: 4 }],
      change: null,
    });
    for (const verb of ['prepare', 'rotate'])
      expect(await tell(`root ${verb}`, '--to', 'env:KEYTURN_ROOT_KEY')).toMatchObject({ outcome: 'unchanged' });
    for (const verb of ['finalize', 'rollback'])
      expect(await tell(`root ${verb}`)).toMatchObject({ outcome: 'unchanged', root: { id: 1 } });
    expect(await tell('target list')).toMatchObject({ targets: [{ table: 'public.customer', scope: 'tenant_id' }] });
    expect(await tell('target census')).toEqual({ census: [] });
    const ordered = await tell('reencrypt', '--reason', 'quarterly');
    expect(ordered).toMatchObject({
      begin: 'ordered',
      run_id: 1,
      state: 'pending',
      reason: 'quarterly',
      target_key_id: 2,
      rows_examined: 0,
      failures: [],
    });
    for (const counter of [
      'rows_updated',
      'rows_skipped_all_on_target',
      'rows_conflicted',
      'rows_failed',
      'fields_reencrypted',
      'fields_skipped_on_target',
    ]) {
      expect(ordered).toHaveProperty(counter, 0);
    }
    expect(await tell('verify', '--no-wait')).toMatchObject({ run_id: 2, kind: 'verify' });
    expect(await tell('verify', '--sql')).toMatchObject({ statements: [{ target: 'public.customer' }, {}, {}, {}] });
    expect(await tell('run show', '1')).toMatchObject({ run_id: 1 });
    expect(await tell('run pause', '1')).toMatchObject({ state: 'pausing' });
    // Stands for a supervisor that settles the pause.
    await database.pool.query(`UPDATE keyturn.run SET state = 'paused' WHERE id = 1`);
    expect(await tell('run resume', '1')).toMatchObject({ state: 'pending' });
    expect(await tell('run cancel', '2')).toMatchObject({ state: 'cancelling' });
    expect(await tell('run limit', '1', '--workers', '2')).toMatchObject({ limits: { workers: 2 } });
    await database.pool.query(
      `UPDATE keyturn.run SET state = 'cancelled', finished_at = clock_timestamp() WHERE id = 2`,
    );
    expect(await tell('run retry', '2')).toMatchObject({ run_id: 3, kind: 'verify', retries: 2 });
    expect(await tell('run list')).toMatchObject({ runs: [{ run_id: 3 }, { run_id: 2 }, { run_id: 1 }] });
    await database.pool.query(
      `UPDATE keyturn.run SET state = 'succeeded', finished_at = clock_timestamp(), verified_at = clock_timestamp() WHERE id = 1`,
    );
    expect(await tell('run watch', '1')).toMatchObject({ run_id: 1, state: 'succeeded' });
    expect(await tell('key lazy', 'off', '--reason', 'busy')).toMatchObject({ lazy_upgrades: 'off', sample: 1 });
    expect(await tell('target discover')).toMatchObject({ discoveries: [], unread: [] });
    expect(await tell('status')).toMatchObject({
      keyrings: [{ active_key: 'customers v2 (id 2)' }],
      next: 'keyturn key retire 1 --keyring customers',
    });
    expect(await tell('key compromise', 'v1', '--reason', 'leaked')).toMatchObject({
      key: { state: 'retired', compromised: true },
      active: { version: 2 },
      run: { run_id: 1 },
    });
    expect(await tell('audit list', '--object', 'key 2', '--limit', '1')).toMatchObject({
      records: [{ action: 'key.activate', object: 'key 2', before: { state: 'staged' } }],
    });
    expect(await tell('audit verify')).toMatchObject({ intact: true, damage: null });
    const identity = await generateX25519Identity();
    const [backup, identityFile] = ['keys.age', 'identity'].map((name) => join(dirname(keyturn.config), name));
    writeFileSync(String(identityFile), identity, { mode: 0o600 });
    const opened = ['--input', String(backup), '--identity', String(identityFile)];
    const recipient = await identityToRecipient(identity);
    expect(await tell('backup create', '--output', String(backup), '--recipient', recipient)).toMatchObject({
      locked_by: 'recipients',
      unopened_keys: [],
    });
    expect(await tell('backup inspect', ...opened)).toMatchObject({ targets: ['public.customer'] });
    expect(await tell('backup verify', ...opened)).toMatchObject({
      missing_keys: [],
      failures: [],
    });
    expect(await tell('backup restore', ...opened)).toMatchObject({ applied: false, keys_added: [] });
    await database.pool.query(
      `INSERT INTO keyturn.batch (run_id, pass, target_id, kind) SELECT 1, 1, id, 'reencrypt' FROM keyturn.target`,
    );
    await database.pool.query(`INSERT INTO keyturn.quarantine (run_id, batch_id, target_id, column_id, row_key, key_id, cause)
      SELECT 1, b.id, c.target_id, c.id, '{7}', 1, 'MALFORMED' FROM keyturn.batch b, keyturn.target_column c WHERE c.name IN ('email', 'phone')`);
    expect(await tell('quarantine list', '--run', '1')).toMatchObject({
      cells: 2,
      rows: [{ primary_key: { id: '7' }, cause: 'MALFORMED' }, {}],
    });
    expect(await tell('quarantine retry', '--cause', 'MALFORMED')).toMatchObject({
      begin: 'ordered',
      state: 'pending',
    });
    expect(await tell('quarantine resolve', '--target', 'customer', '--reason', 'gone')).toEqual({ cells: 2 });
    await database.pool.query(`INSERT INTO keyturn.expected_member VALUES ('shop')`);
    expect(await tell('member list')).toEqual({ members: [], missing: ['shop'] });
    expect(await tell('member forget', 'shop')).toEqual({ forgotten: [], no_longer_expected: true, if_alive: [] });
    expect(await tell('schedule set')).toMatchObject({ schedule: { keyring: 'customers', gradual_days: 30 } });
    expect(await tell('schedule list')).toMatchObject({ schedules: [{ cron: '0 3 1 */3 *' }] });
    expect(await tell('schedule remove')).toEqual({ keyring: 'customers', cancelled: null });
    expect(await tell('rebind', '--target', 'customer', '--was-scope', 'former', '--dry-run')).toMatchObject({
      is_dry_run: true,
      rows_examined: 0,
    });
    expect(
      await tell('adopt', '--target', 'customer', '--column', 'email', '--from', 'plaintext', '--prepare'),
    ).toMatchObject({ move: 'adopting', is_new: true });
    await database.pool.query('ALTER TABLE customer RENAME TO client');
    expect(await tell('target rename', 'customer', 'client')).toMatchObject({ target: { table: 'public.client' } });

    const reporting = knownCommands().filter(
      (command) => command.options.includes('--json') && command.path !== 'demo',
    );
    expect([...new Set(told)].toSorted()).toEqual(reporting.map((command) => command.path).toSorted());
  });

  test('a failure is one JSON object as well, beside the sentence on stderr', async () => {
    const { code, object, stderr } = await keyturn.json('run', 'show', '999');
    expect(code).toBe(3);
    expect(object).toEqual({
      error: {
        code: 'RUN_NOT_FOUND',
        kind: 'missing',
        message: 'there is no run 999; see: keyturn run list',
        details: { run: 999 },
      },
    });
    expect(stderr).toBe('keyturn: there is no run 999; see: keyturn run list\n');
  });

  test('doctor with a refusal reports once and exits 4', async () => {
    await database.pool.query('CREATE UNIQUE INDEX envelopes ON client (email)');
    const { code, object } = await keyturn.json('doctor');
    expect(code).toBe(4);
    expect(object['findings']).toContainEqual(expect.objectContaining({ level: 'refuse', check: 'unique index' }));
  });
});
