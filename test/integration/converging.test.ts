// I5 in a running cluster: one active key, held by every live member before it is written with; who lags is named; a
// member that lost touch stops encrypting and goes on reading.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import type { ControlContext } from '../../src/control/context.js';
import { activate, listKeys, retire, restore, rotateKey, stageKey, type KeyListing } from '../../src/control/keys.js';
import { rotateAndReencrypt } from '../../src/control/rotate-and-reencrypt.js';
import { pauseRun, resumeRun } from '../../src/control/steer-runs.js';
import { readStatus } from '../../src/control/status.js';
import { Secret } from '../../src/crypto/secret.js';
import { createColumn } from '../../src/engine/column.js';
import { startMembership, type Membership } from '../../src/engine/membership.js';
import type { Column, Keyturn } from '../../src/index.js';
import type { KeyStore } from '../../src/keys/key-store.js';
import { openRootKey } from '../../src/keys/roots/open-root-key.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { createKeyStore, getClusterId } from '../../src/store/keys.js';
import { listTargets } from '../../src/store/registry.js';
import { startDirectRunner } from '../support/direct-run.js';
import { insertMember } from '../support/members.js';
import { startPooler } from '../support/pooler.js';
import { findDifferences, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';
import { loseKey } from '../support/without-guards.js';

const here = { pk: 1, scope: 'a' };

async function keysOf(shop: Shop): Promise<readonly KeyListing[]> {
  const [keyring] = await listKeys(shop.control.context, 'customers');
  return keyring?.keys ?? [];
}

async function statesOf(shop: Shop): Promise<Record<string, string>> {
  return Object.fromEntries((await keysOf(shop)).map(({ version, state }) => [`v${version}`, state]));
}

async function noSupply(): Promise<void> {
  return undefined;
}

async function recordOf(shop: Shop): Promise<string[]> {
  const rows = await shop.query(
    `SELECT action || ' ' || object AS what FROM keyturn.audit WHERE object LIKE 'key %' ORDER BY id`,
  );
  return rows.map(({ what }) => String(what));
}

describe('who holds an activation back', () => {
  let shop: Shop;
  let patient: ControlContext;

  beforeEach(async () => {
    shop = await openShop();
    patient = { ...shop.control.context, patienceMs: 300 };
    await stageKey(patient, undefined, undefined);
  });

  afterEach(() => shop.close());

  const laggards = [
    { lacking: 'the key', member: { name: 'billing', holds: [1], writes: 1 }, why: 'does not hold key 2' },
    {
      lacking: 'the algorithm',
      member: { name: 'billing', holds: [1, 2], writes: 1, algorithms: ['aes-256-gcm'] },
      why: 'does not read xaes-256-gcm',
    },
    {
      lacking: 'the format',
      member: { name: 'billing', holds: [1, 2], writes: 1, formats: [] },
      why: 'does not read format keyturn',
    },
  ];

  for (const { lacking, member, why } of laggards) {
    test(`a live member without ${lacking} is named, and nothing changes`, async () => {
      await insertMember(shop, member);
      const before = await imageOf(shop, 'keyturn');
      const waits: string[] = [];
      const error: unknown = await activate(
        { ...patient, onProgress: (words) => waits.push(words) },
        undefined,
        undefined,
        undefined,
      ).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({
        code: 'MEMBER_BEHIND',
        kind: 'refused',
        message: `not every live member can decrypt with customers v2 (id 2): application billing (pid 42 on elsewhere) ${why}; update or stop it, then repeat the command`,
        details: { members: ['application billing (pid 42 on elsewhere)'] },
      });
      expect(waits[0]).toBe(
        `waiting until every live member can decrypt with customers v2 (id 2): application billing (pid 42 on elsewhere) ${why}`,
      );
      expect(await imageOf(shop, 'keyturn')).toEqual(before);
    });
  }

  test('a member is waited for until 45 s after its last heartbeat, and no longer', async () => {
    await insertMember(shop, { name: 'silent', holds: [1], writes: 1, silentForSeconds: 46 });
    const id = await insertMember(shop, { name: 'slow', holds: [1], writes: 1, silentForSeconds: 40 });
    await expect(activate(patient, undefined, undefined, undefined)).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      details: { members: ['application slow (pid 42 on elsewhere)'] },
    });
    await shop.query(`UPDATE keyturn.member SET heartbeat_at = clock_timestamp() - interval '45.1 s' WHERE id = $1`, [
      id,
    ]);
    expect(await activate(patient, undefined, undefined, undefined)).toMatchObject({
      key: { version: 2, state: 'active' },
    });
  });

  test('a member that holds another keyring only is not waited for', async () => {
    const id = await insertMember(shop, { name: 'elsewhere', holds: [1], writes: 1 });
    await shop.query('DELETE FROM keyturn.member_keyring WHERE member_id = $1', [id]);
    expect(await activate(patient, undefined, undefined, undefined)).toMatchObject({ key: { state: 'active' } });
  });

  test('a missing expected member holds it back, a present one does not', async () => {
    await shop.query(`INSERT INTO keyturn.expected_member VALUES ('shop')`);
    await expect(activate(patient, undefined, undefined, undefined)).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      message: expect.stringContaining('shop is expected and not live') as string,
    });
    await insertMember(shop, { name: 'shop', holds: [1, 2], writes: 2 });
    expect(await activate(patient, undefined, undefined, undefined)).toMatchObject({ key: { state: 'active' } });
  });

  test('after the activation one that still writes with the old key is named; runs wait for it too, and repeating goes on', async () => {
    const id = await insertMember(shop, { name: 'billing', holds: [1, 2], writes: 1 });
    await expect(activate(patient, undefined, undefined, undefined)).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      message:
        'not every live member writes with customers v2 (id 2): application billing (pid 42 on elsewhere) writes with key 1; update or stop it, then repeat the command',
    });
    expect(await statesOf(shop)).toEqual({ v1: 'decrypt_only', v2: 'active', v3: 'staged' });

    const runner = await startDirectRunner(shop);
    try {
      const run = await shop.order();
      await runner.step(run);
      expect(await shop.query('SELECT state, held_back_by FROM keyturn.run')).toEqual([
        {
          state: 'pending',
          held_back_by: 'waiting for application billing (pid 42 on elsewhere), which writes with key 1',
        },
      ]);
      await expect(activate(patient, undefined, '2', undefined)).rejects.toMatchObject({ code: 'MEMBER_BEHIND' });
      await shop.query('UPDATE keyturn.member_keyring SET write_key_id = 2 WHERE member_id = $1', [id]);
      expect(await activate(patient, undefined, '2', undefined)).toMatchObject({ key: { state: 'active' } });
      expect(await runner.finish(run)).toMatchObject({ state: 'succeeded' });
    } finally {
      await runner.close();
    }
    expect(await recordOf(shop)).toEqual([
      'key.stage key 1',
      'key.activate key 1',
      'key.stage key 2',
      'key.replace key 1',
      'key.activate key 2',
      'key.stage key 3',
    ]);
  });
});

describe('one key at a time', () => {
  let shop: Shop;

  beforeEach(async () => {
    shop = await openShop();
  });

  afterEach(() => shop.close());

  test('staging twice, or many times at once, makes one staged key', async () => {
    const { context } = shop.control;
    await loseKey(shop.query, 2);
    const staged = await Promise.all(Array.from({ length: 3 }, () => stageKey(context, undefined, 'why')));
    expect(staged.filter(({ isNew }) => isNew)).toHaveLength(1);
    expect(await stageKey(context, 'customers', undefined)).toMatchObject({
      isNew: false,
      key: { version: 2, state: 'staged' },
    });
    expect(await statesOf(shop)).toEqual({ v1: 'active', v2: 'staged' });
    expect(
      await shop.query(`SELECT reason FROM keyturn.audit WHERE action = 'key.stage' AND object = 'key 3'`),
    ).toEqual([{ reason: 'why' }]);
  });

  test('a rotation cut short before the activation goes on with its key whatever its age; beside a standby a young key is left alone', async () => {
    const { context } = shop.control;
    const day = 86_400_000;
    expect(await rotateKey(context, { keyring: undefined, ifOlderThanMs: day, reason: undefined })).toMatchObject({
      isNew: false,
      key: { version: 1 },
    });
    await stageKey(context, undefined, 'cut short', { isOrdered: true });
    expect(await rotateKey(context, { keyring: undefined, ifOlderThanMs: day, reason: undefined })).toMatchObject({
      key: { version: 2, state: 'active' },
    });
    expect(await rotateKey(context, { keyring: undefined, ifOlderThanMs: day, reason: undefined })).toMatchObject({
      isNew: false,
      key: { version: 2 },
    });
    await shop.query(
      `UPDATE keyturn.data_key SET activated_at = clock_timestamp() - interval '2 days' WHERE version = 2`,
    );
    expect(await rotateKey(context, { keyring: undefined, ifOlderThanMs: day, reason: undefined })).toMatchObject({
      isNew: true,
      key: { version: 3 },
    });
    expect(await statesOf(shop)).toEqual({ v1: 'decrypt_only', v2: 'decrypt_only', v3: 'active', v4: 'staged' });
  });

  for (const { when, isAhead } of [
    { when: 'side by side', isAhead: false },
    { when: 'the one far ahead of the other', isAhead: true },
  ]) {
    test(`I5 of two commands that find a rotation due at the same time one makes it and both go on with one run: ${when}`, async () => {
      await shop.query(`UPDATE keyturn.data_key SET activated_at = clock_timestamp() - interval '2 days'`);
      // Root keys are asked for when it is decided and nothing is done yet.
      const arrivals: (() => void)[] = [];
      const rotate = (reason: string): ReturnType<typeof rotateAndReencrypt> =>
        rotateAndReencrypt(
          {
            ...shop.control.context,
            async openRoots(uris, cluster) {
              if (arrivals.length < 2) await new Promise<void>((resolve) => arrivals.push(resolve));
              return shop.control.context.openRoots(uris, cluster);
            },
          },
          {
            keyring: undefined,
            ifOlderThanMs: 86_400_000,
            reason,
            acceptFailures: false,
            supply: { require: noSupply, start: noSupply },
          },
        );
      const both = [rotate('one'), rotate('other')];
      await until(async () => arrivals.length === 2, { what: 'both to find the rotation due', deadlineMs: 10_000 });
      arrivals[0]?.();
      if (isAhead) await Promise.race(both);
      arrivals[1]?.();
      const [one, other] = await Promise.all(both);
      expect([one?.key.version, other?.key.version]).toEqual([2, 2]);
      expect([one?.isNew, other?.isNew].filter(Boolean)).toHaveLength(1);
      expect(one?.report.run_id).toBe(other?.report.run_id);
      expect(await shop.query('SELECT id FROM keyturn.run')).toHaveLength(1);
      expect(await statesOf(shop)).toEqual({ v1: 'decrypt_only', v2: 'active', v3: 'staged' });
      expect((await recordOf(shop)).filter((what) => what.startsWith('key.order'))).toEqual(['key.order key 2']);
    });
  }

  test('activations at once, of the staged key and of earlier ones, end with one active key and one record for each move', async () => {
    await shop.rotate();
    await stageKey(shop.control.context, undefined, undefined);
    const names = ['v1', 'v3', 'v1', 'v3', 'v2'];
    const controls = names.map(() => openControl({ environment: shop.environment(), file: shopConfig }));
    try {
      const settled = await Promise.allSettled(
        names.map((name, at) => activate(controls[at]?.context ?? shop.control.context, undefined, name, name)),
      );
      const reasons = settled.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []));
      expect(
        reasons.filter(
          (reason) =>
            !(
              reason instanceof Error &&
              'code' in reason &&
              ['KEY_STATE_REFUSED', 'MEMBER_BEHIND'].includes(String(reason.code))
            ),
        ),
      ).toEqual([]);
      expect(settled.some((one) => one.status === 'fulfilled')).toBe(true);
    } finally {
      await Promise.all(controls.map((control) => control.close()));
    }
    const states = Object.values(await statesOf(shop));
    expect(states.filter((state) => state === 'active')).toHaveLength(1);
    const [record] = await shop.query(
      `SELECT count(*) FILTER (WHERE action = 'key.activate')::int AS activated, count(*) FILTER (WHERE action = 'key.replace')::int AS replaced FROM keyturn.audit`,
    );
    expect(record?.['replaced']).toBe(Number(record?.['activated']) - 1);
    // The generation tells every move of a key: every staged one, and one for each activation.
    const stagedKeys = states.length;
    expect(await shop.query('SELECT generation::int FROM keyturn.keyring')).toEqual([
      { generation: 1 + stagedKeys + Number(record?.['activated']) },
    ]);
  });

  test('the database itself refuses a second active and a second staged key', async () => {
    await shop.rotate();
    // Without the guard of the moves, which would refuse before.
    const unguarded = (state: string): Promise<unknown> =>
      shop.query(`BEGIN; ALTER TABLE keyturn.data_key DISABLE TRIGGER data_key_guard;
        UPDATE keyturn.data_key SET state = '${state}'; ROLLBACK`);
    await expect(unguarded('active')).rejects.toMatchObject({ code: '23505', constraint: 'data_key_one_active' });
    await expect(unguarded('staged')).rejects.toMatchObject({ code: '23505', constraint: 'data_key_one_staged' });
  });

  test('activating an earlier key is a roll back: values move back to it, and those of both keys stay readable', async () => {
    const keyturn = await shop.open();
    await insertCustomers(shop, keyturn, [1, 2, 3]);
    await keyturn.close();
    await shop.rotate();
    const runner = await startDirectRunner(shop);
    await runner.finish(await shop.order()).finally(runner.close);

    expect(await activate(shop.control.context, undefined, 'v1', 'trouble')).toMatchObject({
      key: { version: 1, state: 'active' },
    });
    expect(await statesOf(shop)).toEqual({ v1: 'active', v2: 'decrypt_only', v3: 'staged' });
    const back = await startDirectRunner(shop);
    const report = await back.finish(await shop.order()).finally(back.close);
    expect(report).toMatchObject({ state: 'succeeded', target_key_id: 1, rows_updated: 3 });
    const after = await openKeyturn({ config: shopConfig, environment: shop.environment() });
    expect(await findDifferences(shop, after)).toEqual([]);
    expect(
      await after.column('customer', 'email').decrypt(here, await after.column('customer', 'email').encrypt(here, 'x')),
    ).toMatchObject({ keyId: 1, stale: false });
    await after.close();
  });

  test('rolled back in the middle of a run, every value is readable at every moment and all converge on the earlier key', async () => {
    const keyturn = await shop.open();
    await insertCustomers(shop, keyturn, [1, 2, 3, 4, 5, 6]);
    await keyturn.close();
    const readable = async (): Promise<readonly string[]> => {
      const reader = await openKeyturn({ config: shopConfig, environment: shop.environment() });
      return findDifferences(shop, reader).finally(() => reader.close());
    };
    await shop.rotate();
    // A value that was moved forward already, and the run that was about to move the rest.
    const writer = await shop.open();
    await insertCustomers(shop, writer, [7]);
    await writer.close();
    const forward = await startDirectRunner(shop);
    const run = await shop.order();
    await forward.step(run);
    await forward.close();
    await activate(shop.control.context, undefined, 'v1', 'trouble with v2');
    expect(await readable()).toEqual([]);
    const back = await startDirectRunner(shop);
    expect(await back.finish(run).finally(back.close)).toMatchObject({
      state: 'succeeded',
      target_key_id: 1,
      fields_stale: 0,
    });
    expect(await readable()).toEqual([]);
    expect(await retire(shop.control.context, undefined, 'v2', 'rolled back')).toMatchObject({
      key: { state: 'retired' },
    });
  });

  test('I10 each move of a key leaves exactly one record with states and reason, a refused one leaves none', async () => {
    const { context } = shop.control;
    await loseKey(shop.query, 2);
    await stageKey(context, undefined, 'stage it');
    await activate(context, undefined, undefined, 'activate it');
    await retire(context, undefined, 'v1', 'retire it');
    await restore(context, undefined, 'v1', 'restore it');
    const records = await shop.query(
      `SELECT action, object, reason, before ->> 'state' AS before, after ->> 'state' AS after FROM keyturn.audit WHERE object LIKE 'key %' AND reason LIKE '% it' ORDER BY id`,
    );
    expect(records).toEqual([
      { action: 'key.stage', object: 'key 3', reason: 'stage it', before: null, after: 'staged' },
      { action: 'key.replace', object: 'key 1', reason: 'activate it', before: 'active', after: 'decrypt_only' },
      { action: 'key.activate', object: 'key 3', reason: 'activate it', before: 'staged', after: 'active' },
      { action: 'key.stage', object: 'key 4', reason: 'activate it', before: null, after: 'staged' },
      { action: 'key.fence', object: 'key 1', reason: 'retire it', before: null, after: null },
      { action: 'key.retire', object: 'key 1', reason: 'retire it', before: 'decrypt_only', after: 'retired' },
      { action: 'key.unfence', object: 'key 1', reason: 'restore it', before: null, after: null },
      { action: 'key.restore', object: 'key 1', reason: 'restore it', before: 'retired', after: 'decrypt_only' },
    ]);

    await retire(context, undefined, 'v1', undefined);
    const before = await imageOf(shop, 'keyturn');
    const refused: readonly [() => Promise<unknown>, string][] = [
      [
        () => activate(context, undefined, 'v1', undefined),
        'customers v1 (id 1) is retired and cannot become active; see: keyturn key list',
      ],
      [() => retire(context, undefined, 'v1', undefined), 'customers v1 (id 1) cannot retire: it is retired'],
      [
        () => retire(context, undefined, 'v2', undefined),
        'customers v2 (id 3) cannot retire: it is the active key; rotate first',
      ],
      [() => retire(context, undefined, 'v3', undefined), 'customers v3 (id 4) cannot retire: it is staged'],
      [
        () => restore(context, undefined, 'v2', undefined),
        'customers v2 (id 3) is active and cannot become decrypt_only; see: keyturn key list',
      ],
    ];
    for (const [attempt, message] of refused)
      await expect(attempt()).rejects.toMatchObject({ code: 'KEY_STATE_REFUSED', message });
    await expect(activate(context, undefined, 'v9', undefined)).rejects.toMatchObject({
      code: 'KEY_NOT_FOUND',
      kind: 'missing',
    });
    await expect(stageKey(context, 'patients', undefined)).rejects.toMatchObject({
      code: 'KEYRING_NOT_FOUND',
      kind: 'missing',
    });
    expect(await imageOf(shop, 'keyturn')).toEqual(before);
  });

  test('status names the next safe command at every step of a rotation', async () => {
    const { context } = shop.control;
    const next = async (): Promise<string> => (await readStatus(context)).next;
    const steps: string[] = [await next()];
    await stageKey(context, undefined, undefined, { isOrdered: true });
    steps.push(await next());
    await activate(context, undefined, undefined, undefined);
    steps.push(await next());
    const run = await shop.order();
    steps.push(await next());
    await pauseRun(context, run, undefined);
    const runner = await startDirectRunner(shop);
    try {
      await runner.step(run);
      steps.push(await next());
      await resumeRun(context, run, undefined);
      await runner.finish(run);
      steps.push(await next());
    } finally {
      await runner.close();
    }
    await retire(context, undefined, 'v1', undefined);
    steps.push(await next());
    expect(steps).toEqual([
      'nothing to do',
      'keyturn key activate --keyring customers',
      'keyturn reencrypt --keyring customers --local 2',
      `start keyturn supervisor and keyturn worker, then keyturn run watch ${run}`,
      `keyturn run show ${run}, then keyturn run resume ${run}`,
      'keyturn key retire 1 --keyring customers',
      'nothing to do',
    ]);
    const { keyrings, members, supervisor } = await readStatus(context);
    expect(keyrings).toMatchObject([
      {
        keyring: 'customers',
        active_key: 'customers v2 (id 2)',
        active_key_age_days: 0,
        staged_key: 'customers v3 (id 3)',
        staged_key_behind: [],
        decrypt_only_keys: [],
        retired_keys: ['customers v1 (id 1)'],
        targets: 1,
        laggards: [],
        last_run: { run_id: run, state: 'succeeded' },
      },
    ]);
    expect({ members, supervisor }).toEqual({ members: [], supervisor: false });
  });

  test('a staged key whose stored wrap does not open is not activated', async () => {
    await stageKey(shop.control.context, undefined, undefined);
    await shop.query(
      'UPDATE keyturn.data_key_wrap SET blob = set_byte(blob, 40, get_byte(blob, 40) # 1) WHERE data_key_id = 2',
    );
    await expect(activate(shop.control.context, undefined, undefined, undefined)).rejects.toMatchObject({
      code: 'UNWRAP_FAILED',
    });
    expect(await statesOf(shop)).toEqual({ v1: 'active', v2: 'staged' });
    await expect(shop.open()).rejects.toMatchObject({
      code: 'UNWRAP_FAILED',
      message: expect.stringContaining('data key customers v2 (id 2) does not open') as string,
    });
  });

  test('a commitment exchanged in the key table opens nothing', async () => {
    await shop.rotate();
    // The guard of the key table refuses this; somebody has switched it off.
    await shop.query('ALTER TABLE keyturn.data_key DISABLE TRIGGER data_key_guard');
    await shop.query(
      'UPDATE keyturn.data_key SET commitment = (SELECT commitment FROM keyturn.data_key WHERE id = 1) WHERE id = 2',
    );
    await expect(shop.open()).rejects.toMatchObject({ code: 'UNWRAP_FAILED' });
  });
});

describe('members', () => {
  interface OwnMember {
    readonly membership: Membership;
    readonly database: Database;
    readonly email: Column;
    /** Reads of a whole keyring so far. */
    reads(): number;
    close(): Promise<void>;
  }

  async function join(
    shop: Shop,
    options: { url?: string; now?: () => number; store?: (store: KeyStore) => KeyStore } = {},
  ): Promise<OwnMember> {
    const database = openDatabase({
      url: new Secret(options.url ?? shop.url),
      maxConnections: 3,
      applicationName: 'own member',
    });
    const cluster = await getClusterId(database);
    const store = createKeyStore(database);
    let reads = 0;
    const counting: KeyStore = {
      generations: () => store.generations(),
      findKeyring(name) {
        reads++;
        return store.findKeyring(name);
      },
    };
    const membership = await startMembership({
      database,
      store: options.store?.(counting) ?? counting,
      kind: 'application',
      name: 'own',
      version: 'test',
      keyrings: ['customers'],
      openRoots: async () => [await openRootKey('env:KEYTURN_ROOT_KEY', { cluster, env: shop.environment() })],
      onTrouble: () => undefined,
      ...(options.now === undefined ? {} : { now: options.now }),
    });
    const [target] = await listTargets(database);
    if (target === undefined) throw new Error('the shop has no target');
    return {
      membership,
      database,
      email: createColumn(membership, target, 'email', { offer: () => undefined }),
      reads: () => reads,
      async close() {
        await membership.close();
        await database.close();
      },
    };
  }

  async function inShop(work: (shop: Shop) => Promise<void>): Promise<void> {
    const shop = await openShop();
    await work(shop).finally(() => shop.close());
  }

  test.concurrent('whatever one member writes during a rotation, the other reads at once; afterwards both write with the new key', () =>
    inShop(async (shop) => {
      const [one, other] = await Promise.all([shop.open('one'), shop.open('other')]);
      const columns = [one, other].map((keyturn: Keyturn) => keyturn.column('customer', 'email')) as [Column, Column];
      let isOver = false;
      const seen = new Set<unknown>();
      const exchange = async ([writer, reader]: readonly [Column, Column]): Promise<void> => {
        while (!isOver) {
          const { keyId } = await reader.decrypt(here, await writer.encrypt(here, 'x'));
          seen.add(keyId);
          await new Promise(setImmediate);
        }
      };
      const exchanges = [exchange(columns), exchange([columns[1], columns[0]])];
      const { key } = await rotateKey(shop.control.context, {
        keyring: undefined,
        ifOlderThanMs: undefined,
        reason: undefined,
      });
      const after = await Promise.all(
        columns.map(async (column) => column.decrypt(here, await column.encrypt(here, 'x'))),
      );
      isOver = true;
      await Promise.all(exchanges);
      expect(after.map(({ keyId }) => keyId)).toEqual([key.id, key.id]);
      expect([...seen]).toEqual([1, key.id]);
    }));

  test.concurrent('a snapshot older than 30 s decrypts and does not encrypt, until the control tables answer again', () =>
    inShop(async (shop) => {
      let ahead = 0;
      const own = await join(shop, { now: () => performance.now() + ahead });
      try {
        const stored = await own.email.encrypt(here, 'x');
        ahead = 24_000;
        expect(await own.email.decrypt(here, await own.email.encrypt(here, 'x'))).toMatchObject({ plaintext: 'x' });
        ahead = 31_000;
        await expect(own.email.encrypt(here, 'x')).rejects.toMatchObject({
          code: 'KEYRING_STALE',
          kind: 'unavailable',
          message: expect.stringMatching(
            /^the snapshot of keyring customers is 3\d s old, over 30 s; encrypting stops until the control tables answer again$/,
          ) as string,
        });
        expect(await own.email.decrypt(here, stored)).toMatchObject({ plaintext: 'x' });
        await until(
          async () =>
            own.email.encrypt(here, 'x').then(
              () => true,
              () => false,
            ),
          { what: 'the next refresh', deadlineMs: 20_000 },
        );
      } finally {
        await own.close();
      }
    }));

  test.concurrent('a member whose database is away goes on reading, and stops encrypting after 30 s', () =>
    inShop(async (shop) => {
      const line = await startPooler(shop.url);
      let ahead = 0;
      const own = await join(shop, { url: line.url, now: () => performance.now() + ahead });
      try {
        const stored = await own.email.encrypt(here, 'x');
        await line.close();
        ahead = 31_000;
        await expect(own.email.encrypt(here, 'x')).rejects.toMatchObject({ code: 'KEYRING_STALE' });
        expect(await own.email.decrypt(here, stored)).toMatchObject({ plaintext: 'x' });
      } finally {
        await own.close();
      }
    }));

  test.concurrent('a member that can read the keys but not report itself stops encrypting after 30 s: nobody waits for it any more', () =>
    inShop(async (shop) => {
      let ahead = 0;
      const own = await join(shop, { now: () => performance.now() + ahead });
      try {
        await shop.query('ALTER TABLE keyturn.member ADD CONSTRAINT full_up CHECK (false) NOT VALID');
        const readsBefore = await shop.query(`SELECT generation FROM keyturn.keyring`);
        expect(readsBefore).toHaveLength(1);
        ahead = 31_000;
        await expect(own.email.encrypt(here, 'x')).rejects.toMatchObject({ code: 'KEYRING_STALE' });
        // A refresh of the keys alone does not make it a member again.
        await own.membership.refresh('customers');
        await expect(own.email.encrypt(here, 'x')).rejects.toMatchObject({ code: 'KEYRING_STALE' });
      } finally {
        await shop.query('ALTER TABLE keyturn.member DROP CONSTRAINT full_up');
        await own.close();
      }
    }));

  test.concurrent('an unknown key id makes one refresh of the whole keyring, shared by all who wait and at most one a second', () =>
    inShop(async (shop) => {
      let ahead = 0;
      const own = await join(shop, { now: () => performance.now() + ahead });
      try {
        const stored = await own.email.encrypt(here, 'x');
        // As if it were frozen: nobody waits for it, so it does not know the new key.
        await shop.query('DELETE FROM keyturn.member');
        // It holds the standby; the key after that is unknown to it.
        await shop.rotate();
        await shop.rotate();
        const other = await openKeyturn({ config: shopConfig, environment: shop.environment() });
        const newer = String(await other.column('customer', 'email').encrypt(here, 'new'));
        await other.close();
        ahead = 2_000;
        const before = own.reads();
        const read = await Promise.all(Array.from({ length: 10 }, () => own.email.decrypt(here, newer)));
        expect(read.every(({ plaintext, stale }) => plaintext === 'new' && !stale)).toBe(true);
        expect(own.reads() - before).toBeLessThanOrEqual(1);

        // Key 99 exists nowhere; asking for it again and again reads nothing.
        const nowhere = `kt1.${Buffer.concat([Buffer.from('4b54010200000063', 'hex'), Buffer.alloc(60, 1)]).toString('base64url')}`;
        const afterwards = own.reads();
        const asked = await Promise.allSettled(Array.from({ length: 50 }, () => own.email.decrypt(here, nowhere)));
        expect(
          asked.filter((one) => one.status === 'rejected' && (one.reason as { code?: string }).code === 'KEY_NOT_HELD'),
        ).toHaveLength(50);
        expect(own.reads() - afterwards).toBe(0);
        expect(await own.email.decrypt(here, stored)).toMatchObject({ plaintext: 'x', stale: true });
      } finally {
        await own.close();
      }
    }));

  test.concurrent('a read that was slower than a newer one does not bring the older keyring back', () =>
    inShop(async (shop) => {
      let release: () => void = () => undefined;
      let ahead = 0;
      let delayNext = false;
      const own = await join(shop, {
        now: () => performance.now() + ahead,
        store: (store) => ({
          ...store,
          async findKeyring(name) {
            const isDelayed = delayNext;
            delayNext = false;
            const found = await store.findKeyring(name);
            if (isDelayed) await new Promise<void>((resolve) => (release = resolve));
            return found;
          },
        }),
      });
      try {
        ahead = 2_000;
        delayNext = true;
        const reads = own.reads();
        const slow = own.membership.refresh('customers');
        await until(async () => own.reads() > reads, { what: 'the slow read to begin', deadlineMs: 5_000 });
        await shop.query('DELETE FROM keyturn.member');
        const keyId = await shop.rotate();
        await until(async () => own.membership.current('customers').active?.id === keyId, {
          what: 'the next cycle',
          deadlineMs: 20_000,
        });
        release();
        expect((await slow).active?.id).toBe(keyId);
        expect(own.membership.current('customers').active?.id).toBe(keyId);
      } finally {
        release();
        await own.close();
      }
    }));
});
