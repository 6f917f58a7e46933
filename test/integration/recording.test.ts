// I10 from the database's side: a watch over every table that holds keys, runs and targets demands, at each commit, a record
// written by the same transaction. And without the right to record, no verb changes anything.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile, Environment } from '../../src/config.js';
import type { OpenControl } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { askForDestruction } from '../../src/control/destroy-key.js';
import { activate, restore, retire, rotateKey, stageKey } from '../../src/control/keys.js';
import { orderRun } from '../../src/control/runs.js';
import { cancelRun, limitRun, pauseRun, resumeRun } from '../../src/control/steer-runs.js';
import { renameTargetTo } from '../../src/control/targets.js';
import { createTestRole, type TestRole } from '../support/roles.js';
import { driveByHand, openBareWorker } from '../support/by-hand.js';
import { customerTable, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { withoutGuards } from '../support/without-guards.js';

/** Tables whose rows are state of keys, runs and targets; and what of a row's change is bookkeeping, not state. */
const watched: Readonly<Record<string, string>> = {
  root_key: 'true',
  keyring: `TG_OP <> 'UPDATE' OR to_jsonb(NEW) - 'generation' IS DISTINCT FROM to_jsonb(OLD) - 'generation'`,
  data_key: 'true',
  data_key_wrap: 'true',
  backup: 'true',
  destruction: 'true',
  retirement: 'true',
  target: 'true',
  target_column: 'true',
  expected_member: 'true',
  schedule: `TG_OP <> 'UPDATE' OR to_jsonb(NEW) - 'next_at' IS DISTINCT FROM to_jsonb(OLD) - 'next_at'`,
  run: `TG_OP <> 'UPDATE' OR to_jsonb(NEW) - 'held_back_by' IS DISTINCT FROM to_jsonb(OLD) - 'held_back_by'`,
};

/** What is no such state, each for its reason. A new table must be named here or above. */
const unwatched: Readonly<Record<string, string>> = {
  audit: 'the record itself',
  audit_head: 'the record itself',
  audit_link: 'the record itself',
  audit_seal: 'the record itself',
  batch: 'work of a run, counted in its ledger',
  cluster: 'made once; where the queue is',
  fence: 'what stands on the tables, as the marks of keys say',
  key_usage: 'encryptions reserved, counted',
  lazy_upgrade: 'counts',
  leadership: 'a lease',
  ledger: 'what was done to rows',
  member: 'who is there',
  member_keyring: 'what members hold',
  migration: 'the schema',
  occurrence: 'how far a schedule has come; its keys and runs are recorded',
  pace: 'what was measured',
  quarantine: 'cells of a run',
  run_target: 'planning of a run',
};

const watch = [
  ...Object.entries(watched).flatMap(([table, isState]) => [
    `CREATE FUNCTION watch_${table}() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
       IF (${isState}) AND NOT EXISTS (SELECT 1 FROM keyturn.audit WHERE xmin::text = (txid_current() % 4294967296)::text) THEN
         RAISE EXCEPTION 'a change of keyturn.${table} was not recorded';
       END IF;
       RETURN NULL;
     END $$`,
    `CREATE CONSTRAINT TRIGGER watch AFTER INSERT OR UPDATE OR DELETE ON keyturn.${table} DEFERRABLE INITIALLY DEFERRED
     FOR EACH ROW EXECUTE FUNCTION watch_${table}()`,
  ]),
];

let shop: Shop;
let owner: TestRole;
let control: OpenControl;
const twoKeyrings: ConfigFile = {
  keyrings: { ...shopConfig.keyrings, more: { root: 'env:KEYTURN_ROOT_KEY', algorithm: 'aes-256-gcm' } },
  targets: [
    ...(shopConfig.targets ?? []),
    { table: 'public.patient', keyring: 'more', scope: 'tenant_id', columns: { email: {} } },
  ],
};

beforeAll(async () => {
  owner = await createTestRole();
  shop = await openShop({
    ddl: [customerTable, customerTable.replace('customer', 'patient'), customerTable.replace('customer', 'renamed')],
  });
  for (const statement of watch) await shop.query(statement);
  // A login that owns everything of ours, and is no superuser, whom no right can be taken from.
  await shop.query(`DO $$ DECLARE r record; BEGIN
    EXECUTE 'ALTER SCHEMA keyturn OWNER TO ${owner.name}'; EXECUTE 'ALTER SCHEMA bullmq OWNER TO ${owner.name}';
    FOR r IN SELECT oid::regclass AS name, relkind FROM pg_class WHERE relnamespace IN ('keyturn'::regnamespace, 'bullmq'::regnamespace) AND relkind IN ('r') LOOP
      EXECUTE format('ALTER TABLE %s OWNER TO ${owner.name}', r.name);
    END LOOP;
    FOR r IN SELECT oid::regclass AS name FROM pg_class c WHERE relnamespace = 'keyturn'::regnamespace AND relkind = 'S' AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i')) LOOP
      EXECUTE format('ALTER SEQUENCE %s OWNER TO ${owner.name}', r.name);
    END LOOP;
    FOR r IN SELECT oid::regprocedure AS name FROM pg_proc WHERE pronamespace = 'keyturn'::regnamespace LOOP
      EXECUTE format('ALTER FUNCTION %s OWNER TO ${owner.name}', r.name);
    END LOOP;
  END $$`);
  for (const table of ['customer', 'patient', 'renamed'])
    await shop.query(`ALTER TABLE ${table} OWNER TO ${owner.name}`);
  control = openControl({
    environment: { ...shop.environment(), DATABASE_URL: owner.urlFor(shop.url) } as Environment,
    file: twoKeyrings,
  });
});

afterAll(async () => {
  await control.close();
  await shop.close();
  await owner.drop();
});

test('every table is either watched or named with the reason why not', async () => {
  const tables = await shop.query(
    `SELECT relname FROM pg_class WHERE relnamespace = 'keyturn'::regnamespace AND relkind = 'r' ORDER BY 1`,
  );
  expect(tables.map(({ relname }) => String(relname))).toEqual(
    [...Object.keys(watched), ...Object.keys(unwatched)].toSorted(),
  );
});

test('I10 the watch refuses a change of each table that no record goes with', async () => {
  for (const statement of [
    `UPDATE keyturn.data_key SET created_at = created_at`,
    `UPDATE keyturn.keyring SET algorithm = algorithm || 'x'`,
    `UPDATE keyturn.target SET table_name = table_name || 'x'`,
    `INSERT INTO keyturn.root_key (fingerprint, verification_token, uri) VALUES (sha256('x'), 'x', 'env:X')`,
  ])
    await expect(shop.query(statement)).rejects.toThrow(/was not recorded$/);
});

test('I10 keys, targets and a whole run leave a record with every change, in its own transaction', async () => {
  const { context } = control;
  await init(context, 'a second keyring');
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3, 4, 5]);
  await keyturn.close();
  await rotateKey(context, { keyring: 'customers', ifOlderThanMs: undefined, reason: 'rotate' });
  const run = await shop.order({ keyring: 'customers' });
  const [worker, driven] = [await openBareWorker(shop), driveByHand(shop, run)];
  try {
    await pauseRun(context, run, 'pause');
    await driven.step();
    await resumeRun(context, run, 'resume');
    expect(await driven.finish(worker)).toMatchObject({ state: 'succeeded' });
  } finally {
    await worker.close();
    await driven.close();
  }
  const cancelled = await shop.order({ keyring: 'customers', kind: 'verify' });
  await cancelRun(context, cancelled, 'cancel');
  await retire(context, 'customers', 'v1', 'retire');
  await restore(context, 'customers', 'v1', 'restore');
  await renameTargetTo(context, 'public.patient', 'public.renamed', 'rename');
  const actions = await shop.query(
    `SELECT DISTINCT action FROM keyturn.audit WHERE reason IN ('a second keyring', 'rotate', 'pause', 'resume', 'cancel', 'retire', 'restore', 'rename') ORDER BY 1`,
  );
  expect(actions.map(({ action }) => action)).toEqual([
    'key.activate',
    'key.fence',
    'key.order',
    'key.replace',
    'key.restore',
    'key.retire',
    'key.stage',
    'key.unfence',
    'keyring.create',
    'run.cancelling',
    'run.paused',
    'run.pausing',
    'run.pending',
    'target.column',
    'target.register',
    'target.rename',
  ]);
});

test('I10 without the right to record, every verb fails and not one row is changed', async () => {
  const { context } = control;
  const [pending, toResume] = [
    await shop.order({ keyring: 'customers', kind: 'verify' }),
    await shop.order({ keyring: 'customers', kind: 'verify' }),
  ];
  // What there is to stage: no standby.
  await withoutGuards(shop.query, async () => {
    await shop.query(
      `WITH standby AS (SELECT id FROM keyturn.data_key WHERE state = 'staged' AND version = 3),
         wraps AS (DELETE FROM keyturn.data_key_wrap w USING standby s WHERE w.data_key_id = s.id)
       INSERT INTO keyturn.audit (action, object) VALUES ('test', 'by hand')`,
    );
    await shop.query(
      `WITH standby AS (DELETE FROM keyturn.data_key WHERE state = 'staged' AND version = 3)
       INSERT INTO keyturn.audit (action, object) VALUES ('test', 'by hand')`,
    );
  });
  await shop.query(
    `WITH moved AS (UPDATE keyturn.run SET state = 'paused', resume_state = 'pending' WHERE id = ${toResume})
     INSERT INTO keyturn.audit (action, object) VALUES ('test', 'by hand')`,
  );
  await shop.query(`REVOKE INSERT ON keyturn.audit FROM ${owner.name}`);
  const another = openControl({
    environment: {
      ...shop.environment(),
      DATABASE_URL: owner.urlFor(shop.url),
      OTHER: randomBytes(32).toString('hex'),
    } as Environment,
    file: { ...twoKeyrings, keyrings: { ...twoKeyrings.keyrings, third: { root: 'env:OTHER' } } },
  });
  const whole = { target: undefined, scope: undefined, deep: false, reason: 'x', keyring: 'customers' } as const;
  const verbs: Readonly<Record<string, () => Promise<unknown>>> = {
    init: () => init(another.context, 'x'),
    stage: () => stageKey(context, 'customers', 'x'),
    activate: () => activate(context, 'more', undefined, 'x'),
    rotate: () => rotateKey(context, { keyring: 'customers', ifOlderThanMs: undefined, reason: 'x' }),
    retire: () => retire(context, 'customers', 'v1', 'x'),
    reencrypt: () => orderRun(context, { ...whole, kind: 'reencrypt' }),
    pause: () => pauseRun(context, pending, 'x'),
    cancel: () => cancelRun(context, pending, 'x'),
    resume: () => resumeRun(context, toResume, 'x'),
    limit: () => limitRun(context, pending, { priority: 3, reason: 'x' }),
    rename: () => renameTargetTo(context, 'public.renamed', 'public.patient', 'x'),
  };
  const sequences = ['key_id', 'audit_key_id', 'run_id_seq', 'audit_id_seq', 'root_key_id_seq', 'retirement_id_seq'];
  const before = await imageOf(shop, 'keyturn', sequences);
  try {
    for (const [name, verb] of Object.entries(verbs)) {
      const error: unknown = await verb().catch((thrown: unknown) => thrown);
      expect({ name, error }).toMatchObject({ name, error: { code: 'FORBIDDEN' } });
      expect(String(error)).toContain('permission denied for table audit');
      expect({ name, image: await imageOf(shop, 'keyturn', sequences) }).toEqual({ name, image: before });
    }
  } finally {
    await another.close();
    await shop.query(`GRANT INSERT ON keyturn.audit TO ${owner.name}`);
  }
  // A restore needs a retired key, which the others had to find unretired.
  await retire(context, 'customers', 'v1', 'again');
  await shop.query(`REVOKE INSERT ON keyturn.audit FROM ${owner.name}`);
  await expect(restore(context, 'customers', 'v1', 'x')).rejects.toMatchObject({ code: 'FORBIDDEN' });
  await expect(askForDestruction(context, 'customers', 'v1', { reason: 'x' })).rejects.toMatchObject({
    code: 'FORBIDDEN',
  });
  expect(await shop.query('SELECT FROM keyturn.destruction')).toEqual([]);
  expect(await shop.query(`SELECT state FROM keyturn.data_key WHERE id = 1`)).toEqual([{ state: 'retired' }]);
});
