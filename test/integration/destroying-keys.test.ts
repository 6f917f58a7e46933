// I6 to the end: a key is destroyed after the waiting time, with a second database login, by a proof of the last moment, and
// otherwise not; nor does plain SQL of whoever owns the schema get there. A failure anywhere leaves before or after.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { approveAndDestroy, askForDestruction, cancelRequest } from '../../src/control/destroy-key.js';
import { restore, retire, type KeyListing } from '../../src/control/keys.js';
import { examineEverything } from '../../src/control/doctor.js';
import { readStatus } from '../../src/control/status.js';
import { keyMoves, type KeyState } from '../../src/keys/states.js';
import { runCapturedWith } from '../cli/captured.js';
import { startChild } from '../support/child.js';
import type { ControlContext } from '../../src/control/context.js';
import { readOnlySnapshot, sqlstateOf } from '../../src/store/database.js';
import {
  createPerson,
  envelopeNaming,
  hashOf,
  passWait,
  replacedKey,
  retiredKey,
  stateOf,
  wrapsOf,
  type Person,
} from '../support/ending-keys.js';
import { failEndings, failRetirement } from '../support/failing-endings.js';
import { isTelling, raceDestruction } from '../support/racing-destruction.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

let shop: Shop;
let ada: Person;
let bob: Person;

beforeAll(async () => {
  shop = await openShop();
  ada = await createPerson(shop, shopConfig);
  bob = await createPerson(shop, shopConfig);
});
afterAll(async () => {
  await ada.leave();
  await bob.leave();
  await shop.close();
  await ada.role.drop();
  await bob.role.drop();
});

const sql = (person: Person, text: string, parameters?: unknown[]): Promise<unknown> =>
  person.context.database.query(text, parameters);

/** Asked for by Ada, the waiting time over. */
async function dueKey(): Promise<{ key: KeyListing; hash: string }> {
  const key = await retiredKey(shop);
  await askForDestruction(ada.context, undefined, String(key.id), { reason: 'test' });
  await passWait(shop);
  return { key, hash: await hashOf(shop, key) };
}

describe('destroying a key', () => {
  test('I6 I10 takes a request, the waiting time and another login; the row stays, and each step is recorded', async () => {
    const key = await retiredKey(shop);
    const { destruction } = await askForDestruction(ada.context, undefined, String(key.id), {
      reason: 'contract ended',
    });
    expect(destruction).toMatchObject({ requested_by: ada.role.name, is_due: false, approved_by: null });
    expect(Date.parse(destruction.not_before) - Date.parse(destruction.requested_at)).toBe(30 * 86_400_000);
    expect(JSON.parse(destruction.canonical)).toMatchObject({
      key: key.id,
      reason: 'contract ended',
      requested_by: ada.role.name,
      evidence: [expect.any(Number)],
    });
    expect((await readStatus(bob.context)).keyrings[0]?.pending_destructions).toMatchObject([
      { hash: destruction.hash },
    ]);
    const shown = await runCapturedWith(
      { openControl: () => ({ context: bob.context, close: () => Promise.resolve() }) },
      'status',
    );
    expect(shown.stdout).toMatch(
      new RegExp(
        `to destroy +customers v${key.version} \\(id ${key.id}\\): request \\d+ of ${ada.role.name}, from .*, hash ${destruction.hash}`,
      ),
    );
    const early = approveAndDestroy(bob.context, undefined, String(key.id), destruction.hash, 'fine');
    expect(await early.catch((error: unknown) => error)).toMatchObject({ code: 'APPROVAL_REFUSED', kind: 'refused' });
    await passWait(shop);
    // Of another waiting time it is another request: what was read before counts no more.
    const stale = approveAndDestroy(bob.context, undefined, String(key.id), destruction.hash, 'fine');
    await expect(stale).rejects.toMatchObject({ code: 'APPROVAL_REFUSED' });
    const hash = await hashOf(shop, key);
    await expect(approveAndDestroy(ada.context, undefined, String(key.id), hash, 'me again')).rejects.toMatchObject({
      code: 'APPROVAL_REFUSED',
      message: expect.stringContaining('it takes another database login') as string,
    });
    expect(await wrapsOf(shop, key.id)).toBe(1);
    expect(await approveAndDestroy(bob.context, undefined, String(key.id), hash, 'fine')).toMatchObject({
      key: { state: 'destroyed', wraps: 0, fingerprint: key.fingerprint },
      approved_by: bob.role.name,
    });
    expect(await stateOf(shop, key.id)).toBe('destroyed');
    expect(
      await shop.query(
        `SELECT action, actor FROM keyturn.audit WHERE object = $1 AND action LIKE 'key.destroy%' ORDER BY id`,
        [`key ${key.id}`],
      ),
    ).toEqual([
      { action: 'key.destroy.request', actor: ada.role.name },
      { action: 'key.destroy.approve', actor: bob.role.name },
      { action: 'key.destroy', actor: bob.role.name },
    ]);
    // Its fence stays, and nothing brings it back.
    await expect(
      shop.query('INSERT INTO customer (id, tenant_id, email) VALUES (1, $1, $2)', [
        'a',
        await envelopeNaming(shop, key),
      ]),
    ).rejects.toMatchObject({ code: 'KTF01' });
    await expect(restore(shop.control.context, undefined, String(key.id), 'back')).rejects.toMatchObject({
      code: 'KEY_STATE_REFUSED',
    });
  });

  test('a request needs a reason, a retired key and seven days unless the key was never active; there is one at a time', async () => {
    const key = await replacedKey(shop);
    const ask = (options: { reason: string | undefined; waitDays?: number }): Promise<unknown> =>
      askForDestruction(ada.context, undefined, String(key.id), options);
    await expect(ask({ reason: 'x' })).rejects.toMatchObject({ code: 'KEY_STATE_REFUSED' });
    await retire(shop.control.context, undefined, String(key.id), 'test');
    await expect(ask({ reason: undefined })).rejects.toMatchObject({ code: 'USAGE' });
    await expect(ask({ reason: 'x', waitDays: 6 })).rejects.toMatchObject({ code: 'USAGE' });
    const insert = `INSERT INTO keyturn.destruction (data_key_id, wait_days, reason) VALUES ($1, 6, 'x')`;
    await expect(sql(ada, insert, [key.id])).rejects.toMatchObject({ details: { sqlstate: 'KTG01' } });
    await ask({ reason: 'x', waitDays: 7 });
    const back = `take it back with: keyturn key destroy ${key.id} --keyring customers --cancel`;
    for (const attempt of [
      () => ask({ reason: 'x' }),
      () => restore(shop.control.context, undefined, String(key.id), 'needed'),
    ])
      await expect(attempt()).rejects.toMatchObject({
        code: 'KEY_STATE_REFUSED',
        message: expect.stringContaining(back) as string,
      });
    await cancelRequest(ada.context, undefined, String(key.id), 'test');
    expect(await stateOf(shop, key.id)).toBe('retired');
    await expect(cancelRequest(ada.context, undefined, String(key.id), 'test')).rejects.toMatchObject({
      code: 'KEY_STATE_REFUSED',
    });
    await expect(approveAndDestroy(bob.context, undefined, String(key.id), '1', 'x')).rejects.toMatchObject({
      code: 'DESTRUCTION_NOT_FOUND',
      message: expect.stringContaining('keyturn key list, keyturn audit list') as string,
    });
  });

  test('an approval counts for one request, for an hour, and ends with the request', async () => {
    const { key, hash } = await dueKey();
    const approve = `UPDATE keyturn.destruction SET approved_by = 'whoever' WHERE data_key_id = $1 AND outcome IS NULL`;
    await sql(bob, approve, [key.id]);
    expect(await shop.query('SELECT approved_by FROM keyturn.destruction WHERE outcome IS NULL')).toEqual([
      { approved_by: bob.role.name },
    ]);
    await cancelRequest(ada.context, undefined, String(key.id), 'changed my mind');
    await askForDestruction(ada.context, undefined, String(key.id), { reason: 'again' });
    await passWait(shop);
    await expect(approveAndDestroy(ada.context, undefined, String(key.id), hash, 'x')).rejects.toMatchObject({
      code: 'APPROVAL_REFUSED',
    });
    await expect(
      approveAndDestroy(ada.context, undefined, String(key.id), await hashOf(shop, key), 'x'),
    ).rejects.toMatchObject({ code: 'APPROVAL_REFUSED' });
    await sql(bob, approve, [key.id]);
    await shop.query(`BEGIN; ALTER TABLE keyturn.destruction DISABLE TRIGGER destruction_guard;
      UPDATE keyturn.destruction SET approved_at = approved_at - interval '61 minutes' WHERE outcome IS NULL;
      ALTER TABLE keyturn.destruction ENABLE ALWAYS TRIGGER destruction_guard; COMMIT`);
    await expect(
      approveAndDestroy(ada.context, undefined, String(key.id), await hashOf(shop, key), 'x'),
    ).rejects.toMatchObject({ code: 'APPROVAL_REFUSED' });
    // With a standing approval it may be the first login that carries it out.
    await sql(bob, approve, [key.id]);
    expect(await approveAndDestroy(ada.context, undefined, String(key.id), await hashOf(shop, key), 'x')).toMatchObject(
      {
        key: { state: 'destroyed' },
        approved_by: bob.role.name,
      },
    );
  });

  test('I6 a value that came in by a fence that was away stops it, and so does the fence that is not the same', async () => {
    const { key, hash } = await dueKey();
    await shop.query('ALTER TABLE customer DISABLE TRIGGER zz_keyturn_fence_insert');
    await shop.query('INSERT INTO customer (id, tenant_id, email) VALUES (7, $1, $2)', [
      'a',
      await envelopeNaming(shop, key),
    ]);
    const destroy = (): Promise<unknown> => approveAndDestroy(bob.context, undefined, String(key.id), hash, 'x');
    await expect(destroy()).rejects.toMatchObject({
      code: 'KEY_IN_USE',
      message: expect.stringContaining('its fence does not stand as it should') as string,
    });
    await shop.query('ALTER TABLE customer ENABLE ALWAYS TRIGGER zz_keyturn_fence_insert');
    await expect(destroy()).rejects.toMatchObject({
      code: 'KEY_IN_USE',
      message: expect.stringContaining('still named by 1 cells of public.customer.email') as string,
    });
    expect(await wrapsOf(shop, key.id)).toBe(1);
    await shop.query('DELETE FROM customer');
    expect(await destroy()).toMatchObject({ key: { state: 'destroyed' } });
  });
});

describe('a fence that is lowered and raised again during the scan', () => {
  /** The same context, in which every scan is followed by that. */
  function touching({ database, ...context }: ControlContext): ControlContext {
    const touched: typeof database = {
      ...database,
      async transaction(work, begin) {
        const result = await database.transaction(work, begin);
        if (begin?.startsWith(readOnlySnapshot) === true)
          for (const how of ['DISABLE', 'ENABLE ALWAYS'])
            await shop.query(`ALTER TABLE customer ${how} TRIGGER zz_keyturn_fence_insert`);
        return result;
      },
    };
    return { ...context, database: touched };
  }
  const refused = {
    code: 'KEY_IN_USE',
    message: expect.stringContaining(
      'was changed during the scan (public.customer), so the scan proves nothing',
    ) as string,
  };

  test('I6 does not let the key retire', async () => {
    const key = await replacedKey(shop);
    const attempt = retire(touching(shop.control.context), undefined, String(key.id), 'test');
    expect(await attempt.catch((error: unknown) => error)).toMatchObject(refused);
    expect(await stateOf(shop, key.id)).toBe('decrypt_only');
  });

  test('I6 does not let the key be destroyed', async () => {
    const { key, hash } = await dueKey();
    const attempt = approveAndDestroy(touching(bob.context), undefined, String(key.id), hash, 'test');
    expect(await attempt.catch((error: unknown) => error)).toMatchObject(refused);
    expect(await wrapsOf(shop, key.id)).toBe(1);
    await cancelRequest(ada.context, undefined, String(key.id), 'test');
  });
});

describe('one login alone', () => {
  test('I6 gets to no destroyed key by plain SQL, though it owns the schema', async () => {
    const { key } = await dueKey();
    const attempts = [
      `UPDATE keyturn.data_key SET state = 'destroyed' WHERE id = ${key.id}`,
      `UPDATE keyturn.destruction SET approved_by = '${bob.role.name}' WHERE outcome IS NULL`,
      `UPDATE keyturn.destruction SET approved_by = '${bob.role.name}', approved_at = clock_timestamp(), requested_by = 'x' WHERE outcome IS NULL`,
      `UPDATE keyturn.destruction SET requested_by = '${bob.role.name}' WHERE outcome IS NULL`,
      `UPDATE keyturn.destruction SET not_before = '-infinity' WHERE outcome IS NULL`,
      `UPDATE keyturn.destruction SET outcome = 'destroyed', ended_at = clock_timestamp() WHERE outcome IS NULL`,
      `DELETE FROM keyturn.destruction`,
      'TRUNCATE keyturn.destruction',
      `DELETE FROM keyturn.data_key WHERE id = ${key.id}`,
      `DELETE FROM keyturn.data_key_wrap WHERE data_key_id = ${key.id}`,
      'TRUNCATE keyturn.data_key_wrap',
      'DELETE FROM keyturn.retirement',
      `UPDATE keyturn.retirement SET evidence = '{}'`,
      `UPDATE keyturn.data_key SET id = 4000 WHERE id = ${key.id}`,
      `UPDATE keyturn.data_key SET activated_at = NULL WHERE id = ${key.id}`,
      `UPDATE keyturn.data_key SET commitment = sha256('x') WHERE id = ${key.id}`,
      `WITH gone AS (DELETE FROM keyturn.data_key_wrap WHERE data_key_id = ${key.id}) UPDATE keyturn.data_key SET state = 'destroyed' WHERE id = ${key.id}`,
    ];
    for (const attempt of attempts) {
      const error: unknown = await sql(ada, attempt).catch((thrown: unknown) => thrown);
      expect({ attempt, error }).toMatchObject({ error: { details: { sqlstate: 'KTG01' } } });
    }
    for (const attempt of ['SET session_replication_role = replica', `SET SESSION AUTHORIZATION ${bob.role.name}`])
      await expect(sql(ada, attempt)).rejects.toMatchObject({ code: 'FORBIDDEN' });
    // Another role is not another login.
    const asOther = ada.context.database.transaction(async (client) => {
      await client.query(`SET LOCAL ROLE ${new URL(shop.url).username}`);
      await client.query(`UPDATE keyturn.destruction SET approved_by = 'x' WHERE outcome IS NULL`);
    });
    await expect(asOther).rejects.toMatchObject({ details: { sqlstate: 'KTG01' } });
    expect(await stateOf(shop, key.id)).toBe('pending_destruction');
    expect(await wrapsOf(shop, key.id)).toBe(1);
    await cancelRequest(ada.context, undefined, String(key.id), 'test');
  });

  test('that owns the schema can switch the guards off, which docs/retiring.md says and doctor shows', async () => {
    const { key } = await dueKey();
    await sql(ada, 'ALTER TABLE keyturn.destruction DISABLE TRIGGER destruction_guard');
    const findings = (await examineEverything(bob.context)).filter(({ check }) => check === 'guards');
    expect(findings).toMatchObject([
      { level: 'warn', reason: expect.stringMatching(/off or gone: destruction_guard$/) as string },
    ]);
    await sql(ada, 'ALTER TABLE keyturn.destruction ENABLE ALWAYS TRIGGER destruction_guard');
    expect((await examineEverything(bob.context)).filter(({ check }) => check === 'guards')).toEqual([]);
    await cancelRequest(ada.context, undefined, String(key.id), 'test');
  });
});

describe('the states in the database', () => {
  const states = Object.keys(keyMoves) as KeyState[];

  test('I6 allows the legal moves of a key and none other', async () => {
    const key = await replacedKey(shop);
    const found: string[] = [];
    for (const from of states)
      for (const to of states.filter((state) => state !== from)) {
        // Put where it shall start by a superuser, with all that the move itself needs; taken back in the end.
        const end = await shop.control.context.database
          .transaction(async (client) => {
            await client.query('ALTER TABLE keyturn.data_key DISABLE TRIGGER data_key_guard');
            await client.query(`DROP INDEX keyturn.data_key_one_active, keyturn.data_key_one_staged`);
            const wasActive = from === 'staged' ? 'NULL' : 'activated_at';
            await client.query(`UPDATE keyturn.data_key SET state = $2, activated_at = ${wasActive} WHERE id = $1`, [
              key.id,
              from,
            ]);
            await client.query('ALTER TABLE keyturn.destruction DISABLE TRIGGER destruction_guard');
            await client.query(
              `INSERT INTO keyturn.destruction (data_key_id, wait_days, reason, not_before, request, hash, requested_by, requested_at, approved_by, approved_at)
               VALUES ($1, 0, 'x', '-infinity', '', sha256(''), 'x', now(), 'y', clock_timestamp())`,
              [key.id],
            );
            const asked = 'keyturn.destruction_request(d)';
            await client.query(`UPDATE keyturn.destruction d SET not_before = 'epoch' WHERE outcome IS NULL`);
            await client.query(
              `UPDATE keyturn.destruction d SET request = ${asked}, hash = sha256(convert_to(${asked}, 'UTF8')) WHERE outcome IS NULL`,
            );
            await client.query('ALTER TABLE keyturn.destruction ENABLE ALWAYS TRIGGER destruction_guard');
            await client.query('ALTER TABLE keyturn.data_key ENABLE ALWAYS TRIGGER data_key_guard');
            await client.query('DELETE FROM keyturn.data_key_wrap WHERE data_key_id = $1', [key.id]);
            await client.query('UPDATE keyturn.data_key SET state = $2 WHERE id = $1', [key.id, to]);
            throw new Error('moved');
          })
          .catch((error: unknown) => error);
        const how = end instanceof Error && end.message === 'moved' ? 'moved' : sqlstateOf(end);
        expect(['moved', 'KTG01']).toContain(how);
        if (how === 'moved') found.push(`${from} → ${to}`);
      }
    expect(found).toEqual(
      states.flatMap((from) => states.filter((to) => keyMoves[from].includes(to)).map((to) => `${from} → ${to}`)),
    );
  });
});

describe('a failure', () => {
  test('I6 of some statements of each verb, the others in test/chaos, leaves before or after, and the next one works', {
    timeout: 120_000,
  }, async () => {
    const some = { from: 1 + Math.floor(Math.random() * 7), step: 7 };
    process.stdout.write(`statements ${some.from}, ${some.from + some.step}, … fail\n`);
    expect(await failRetirement({ shop, ada, bob }, some)).toBeGreaterThan(20);
    expect(await failEndings({ shop, ada, bob }, some)).toBeGreaterThan(20);
  });

  const deaths = [
    { verb: 'retire', point: 'fence.before_ddl' },
    { verb: 'retire', point: 'fence.after_ddl' },
    { verb: 'retire', point: 'retire.after_scan' },
    { verb: 'retire', point: 'retire.before_state' },
    { verb: 'destroy', point: 'destroy.before' },
    { verb: 'destroy', point: 'destroy.after_null_before_audit' },
  ] as const;

  test.each(deaths)(
    'I6 a SIGKILL at $point leaves the key whole, and the command repeated goes on',
    { timeout: 60_000 },
    async ({ verb, point }) => {
      const due = verb === 'destroy' ? await dueKey() : undefined;
      const key = due?.key ?? (await replacedKey(shop));
      const name = String(key.id);
      const child = startChild('key-ender', {
        env: { ...shop.environment(), DATABASE_URL: bob.role.urlFor(shop.url) },
        onlyEnv: true,
        args: [verb, name, point, due?.hash ?? ''],
      });
      await child.waitForLine(/^reached/, 30_000);
      expect(await child.waitForExit(30_000)).toMatchObject({ signal: 'SIGKILL' });
      await until(
        async () =>
          (
            await shop.query(
              `SELECT FROM pg_stat_activity WHERE usename = $1 AND application_name <> '' AND pid IN
          (SELECT pid FROM pg_locks WHERE locktype = 'transactionid')`,
              [bob.role.name],
            )
          ).length === 0,
        { what: 'the killed transaction to end', deadlineMs: 20_000 },
      );
      expect(await stateOf(shop, key.id)).toBe(verb === 'retire' ? 'decrypt_only' : 'pending_destruction');
      expect(await wrapsOf(shop, key.id)).toBe(1);
      const repeated =
        due === undefined
          ? await retire(bob.context, undefined, name, 'again')
          : await approveAndDestroy(ada.context, undefined, name, due.hash, 'again');
      expect(repeated).toMatchObject({ key: { state: due === undefined ? 'retired' : 'destroyed' } });
    },
  );
});

describe('late writers', () => {
  test('I6 in random interleavings with retirement and destruction never leave an envelope behind a destroyed key', {
    timeout: 120_000,
  }, async () => {
    // What an interleaving comes to also hangs on how long statements take, so a seed alone does not fix it.
    const ends = await raceDestruction({ shop, ada, bob }, { interleavings: 8, most: 40, seed: 1 });
    expect(ends.violations).toEqual([]);
    expect(isTelling(ends)).toBe(true);
  });
});
