// The chain over the record: whatever is altered, removed, moved, brought in or cut off behind the database's back is found,
// and what cannot be found is stated by a test as well.
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { Environment } from '../../src/config.js';
import { listRecords, verifyAudit, type AuditVerification } from '../../src/control/audit.js';
import { noConfigFile, type OpenControl } from '../../src/control/context.js';
import { openRootsOf, rotateKey, stageKey } from '../../src/control/keys.js';
import { orderRun } from '../../src/control/runs.js';
import { pauseRun } from '../../src/control/steer-runs.js';
import { sealAudit } from '../../src/engine/audit-chain.js';
import { getKeyring } from '../../src/store/keys.js';
import { runCapturedWith } from '../cli/captured.js';
import { outcomeOf } from '../support/outcome-of.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

let shop: Shop;
/** Without a root key. */
let bare: OpenControl;

beforeAll(async () => {
  shop = await openShop();
  bare = openControl({ environment: { DATABASE_URL: shop.url } as Environment, file: noConfigFile });
  const run = await orderRun(shop.control.context, {
    kind: 'verify',
    keyring: undefined,
    target: undefined,
    scope: undefined,
    deep: false,
    reason: 'a "quoted" reason, ünïcödé, 🔑, and a \\ backslash',
  });
  await pauseRun(shop.control.context, run.id, '');
  // Text of JSON is kept as it was written, spaces, order and numbers included.
  await shop.query(
    `INSERT INTO keyturn.audit (action, object, before, after) VALUES ('test', 'test', '{ "b":1.50,  "a" : [2, {}] }', '[]')`,
  );
  await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined });
});

afterAll(async () => {
  await bare.close();
  await shop.close();
});

const verify = (checkpoint?: string): Promise<AuditVerification> => verifyAudit(shop.control.context, checkpoint);

const tables = ['audit', 'audit_link', 'audit_seal', 'audit_head'];

/** As a superuser who switches every trigger off. */
const tamper = (...statements: string[]): Promise<unknown> =>
  shop.query(['BEGIN', 'SET LOCAL session_replication_role = replica', ...statements, 'COMMIT'].join('; '));

/** Recomputes every link with the database's own arithmetic, as somebody would who can write every table. */
const rechain = `DO $$
DECLARE record keyturn.audit;
BEGIN
  CREATE TEMP TABLE old ON COMMIT DROP AS SELECT a.* FROM keyturn.audit a LEFT JOIN keyturn.audit_link l ON l.audit_id = a.id ORDER BY l.n;
  DELETE FROM keyturn.audit_link;
  UPDATE keyturn.audit_head SET n = 0, hash = decode(repeat('00', 32), 'hex');
  CREATE TEMP TABLE again (LIKE keyturn.audit) ON COMMIT DROP;
  CREATE TRIGGER chain AFTER INSERT ON again FOR EACH ROW EXECUTE FUNCTION keyturn.chain_audit();
  ALTER TABLE again ENABLE ALWAYS TRIGGER chain;
  INSERT INTO again SELECT * FROM old;
END $$`;

describe('an intact record', () => {
  test('verifies to its last record, with every seal compared, and prints a checkpoint that holds later on', async () => {
    const before = await verify();
    const [count] = await shop.query('SELECT count(*)::int AS n FROM keyturn.audit');
    expect(before).toMatchObject({ intact: true, damage: null, records: count?.['n'] });
    expect(before.seals.stored).toBeGreaterThan(1);
    expect(before.seals.checked).toBe(before.seals.stored);
    expect(before.seals.sealed_to).toBe(before.records);
    await stageKey(shop.control.context, undefined, 'one more', { isOrdered: true });
    const after = await verify(String(before.checkpoint));
    expect(after).toMatchObject({ intact: true, records: before.records + 1 });
  });

  test('needs no root key, and then says that the seals were not compared', async () => {
    const verified = await verifyAudit(bare.context, undefined);
    expect(verified).toMatchObject({ intact: true, seals: { checked: 0, sealed_to: null } });
    expect(verified.seals.stored).toBeGreaterThan(0);
  });

  test('with a root key of another cluster is refused as MasterKeyMismatch', async () => {
    const control = openControl({
      environment: { DATABASE_URL: shop.url, KEYTURN_ROOT_KEY: '5a3c'.repeat(15) + '91be' } as Environment,
      file: noConfigFile,
    });
    expect(await outcomeOf(() => verifyAudit(control.context, undefined))).toBe('MASTER_KEY_MISMATCH');
    await control.close();
  });

  test('is listed newest first, and by object, action and time', async () => {
    const all = { since: undefined, object: undefined, action: undefined, limit: 100 };
    const records = await listRecords(bare.context, all);
    expect(records.map(({ record }) => record)).toEqual(records.map((_, at) => records.length - at));
    expect(await listRecords(bare.context, { ...all, object: 'test' })).toMatchObject([
      { action: 'test', before: { b: 1.5, a: [2, {}] }, after: [], reason: null },
    ]);
    expect((await listRecords(bare.context, { ...all, action: 'run.pausing' })).map(({ object }) => object)).toEqual([
      'run 1',
    ]);
    expect(await listRecords(bare.context, { ...all, since: { ageMs: 86_400_000 }, limit: 2 })).toEqual(
      records.slice(0, 2),
    );
    expect(await listRecords(bare.context, { ...all, since: { at: new Date(Date.now() + 86_400_000) } })).toEqual([]);
  });

  test('I10 the login and the time are those of the database, whatever the writer says', async () => {
    const [row] = await shop.query(
      `INSERT INTO keyturn.audit (action, object, actor, at) VALUES ('test', 'login', 'somebody else', '2001-01-01') RETURNING actor = session_user AS mine, at > clock_timestamp() - interval '1 minute' AS now`,
    );
    expect(row).toEqual({ mine: true, now: true });
  });
});

describe('what was done behind its back', () => {
  beforeEach(async () => {
    await shop.query('CREATE SCHEMA kept');
    for (const table of tables) await shop.query(`CREATE TABLE kept.${table} AS SELECT * FROM keyturn.${table}`);
  });

  afterEach(async () => {
    await tamper(
      ...tables.flatMap((table) => [
        `DELETE FROM keyturn.${table}`,
        `INSERT INTO keyturn.${table} OVERRIDING SYSTEM VALUE SELECT * FROM kept.${table}`,
      ]),
      'DROP SCHEMA kept CASCADE',
    );
    if (!(await verify()).intact) throw new Error('the record was not put back');
  });

  const ofLink = (n: number): string => `(SELECT audit_id FROM keyturn.audit_link WHERE n = ${n})`;

  test('an edit of any field is found at its record', async () => {
    const edits = [
      `actor = 'nobody'`,
      `action = action || ' '`,
      `object = 'key 9'`,
      `reason = CASE WHEN reason IS NULL THEN '' END`,
      `before = '{}'`,
      `after = (after::text || ' ')::json`,
      `at = at + interval '1 microsecond'`,
      `id = id + 1000000`,
    ];
    for (const edit of edits) {
      await tamper(
        ...(edit.startsWith('id') ? ['ALTER TABLE keyturn.audit ALTER id SET GENERATED BY DEFAULT'] : []),
        `UPDATE keyturn.audit SET ${edit} WHERE id = ${ofLink(4)}`,
        ...(edit.startsWith('id') ? ['ALTER TABLE keyturn.audit ALTER id SET GENERATED ALWAYS'] : []),
      );
      expect({ edit, found: await verify() }).toMatchObject({
        found: {
          intact: false,
          checkpoint: null,
          damage: { kind: edit.startsWith('id') ? 'missing' : 'altered', record: 4 },
        },
      });
      await tamper(
        'DELETE FROM keyturn.audit',
        'INSERT INTO keyturn.audit OVERRIDING SYSTEM VALUE SELECT * FROM kept.audit',
      );
    }
  });

  test('a record that was deleted is found, with its link and without', async () => {
    await tamper(`DELETE FROM keyturn.audit WHERE id = ${ofLink(4)}`);
    expect(await verify()).toMatchObject({ damage: { kind: 'missing', record: 4 } });
    await tamper('DELETE FROM keyturn.audit_link WHERE n = 4');
    expect(await verify()).toMatchObject({ damage: { kind: 'missing', record: 4 } });
  });

  test('two records that changed places are found at the first of them', async () => {
    await tamper(
      'UPDATE keyturn.audit_link SET audit_id = -audit_id WHERE n IN (4, 6)',
      `UPDATE keyturn.audit_link l SET audit_id = (SELECT -o.audit_id FROM kept.audit_link o WHERE o.n = 10 - l.n) * -1 WHERE n IN (4, 6)`,
    );
    expect(await verify()).toMatchObject({ damage: { kind: 'reordered', record: 4 } });
  });

  test('a record that was brought in is found, past the chain and within it', async () => {
    await tamper(`INSERT INTO keyturn.audit (action, object) VALUES ('key.activate', 'key 1')`);
    expect(await verify()).toMatchObject({ damage: { kind: 'inserted', record: null } });
    await tamper(
      'UPDATE keyturn.audit_link SET n = n + 1000 WHERE n >= 4',
      'UPDATE keyturn.audit_link SET n = n - 999 WHERE n >= 1000',
      `INSERT INTO keyturn.audit_link SELECT 4, max(id), sha256('x') FROM keyturn.audit`,
      'UPDATE keyturn.audit_head SET n = n + 1',
    );
    expect(await verify()).toMatchObject({ damage: { kind: 'altered', record: 4 } });
  });

  const cutTail = (keep: number): Promise<unknown> =>
    tamper(
      `DELETE FROM keyturn.audit WHERE id IN (SELECT audit_id FROM keyturn.audit_link WHERE n > ${keep})`,
      `DELETE FROM keyturn.audit_link WHERE n > ${keep}`,
    );
  const resetHead =
    'UPDATE keyturn.audit_head h SET (n, hash) = (SELECT n, hash FROM keyturn.audit_link ORDER BY n DESC LIMIT 1)';

  test('a tail that was cut off is found by the head, and where that was set back, by the seals', async () => {
    await cutTail(3);
    expect(await verify()).toMatchObject({ damage: { kind: 'tail_cut', record: 4 } });
    await tamper(resetHead);
    expect(await verify()).toMatchObject({ damage: { kind: 'tail_cut', record: 4 } });
    expect(await verifyAudit(bare.context, undefined)).toMatchObject({ damage: { kind: 'tail_cut', record: 4 } });
  });

  test('a tail cut off after the last seal is found by a checkpoint kept outside, and by nothing else', async () => {
    const [sealed] = await shop.query('SELECT max(n)::int AS n FROM keyturn.audit_seal');
    await shop.query(`INSERT INTO keyturn.audit (action, object) VALUES ('test', 'unsealed')`);
    const { checkpoint } = await verify();
    await cutTail(Number(sealed?.['n']));
    await tamper(resetHead);
    expect(await verify()).toMatchObject({ intact: true });
    expect(await verify(String(checkpoint))).toMatchObject({
      damage: { kind: 'tail_cut', record: Number(sealed?.['n']) + 1 },
    });
  });

  test('a chain recomputed over an edit is found by the seals, and by a checkpoint', async () => {
    const { checkpoint } = await verify();
    await tamper(`UPDATE keyturn.audit SET reason = 'none' WHERE id = ${ofLink(4)}`, rechain);
    const { damage } = await verify();
    expect(damage?.kind).toBe('rewritten');
    // Seals that are made to fit by somebody without the audit key do not verify under it.
    await tamper('UPDATE keyturn.audit_seal s SET hash = (SELECT hash FROM keyturn.audit_link l WHERE l.n = s.n)');
    expect(await verify()).toMatchObject({ damage: { kind: 'false_seal' } });
    expect(await verifyAudit(bare.context, undefined)).toMatchObject({ intact: true, seals: { checked: 0 } });
    expect(await verifyAudit(bare.context, String(checkpoint))).toMatchObject({ damage: { kind: 'rewritten' } });
  });

  test('nothing is sealed after damage: neither an edit since the last seal nor a rewritten past', async () => {
    const { context } = shop.control;
    const roots = await openRootsOf(context, await getKeyring(context.database, 'customers'));
    await shop.query(`INSERT INTO keyturn.audit (action, object) VALUES ('test', 'unsealed')`);
    const [last] = await shop.query('SELECT max(n)::int AS n FROM keyturn.audit_link');
    await tamper(`UPDATE keyturn.audit SET object = 'x' WHERE id = ${ofLink(Number(last?.['n']))}`);
    expect(await outcomeOf(() => sealAudit(context.database, roots))).toBe('AUDIT_DAMAGED');
    await tamper(rechain);
    expect(await sealAudit(context.database, roots)).toBe(BigInt(Number(last?.['n'])));
    await tamper(`UPDATE keyturn.audit SET reason = 'none' WHERE id = ${ofLink(4)}`, rechain);
    await shop.query(`INSERT INTO keyturn.audit (action, object) VALUES ('test', 'on top')`);
    expect(await outcomeOf(() => sealAudit(context.database, roots))).toBe('AUDIT_DAMAGED');
    // Said, and no reason to be unable to turn a key.
    const said: string[] = [];
    await rotateKey(
      { ...context, onProgress: (words) => said.push(words) },
      { keyring: undefined, ifOlderThanMs: undefined, reason: 'emergency' },
    );
    expect(said.join()).toMatch(/the audit record does not fit its chain: record \d+ is not the one that was sealed/);
    await tamper('UPDATE keyturn.audit_seal SET mac = hash');
    expect(await outcomeOf(() => sealAudit(context.database, roots))).toBe('AUDIT_DAMAGED');
  });

  test('the command exits 6 and names record and damage; without the head nothing can be done any more', async () => {
    const opened = { environment: { DATABASE_URL: shop.url }, openControl };
    expect(await runCapturedWith(opened, 'audit', 'verify')).toMatchObject({ code: 0 });
    expect(await runCapturedWith(opened, 'audit', 'verify', '--checkpoint', '17')).toMatchObject({ code: 2 });
    const listed = await runCapturedWith(opened, 'audit', 'list', '--since', '2001-01-01', '--limit', '2');
    expect(listed.stdout).toMatch(/record +at +login +action +object +reason\n.*\n.*\n$/);
    await tamper(`UPDATE keyturn.audit SET object = 'x' WHERE id = ${ofLink(5)}`, 'DELETE FROM keyturn.audit_head');
    const text = await runCapturedWith(opened, 'audit', 'verify');
    expect(text.code).toBe(6);
    expect(text.stdout).toMatch(/^record 5 does not fit \(altered\): record 5 is not what was recorded\n/);
    const json = await runCapturedWith(opened, 'audit', 'verify', '--json');
    expect(JSON.parse(json.stdout)).toMatchObject({ intact: false, damage: { kind: 'altered', record: 5 } });
    const runs = await shop.query('SELECT id FROM keyturn.run');
    expect(await outcomeOf(() => shop.order())).toBe('DATABASE_ERROR');
    expect(await shop.query('SELECT id FROM keyturn.run')).toEqual(runs);
  });
});

describe('writers at once', () => {
  test('two transactions that record in the opposite order of their locks both commit: the head is taken last', async () => {
    await shop.query('CREATE TABLE lock_me AS SELECT 1 AS x');
    const { database } = shop.control.context;
    let hasLocked: () => void = () => undefined;
    const locked = new Promise<void>((resolve) => (hasLocked = resolve));
    let mayGoOn: () => void = () => undefined;
    const goOn = new Promise<void>((resolve) => (mayGoOn = resolve));
    const record = `INSERT INTO keyturn.audit (action, object) VALUES ('test', 'at once')`;
    const locksFirst = database.transaction(async (client) => {
      await client.query('UPDATE lock_me SET x = 2');
      hasLocked();
      await goOn;
      await client.query(record);
    });
    await locked;
    const recordsFirst = database.transaction(async (client) => {
      await client.query(record);
      await client.query('UPDATE lock_me SET x = 3');
    });
    await until(
      async () => {
        const [row] = await shop.query(
          `SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`,
        );
        return Number(row?.['n']) > 0;
      },
      { what: 'the second to wait for the first', deadlineMs: 30_000 },
    );
    mayGoOn();
    const ended = await Promise.allSettled([locksFirst, recordsFirst]);
    expect(ended.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled']);
    expect(await verify()).toMatchObject({ intact: true });
  });

  test('thirty transactions at once, some rolled back, leave a chain without a gap', async () => {
    const { database } = shop.control.context;
    const { records: before } = await verify();
    const outcomes = await Promise.allSettled(
      Array.from({ length: 30 }, (_, at) =>
        database.transaction(async (client) => {
          await client.query(
            `INSERT INTO keyturn.audit (action, object) SELECT 'test', 'many' FROM generate_series(1, 2)`,
          );
          if (at % 5 === 0) throw new Error('rolled back');
        }),
      ),
    );
    expect(outcomes.filter(({ status }) => status === 'fulfilled')).toHaveLength(24);
    expect(await verify()).toMatchObject({ intact: true, records: before + 48 });
  });

  test('the chain goes on in the next process, which seals what the last one left', async () => {
    const control = openControl({ environment: shop.environment() as Environment, file: shopConfig });
    await rotateKey(control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'another process' });
    await control.close();
    const verified = await verify();
    expect(verified.intact).toBe(true);
    expect(verified.seals.sealed_to).toBe(verified.records);
  });
});
