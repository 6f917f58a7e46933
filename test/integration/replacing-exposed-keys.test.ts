// A root key that others may hold is replaced, and with it whatever it ever wrapped: the audit key and every data key, whose
// successors no suspect root ever wrapped. What follows is the emergency run and the retirement of what was exposed.
import { afterEach, beforeEach, expect, test } from 'vitest';
import { verifyAudit } from '../../src/control/audit.js';
import { beginEmergency, containKey, retireContained } from '../../src/control/compromise.js';
import type { ControlContext } from '../../src/control/context.js';
import { activate, rotateKey, stageKey } from '../../src/control/keys.js';
import { replaceExposedKeys } from '../../src/control/replace-exposed.js';
import { rootStatus } from '../../src/control/root-status.js';
import { finalizeRoot, prepareRoot, rotateRoot } from '../../src/control/roots.js';
import type { RunnerSupply } from '../../src/control/rotate-and-reencrypt.js';
import { readStatus } from '../../src/control/status.js';
import { startDirectRunner } from '../support/direct-run.js';
import { nextUri, openRootedShop, otherUri, type RootedShop } from '../support/roots.js';
import { findDifferences, insertCustomers } from '../support/shop.js';

const noSupply: RunnerSupply = { require: async () => undefined, start: async () => undefined };
const change = { to: nextUri, keyring: undefined, without: [], reason: 'dump and root leaked' };
const leak = { ...change, isLeak: true };
const cascade = { keyrings: ['customers'], reason: 'dump and root leaked' };

let rooted: RootedShop;
let context: ControlContext;
beforeEach(async () => {
  rooted = await openRootedShop();
  ({ context } = rooted);
});
afterEach(() => rooted.close());

interface KeyRow {
  readonly purpose: number;
  readonly state: string;
  /** Every root key that ever wrapped it. */
  readonly under: readonly number[];
}

async function keyRows(): Promise<readonly KeyRow[]> {
  const rows = await rooted.shop.query(
    `SELECT purpose::int, state || CASE WHEN compromised THEN '!' ELSE '' END AS state, wrapped_under::int[] AS under
     FROM keyturn.data_key ORDER BY purpose, id`,
  );
  return rows as unknown as readonly KeyRow[];
}

async function valueKeys(): Promise<readonly string[]> {
  return (await keyRows())
    .filter(({ purpose }) => purpose === 1)
    .map(({ state, under }) => `${state} ${under.join('+')}`);
}

test('I10 the replacement of a leaked root leaves a data key and an audit key that it never wrapped, and ends what it did', async () => {
  const { shop } = rooted;
  const writer = await rooted.open('present');
  await insertCustomers(shop, writer, [1, 2, 3]);
  await writer.close();
  expect(await valueKeys()).toEqual(['active 1', 'staged 1']);

  const report = await rotateRoot(context, leak);
  expect(report).toMatchObject({ outcome: 'finalized', keyrings: ['customers'], unbackedKeys: [1, 2] });
  expect((await rootStatus(context)).roots).toMatchObject([
    { id: 1, state: 'former', suspect: true },
    { id: 2, state: 'current', suspect: false },
  ]);
  const unfinished = 'keyturn root finalize --reencrypt';
  expect((await rootStatus(context)).next).toBe(unfinished);
  expect((await readStatus(context)).next).toBe(unfinished);

  const [head] = await shop.query(`SELECT n::int, encode(hash, 'hex') AS hash FROM keyturn.audit_head`);
  const replaced = await replaceExposedKeys(context, { keyrings: report.keyrings, reason: 'leaked' });
  expect(replaced).toMatchObject({
    auditKey: 4_294_963_201,
    keyrings: [{ keyring: 'customers', keys: [{ id: 1, compromised: true }], active: { id: 3 }, without: [] }],
  });
  // The standby from before the change was wrapped under the leaked root: it never becomes active.
  expect(await valueKeys()).toEqual(['decrypt_only! 1+2', 'destroyed 1+2', 'active 2', 'staged 2']);
  expect((await keyRows()).filter(({ purpose }) => purpose === 3)).toEqual([
    { purpose: 3, state: 'decrypt_only', under: [1, 2] },
    { purpose: 3, state: 'active', under: [2] },
  ]);
  const [record] = await shop.query(
    `SELECT a.before, l.n::int FROM keyturn.audit a JOIN keyturn.audit_link l ON l.audit_id = a.id WHERE action = 'audit-key.replace'`,
  );
  expect(record).toEqual({
    before: { auditKey: 4_294_963_200, n: head?.['n'], head: head?.['hash'] },
    n: Number(head?.['n']) + 1,
  });
  expect(await verifyAudit(context, undefined)).toMatchObject({ intact: true, damage: null });
  expect((await rootStatus(context)).next).toBe('nothing to do');

  const begun = await beginEmergency(context, 'customers', replaced.keyrings[0]?.keys ?? [], {
    reason: 'leaked',
    supply: noSupply,
  });
  const runner = await startDirectRunner({ ...shop, environment: () => rooted.environment('next') });
  expect(await runner.finish(Number(begun?.report.run_id)).finally(runner.close)).toMatchObject({
    state: 'succeeded',
    emergency: true,
    rows_updated: 3,
  });
  await retireContained(context, 'customers', 1, 'leaked');
  // A supervisor, or a repeated command, finds it done.
  expect(await retireContained(context, 'customers', 1, 'again')).toMatchObject({
    key: { state: 'retired' },
    proof: { key: 'customers v1 (id 1)' },
  });
  const states = await valueKeys();
  expect(states).toEqual(['retired! 1+2', 'destroyed 1+2', 'active 2', 'staged 2']);
  const reader = await rooted.open('next');
  expect(await findDifferences(shop, reader)).toEqual([]);
  await reader.close();

  // Repeated, nothing is left to do.
  expect(await rotateRoot(context, leak)).toMatchObject({ outcome: 'unchanged' });
  expect(await replaceExposedKeys(context, cascade)).toMatchObject({ auditKey: null });
  expect(await valueKeys()).toEqual(states);
});

test('I5 a standby from before a suspect root was replaced never encrypts, whichever way the operator goes', async () => {
  await containKey(context, { keyring: undefined, key: 'v1', reason: 'leaked', isRootSuspect: true });
  expect(await valueKeys()).toEqual(['decrypt_only! 1', 'destroyed 1', 'active 1', 'staged 1']);
  expect((await rootStatus(context)).next).toContain('keyturn root finalize --reencrypt');
  await expect(replaceExposedKeys(context, cascade)).rejects.toMatchObject({
    code: 'ROOT_CHANGE_REFUSED',
    message:
      'keyring customers is still under root key 1 (env:KEYTURN_ROOT_KEY), which others may hold, and a new data key would be too; replace it with: keyturn root prepare --to URI',
  });
  await prepareRoot(context, leak);
  expect((await rootStatus(context)).next).toBe('keyturn root finalize --reencrypt');
  expect(await finalizeRoot(context, { without: [], reason: 'yearly' })).toMatchObject({
    next: expect.stringMatching(/^keyturn root finalize --reencrypt:/) as string,
  });
  await expect(activate(context, undefined, 'v4', 'the standby')).rejects.toMatchObject({
    code: 'KEY_STATE_REFUSED',
    message:
      'customers v4 (id 4) was wrapped under a root key that others may hold, and will not encrypt; rotate forward with: keyturn key rotate --keyring customers',
  });
  await rotateKey(context, { keyring: undefined, ifOlderThanMs: undefined, reason: 'forward' });
  const rotated = ['decrypt_only! 1+2', 'destroyed 1', 'decrypt_only 1+2', 'destroyed 1+2', 'active 2', 'staged 2'];
  expect(await valueKeys()).toEqual(rotated);
  await expect(activate(context, undefined, 'v3', 'back')).rejects.toMatchObject({ code: 'KEY_STATE_REFUSED' });
  expect(await stageKey(context, undefined, 'test')).toMatchObject({ isNew: false, key: { id: 6 } });
  // The rest of the cascade: the active key stays, what was exposed is marked.
  expect(await replaceExposedKeys(context, cascade)).toMatchObject({
    keyrings: [{ active: { id: 5 }, keys: [{ id: 1 }, { id: 3, compromised: true }] }],
  });
  expect(await valueKeys()).toEqual([rotated[0], rotated[1], 'decrypt_only! 1+2', ...rotated.slice(3)]);
});

test('a change that was made before the leak was known is followed up: the former root key is marked then', async () => {
  await rotateRoot(context, change);
  expect(await valueKeys()).toEqual(['active 1+2', 'staged 1+2']);
  expect(await rotateRoot(context, leak)).toMatchObject({ outcome: 'unchanged', keyrings: ['customers'] });
  await replaceExposedKeys(context, cascade);
  expect(await valueKeys()).toEqual(['decrypt_only! 1+2', 'destroyed 1+2', 'active 2', 'staged 2']);
});

test('there is no way back to a root key that others may hold, and nothing takes the suspicion back', async () => {
  await rotateRoot(context, leak);
  const back = rooted.control().context;
  const refusal = {
    code: 'ROOT_CHANGE_REFUSED',
    message: expect.stringMatching(/^others may hold the root key [0-9a-f]{16} at env:KEYTURN_ROOT_KEY/) as string,
  };
  await expect(prepareRoot(back, { ...leak, to: 'env:KEYTURN_ROOT_KEY' })).rejects.toMatchObject(refusal);
  await rooted.shop.query(
    `UPDATE keyturn.root_key SET suspect_at = NULL; UPDATE keyturn.data_key SET wrapped_under = '{}'`,
  );
  await expect(rotateRoot(back, { ...leak, to: 'env:KEYTURN_ROOT_KEY' })).rejects.toMatchObject(refusal);
  expect(await valueKeys()).toEqual(['active 1+2', 'staged 1+2']);
});

test('a seal by the audit key that a leaked root wrapped is false from the record on that replaced it', async () => {
  await rotateRoot(context, leak);
  await replaceExposedKeys(context, cascade);
  const before = await verifyAudit(context, undefined);
  expect(before).toMatchObject({ intact: true });
  await rooted.shop.query(
    `INSERT INTO keyturn.audit_seal (n, data_key_id, hash, sealed_at, mac)
     SELECT n, 4294963200, hash, clock_timestamp(), decode(repeat('ab', 32), 'hex') FROM keyturn.audit_head`,
  );
  const { damage } = await verifyAudit(context, undefined);
  expect(damage).toMatchObject({
    kind: 'false_seal',
    what: expect.stringContaining('was made with an audit key that record') as string,
  });
});

test('a backup from before a change of root keys is demanded by the policy, and named as void afterwards; a leak does not wait', async () => {
  await rooted.shop.query(`UPDATE keyturn.keyring SET backup_policy = 'require'`);
  for (const verb of [prepareRoot, rotateRoot])
    await expect(verb(context, change)).rejects.toMatchObject({
      code: 'BACKUP_REQUIRED',
      message: expect.stringContaining('keys 1 and 2 are in none') as string,
    });
  await rooted.shop.query(
    `INSERT INTO keyturn.backup (taken_at, file_name, file_hash, locked_by, has_root_keys, key_ids, root_key_ids)
     VALUES (clock_timestamp(), 'keys.age', decode(repeat('00', 32), 'hex'), 'passphrase', false, '{1,2}', '{1}')`,
  );
  expect(await prepareRoot(context, change)).toMatchObject({ unbackedKeys: [] });
  expect(await finalizeRoot(context, { without: [], reason: undefined })).toMatchObject({ unbackedKeys: [1, 2] });
  const leaked = { ...leak, to: otherUri };
  expect(await rotateRoot(rooted.control().context, leaked)).toMatchObject({ outcome: 'finalized' });
});
