// Whose fault it is: a cell that cannot be decrypted or written is quarantined with its cause, alone; a key that a worker
// lacks gives the batch back; a retired key, or one cause over whole batches, pauses the run and says what to do.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { init } from '../../src/control/init.js';
import { restore, retire } from '../../src/control/keys.js';
import { showRun, type RunReport } from '../../src/control/runs.js';
import { cancelRun, pauseRun, resumeRun } from '../../src/control/steer-runs.js';
import { availableBackends } from '../support/backends.js';
import { damage } from '../support/damage.js';
import { startDirectRunner } from '../support/direct-run.js';
import { expectedOf, moveAroundPoison } from '../support/poison.js';
import { customer, findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';

function range(from: number, to: number): number[] {
  return Array.from({ length: to - from + 1 }, (_, at) => from + at);
}

async function insertThroughLibrary(shop: Shop, ids: readonly number[]): Promise<void> {
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, ids);
  await keyturn.close();
}

/** The counting identity, in the database: over batches and over the ledger. */
async function expectExactCounts(shop: Shop, report: RunReport): Promise<void> {
  expect(report.fields_examined).toBe(
    report.fields_reencrypted + report.fields_skipped_on_target + report.fields_conflicted + report.fields_failed,
  );
  const [sums] = await shop.query(
    `SELECT sum(b.cells_examined)::int AS batches, (SELECT sum(l.cells_examined)::int FROM keyturn.ledger l JOIN keyturn.batch x ON x.id = l.batch_id WHERE x.run_id = $1 AND x.kind = $2) AS ledger
     FROM keyturn.batch b WHERE b.run_id = $1 AND b.kind = $2`,
    [report.run_id, report.kind],
  );
  expect(sums).toEqual({ batches: report.fields_examined, ledger: report.fields_examined });
}

describe('damaged cells', () => {
  let shop: Shop;
  let before: Map<number, Record<string, unknown>>;
  let report: RunReport;

  /** Row id to the field that is damaged in it, and what the run should say of it. */
  const damages: readonly {
    id: number;
    field: string;
    cause: string;
    key: number | null;
    to: (stored: string, other: string) => string;
  }[] = [
    { id: 1, field: 'email', cause: 'AUTHENTICATION_FAILED', key: 1, to: damage.bitFlipped },
    { id: 2, field: 'email', cause: 'MALFORMED', key: 1, to: damage.cut },
    { id: 3, field: 'email', cause: 'NOT_AN_ENVELOPE', key: null, to: () => 'in clear' },
    { id: 4, field: 'email', cause: 'AUTHENTICATION_FAILED', key: 1, to: (_, other) => other },
    { id: 5, field: 'email', cause: 'UNKNOWN_KEY', key: 99, to: (stored) => damage.namingKey(stored, 99) },
    { id: 6, field: 'email', cause: 'KEY_CHECK_DIFFERS', key: 1, to: damage.otherKeyCheck },
    { id: 7, field: 'email', cause: 'ALGORITHM_DIFFERS', key: 1, to: damage.otherAlgorithm },
    { id: 8, field: 'email', cause: 'KEY_DESTROYED', key: 50, to: (stored) => damage.namingKey(stored, 50) },
    { id: 9, field: 'profile.ssn', cause: 'AUTHENTICATION_FAILED', key: 1, to: damage.bitFlipped },
    { id: 12, field: 'profile.ssn', cause: 'NOT_AN_ENVELOPE', key: null, to: () => '' },
  ];
  const cells = `SELECT id::int, email, encode(phone, 'hex') AS phone, profile #>> '{ssn}' AS "profile.ssn", profile #>> '{bank,iban}' AS "profile.iban" FROM customer ORDER BY id`;
  const cellsById = async (): Promise<Map<number, Record<string, unknown>>> =>
    new Map((await shop.query(cells)).map((row) => [Number(row['id']), row]));

  beforeAll(async () => {
    shop = await openShop();
    await insertThroughLibrary(shop, range(1, 30));
    await shop.query(`INSERT INTO keyturn.data_key (id, keyring_id, scope_id, version, algorithm, state, commitment)
      SELECT 50, id, id, 50, algorithm, 'destroyed', decode(repeat('ab', 32), 'hex') FROM keyturn.keyring`);
    const written = await cellsById();
    for (const { id, field, to } of damages) {
      const damaged = to(String(written.get(id)?.[field]), String(written.get(id + 10)?.[field]));
      await shop.query(
        field === 'email'
          ? 'UPDATE customer SET email = $2 WHERE id = $1'
          : `UPDATE customer SET profile = jsonb_set(profile, '{ssn}', to_jsonb($2::text)) WHERE id = $1`,
        [id, damaged],
      );
    }
    await shop.query(`UPDATE customer SET phone = substring(phone FROM 1 FOR 30) WHERE id = 10`);
    before = await cellsById();
    await shop.rotate();
    const runner = await startDirectRunner(shop);
    report = await runner.finish(await shop.order()).finally(runner.close);
  });

  afterAll(() => shop.close());

  test('are quarantined with cause and key id, and the run completes with failures', async () => {
    expect(report.state).toBe('completed_with_failures');
    const expected = [...damages, { id: 10, field: 'phone', cause: 'MALFORMED', key: 1 }];
    const quarantined = await shop.query(
      `SELECT q.row_key[1]::int AS id, c.name AS field, q.cause, q.key_id::int AS key FROM keyturn.quarantine q JOIN keyturn.target_column c ON c.id = q.column_id ORDER BY 1`,
    );
    expect(quarantined).toEqual(
      expected.map(({ id, field, cause, key }) => ({ id, field, cause, key })).toSorted((a, b) => a.id - b.id),
    );
    expect(report.failures.reduce((sum, failure) => sum + failure.cells, 0)).toBe(expected.length);
    expect(report).toMatchObject({
      rows_examined: 30,
      rows_failed: expected.length,
      rows_updated: 30 - expected.length,
      fields_failed: expected.length,
      fields_conflicted: 0,
      fields_stale: 0,
    });
    await expectExactCounts(shop, report);
  });

  test('stay byte for byte as they were, while every other cell of their rows moves and decrypts', async () => {
    const after = await cellsById();
    const keyturn = await shop.open();
    const damaged = new Set([...damages, { id: 10, field: 'phone' }].map(({ id, field }) => `${id} ${field}`));
    for (const [id, row] of before) {
      for (const [field, value] of Object.entries(row)) {
        if (field === 'id' || value === null) continue;
        const isDamaged = damaged.has(`${id} ${field}`);
        expect({ id, field, isSame: after.get(id)?.[field] === value }).toEqual({ id, field, isSame: isDamaged });
        if (isDamaged) continue;
        const stored = after.get(id)?.[field];
        const decrypted = await keyturn
          .column('customer', field)
          .decrypt(
            { pk: id, scope: customer(id).tenant },
            field === 'phone' ? Buffer.from(String(stored), 'hex') : String(stored),
          );
        expect(decrypted.keyId).toBe(report.target_key_id);
      }
    }
    await keyturn.close();
  });

  test('leave no bytes in quarantine, ledger or record (I7)', async () => {
    const written = JSON.stringify(await imageOf(shop, 'keyturn', ['data_key_wrap', 'root_key', 'data_key']));
    const envelopes = [...before.values()]
      .flatMap((row) => Object.values(row))
      .filter((value) => String(value).length > 40);
    expect(envelopes.length).toBeGreaterThan(80);
    expect(envelopes.filter((value) => written.includes(String(value).slice(-20)))).toEqual([]);
  });

  test('keep their key from being retired, and a second run says the same and rewrites nothing', async () => {
    await expect(retire(shop.control.context, undefined, 'v1', undefined)).rejects.toMatchObject({
      code: 'KEY_IN_USE',
    });
    const rows = await imageOf(shop, 'public');
    const runner = await startDirectRunner(shop);
    const again = await runner.finish(await shop.order()).finally(runner.close);
    expect(again).toMatchObject({
      state: 'completed_with_failures',
      rows_updated: 0,
      fields_reencrypted: 0,
      fields_failed: report.fields_failed,
    });
    expect(again.failures).toEqual(report.failures);
    expect(again.fields_skipped_on_target).toBe(report.fields_reencrypted);
    expect(await imageOf(shop, 'public')).toEqual(rows);
  });
});

describe('rows that the database refuses to have rewritten', () => {
  test('are quarantined alone with the SQLSTATE; all others move', async () => {
    const keyrings = (algorithm: 'aes-256-gcm' | 'xaes-256-gcm'): ConfigFile['keyrings'] => ({
      customers: { root: 'env:KEYTURN_ROOT_KEY', algorithm },
    });
    const targets: ConfigFile['targets'] = [
      { table: 'person', keyring: 'customers', columns: { email: {}, name: {} } },
    ];
    const shop = await openShop({
      config: { keyrings: keyrings('aes-256-gcm'), targets },
      ddl: ['CREATE TABLE person (id int PRIMARY KEY, email varchar(100), name text)'],
    });
    try {
      const keyturn = await shop.open();
      const [email, name] = ['email', 'name'].map((column) => keyturn.column('person', column));
      const nameOf = (id: number): string | null => (id % 4 === 0 ? null : `person ${id}`);
      for (const id of range(1, 300)) {
        // 32 bytes fit under AES-GCM; the longer envelope of XAES takes 20 at most.
        const stored = await email?.encrypt({ pk: id }, id === 33 ? 'x'.repeat(32) : `e${id}`);
        const title = nameOf(id);
        await shop.query('INSERT INTO person VALUES ($1, $2, $3)', [
          id,
          stored,
          title === null ? null : await name?.encrypt({ pk: id }, title),
        ]);
      }
      await keyturn.close();
      for (const statement of [
        `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$`,
        'CREATE TRIGGER refuse BEFORE UPDATE ON person FOR EACH ROW WHEN (OLD.id = 7) EXECUTE FUNCTION refuse()',
        `ALTER TABLE person ADD CONSTRAINT only_first_key CHECK (id <> 299 OR left(name, 14) = 'kt1.S1QBAQAAAA') NOT VALID`,
      ]) {
        await shop.query(statement);
      }
      const control = openControl({
        environment: shop.environment(),
        file: { keyrings: keyrings('xaes-256-gcm'), targets },
      });
      await init(control.context).finally(control.close);
      const keyId = await shop.rotate();
      const runner = await startDirectRunner(shop);
      const report = await runner.finish(await shop.order()).finally(runner.close);

      expect(report).toMatchObject({
        state: 'completed_with_failures',
        rows_examined: 300,
        rows_failed: 3,
        rows_updated: 297,
        fields_stale: 0,
      });
      const quarantined = await shop.query(
        `SELECT row_key[1]::int AS id, c.name AS field, cause, key_id FROM keyturn.quarantine q JOIN keyturn.target_column c ON c.id = q.column_id ORDER BY 1, 2`,
      );
      expect(quarantined).toEqual(
        [
          [7, 'P0001'],
          [33, '22001'],
          [299, '23514'],
        ].flatMap(([id, sqlstate]) =>
          ['email', 'name'].map((field) => ({ id, field, cause: `REFUSED_${String(sqlstate)}`, key_id: null })),
        ),
      );
      await expectExactCounts(shop, report);
      const after = await shop.open();
      const wrong: number[] = [];
      for (const row of await shop.query('SELECT * FROM person')) {
        const id = Number(row['id']);
        const decrypted = await after.column('person', 'email').decrypt({ pk: id }, String(row['email']));
        if (
          decrypted.keyId !== ([7, 33, 299].includes(id) ? 1 : keyId) ||
          decrypted.plaintext !== (id === 33 ? 'x'.repeat(32) : `e${id}`)
        )
          wrong.push(id);
      }
      expect(wrong).toEqual([]);
    } finally {
      await shop.close();
    }
  });
});

describe('keys that are missing', () => {
  let shop: Shop;

  beforeEach(async () => {
    shop = await openShop();
    await insertThroughLibrary(shop, range(1, 20));
    await shop.rotate();
  });

  afterEach(() => shop.close());

  test('a key that every row names and no worker can open gives the batch back, quarantines nothing, and in the end pauses the run', async () => {
    const runner = await startDirectRunner(shop);
    try {
      await shop.query(`INSERT INTO keyturn.data_key (id, keyring_id, scope_id, version, algorithm, state, commitment)
        SELECT 60, id, id, 60, algorithm, 'decrypt_only', decode(repeat('cd', 32), 'hex') FROM keyturn.keyring`);
      const [keyring] = await shop.query(
        'UPDATE keyturn.keyring SET generation = generation + 1 RETURNING generation::int',
      );
      const generation = Number(keyring?.['generation']);
      await until(async () => (await runner.membership.refresh('customers')).generation === generation, {
        what: 'the worker to see the new key',
        deadlineMs: 10_000,
      });
      const written = await shop.query('SELECT id, email FROM customer WHERE email IS NOT NULL');
      const setEmail = 'UPDATE customer SET email = $2 WHERE id = $1';
      for (const { id, email } of written) await shop.query(setEmail, [id, damage.namingKey(String(email), 60)]);
      const rows = await imageOf(shop, 'public');

      const run = await shop.order();
      const ends: string[] = [];
      const report = await until(
        async () => {
          // The pause between two tries is for other workers to get a chance; here there is none to wait for.
          await shop.query(`UPDATE keyturn.batch SET not_before = '-infinity' WHERE state = 'pending'`);
          for (const worked of await runner.step(run))
            ends.push('cause' in worked ? `${worked.end} ${worked.cause}` : worked.end);
          const current = await showRun(shop.control.context, run);
          return current.state === 'paused' && current;
        },
        { what: 'the run to pause', deadlineMs: 20_000 },
      );
      expect(new Set(ends)).toEqual(new Set(['released KEY_NOT_HELD 60']));
      expect(ends.length).toBe(5);
      expect(report).toMatchObject({
        held_back_by: `KEY_NOT_HELD 60; no worker could open key 60, whose root key they were probably not given: give the workers the root keys that keyturn.yaml names, then keyturn run resume ${run}`,
        failures: [],
        rows_examined: 0,
      });
      expect(await shop.query('SELECT FROM keyturn.quarantine')).toEqual([]);
      expect(await imageOf(shop, 'public')).toEqual(rows);

      for (const { id, email } of written) await shop.query(setEmail, [id, email]);
      await resumeRun(shop.control.context, run, 'mended');
      expect(await runner.finish(run)).toMatchObject({ state: 'succeeded', rows_updated: 20, held_back_by: null });
    } finally {
      await runner.close();
    }
  });

  test('a retired key pauses the run at once and names key restore; restored and resumed, it completes', async () => {
    const runner = await startDirectRunner(shop);
    try {
      // A writer that was frozen since before the rotation wakes up after the key was retired.
      const rows = await shop.query('DELETE FROM customer RETURNING *');
      await retire(shop.control.context, undefined, 'v1', undefined);
      // The fence would refuse it; somebody has switched it off.
      await shop.query('ALTER TABLE customer DISABLE TRIGGER zz_keyturn_fence_insert');
      for (const row of rows) {
        await shop.query('INSERT INTO customer SELECT * FROM jsonb_populate_record(NULL::customer, $1)', [
          JSON.stringify({ ...row, phone: undefined }),
        ]);
      }

      const run = await shop.order();
      const paused = await runner.finish(run);
      expect(paused).toMatchObject({
        state: 'paused',
        held_back_by: `KEY_RETIRED 1; the key is needed: keyturn key restore 1, then keyturn run resume ${run}`,
        failures: [],
        rows_examined: 0,
      });
      expect(await shop.query('SELECT FROM keyturn.quarantine')).toEqual([]);

      await restore(shop.control.context, undefined, '1', undefined);
      await resumeRun(shop.control.context, run, undefined);
      expect(await runner.finish(run)).toMatchObject({
        state: 'succeeded',
        rows_updated: rows.length,
        fields_stale: 0,
      });
    } finally {
      await runner.close();
    }
  });
});

test('one damaged row in a hundred never pauses the run, all the others are moved, and the key stays', async () => {
  expect(await moveAroundPoison(13_000)).toMatchObject(expectedOf(13_000));
});

describe('one cause over whole batches', () => {
  test('pauses the run with that cause; mended and resumed, it goes on to its end', async () => {
    const shop = await openShop({
      config: {
        keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
        targets: [{ table: 'note', keyring: 'customers', columns: { body: {} } }],
      },
      ddl: ['CREATE TABLE note (id int PRIMARY KEY, body text)'],
    });
    // What was there before the column was registered would keep the run from beginning.
    await shop.query(`INSERT INTO note SELECT id, 'in clear' FROM generate_series(1, 13000) id`);
    const runner = await startDirectRunner(shop);
    try {
      const run = await shop.order();
      const paused = await runner.finish(run);
      expect(paused).toMatchObject({
        state: 'paused',
        held_back_by: `NOT_AN_ENVELOPE; the column holds values in clear, or of another library: look at the rows with keyturn quarantine list --run ${run}, then keyturn run resume ${run}`,
        rows_updated: 0,
      });
      expect(paused.fields_failed).toBeGreaterThanOrEqual(12_000);
      expect(paused.fields_examined).toBe(paused.fields_failed);

      await shop.query('UPDATE note SET body = NULL');
      await resumeRun(shop.control.context, run, 'the values were moved elsewhere');
      const report = await runner.finish(run);
      expect(report).toMatchObject({
        state: 'completed_with_failures',
        held_back_by: expect.stringContaining('NOT_AN_ENVELOPE') as string,
        fields_stale: 0,
      });
      const actions = await shop.query(`SELECT action FROM keyturn.audit WHERE object = $1 ORDER BY id`, [
        `run ${run}`,
      ]);
      expect(actions.map(({ action }) => action)).toEqual([
        'run.create',
        'run.running',
        'run.pausing',
        'run.paused',
        'run.running',
        'run.verifying',
        'run.completed_with_failures',
      ]);
    } finally {
      await runner.close();
      await shop.close();
    }
  });
});

describe.each(availableBackends())('over the %s queue', (backend) => {
  let shop: Shop;

  beforeEach(async () => {
    shop = await openShop({ backend });
    await insertThroughLibrary(shop, range(1, 120));
    await shop.rotate();
    await shop.startSupervisor();
  });

  afterEach(() => shop.close());

  /** A worker that stands still before its second slice commits, until `release`. */
  async function startHeldWorker(): Promise<{ reached: Promise<void>; release: () => void }> {
    let release: () => void = () => undefined;
    let reach: () => void = () => undefined;
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    const reached = new Promise<void>((resolve) => {
      reach = resolve;
    });
    let slices = 0;
    await shop.startWorker(async (point) => {
      if (point !== 'batch.before_commit' || ++slices !== 2) return;
      reach();
      await released;
    });
    return { reached, release };
  }

  const stateOf = async (run: number): Promise<string> => (await showRun(shop.control.context, run)).state;
  const moved = async (): Promise<unknown> =>
    (await shop.query(`SELECT count(*)::int AS n FROM keyturn.ledger`))[0]?.['n'];

  test(`a damaged cell is quarantined and the rest of the run completes [${backend}]`, async () => {
    const [row] = await shop.query('SELECT email FROM customer WHERE id = 60');
    await shop.query('UPDATE customer SET email = $1 WHERE id = 60', [damage.bitFlipped(String(row?.['email']))]);
    await shop.startWorker();
    const report = await shop.waitForRun(await shop.order());
    expect(report).toMatchObject({
      state: 'completed_with_failures',
      rows_updated: 119,
      rows_failed: 1,
      failures: [{ target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 1, cells: 1 }],
    });
    await expectExactCounts(shop, report);
  });

  test(`pausing settles between two slices, a paused run writes nothing, and resumed it finishes with exact counts [${backend}]`, async () => {
    const worker = await startHeldWorker();
    const run = await shop.order();
    await worker.reached;
    expect(await pauseRun(shop.control.context, run, 'lunch')).toMatchObject({ state: 'pausing' });
    worker.release();
    await until(async () => (await stateOf(run)) === 'paused', { what: 'the pause to settle', deadlineMs: 20_000 });

    const before = { rows: await imageOf(shop, 'public'), slices: await moved() };
    const paused = await showRun(shop.control.context, run);
    expect(paused.rows_examined).toBeGreaterThan(0);
    expect(paused.rows_examined).toBeLessThan(120);
    expect(await shop.query(`SELECT state FROM keyturn.batch WHERE state IN ('dispatched', 'running')`)).toEqual([]);
    // A second run of the same keyring goes its way meanwhile: the pause is this run's alone.
    const other = await shop.waitForRun(await shop.order({ kind: 'verify' }));
    expect(other).toMatchObject({ kind: 'verify', state: 'completed_with_failures' });
    expect(await imageOf(shop, 'public')).toEqual(before.rows);

    expect(await resumeRun(shop.control.context, run, 'back')).toMatchObject({ state: 'running' });
    const report = await shop.waitForRun(run);
    expect(report).toMatchObject({ state: 'succeeded', rows_examined: 120, rows_updated: 120, fields_stale: 0 });
    await expectExactCounts(shop, report);
    const after = await shop.open();
    expect(await findDifferences(shop, after)).toEqual([]);
  });

  test(`a cancelled run stops between two slices and stays so; what it moved stays moved, all of it readable [${backend}]`, async () => {
    const worker = await startHeldWorker();
    const run = await shop.order();
    await worker.reached;
    expect(await cancelRun(shop.control.context, run, 'wrong table')).toMatchObject({ state: 'cancelling' });
    worker.release();
    const report = await shop.waitForRun(run);
    expect(report.state).toBe('cancelled');
    expect(report.rows_examined).toBeGreaterThan(0);
    expect(report.rows_examined).toBeLessThan(120);
    expect(await shop.query(`SELECT DISTINCT state FROM keyturn.batch WHERE state <> 'done'`)).toEqual([
      { state: 'cancelled' },
    ]);
    expect(await cancelRun(shop.control.context, run, 'again')).toMatchObject({ state: 'cancelled' });
    for (const verb of [pauseRun, resumeRun])
      await expect(verb(shop.control.context, run, undefined)).rejects.toMatchObject({ code: 'RUN_STATE_REFUSED' });
    const reader = await shop.open();
    expect(await findDifferences(shop, reader)).toEqual([]);
    await reader.close();

    const next = await shop.waitForRun(await shop.order());
    expect(next).toMatchObject({
      state: 'succeeded',
      rows_updated: 120 - report.rows_updated,
      rows_skipped_all_on_target: report.rows_updated,
    });
    const [record] = await shop.query(`SELECT reason FROM keyturn.audit WHERE action = 'run.cancelling'`);
    expect(record).toEqual({ reason: 'wrong table' });
  });
});
