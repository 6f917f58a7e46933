// I5 in a running cluster: a key is held by every live member before it is written with, and who lags is named.
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { ControlContext } from '../../src/control/context.js';
import { activate, stageKey } from '../../src/control/keys.js';
import { startDirectRunner } from '../support/direct-run.js';
import { recordOf, statesOf } from '../support/key-record.js';
import { insertMember } from '../support/members.js';
import { openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

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
