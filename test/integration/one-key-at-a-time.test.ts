// I5 whatever is asked for twice, at once or half: one active key and at most one staged key, one record for each move, and
// a way back.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import { activate, retire, restore, rotateKey, stageKey } from '../../src/control/keys.js';
import { rotateAndReencrypt } from '../../src/control/rotate-and-reencrypt.js';
import { pauseRun, resumeRun } from '../../src/control/steer-runs.js';
import { readStatus } from '../../src/control/status.js';
import { startDirectRunner } from '../support/direct-run.js';
import { recordOf, statesOf } from '../support/key-record.js';
import { findDifferences, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';
import { loseKey } from '../support/without-guards.js';

const here = { pk: 1, scope: 'a' };

async function noSupply(): Promise<void> {
  return undefined;
}

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
