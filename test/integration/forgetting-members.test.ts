// The operator and the members: who is listed, who is expected, going on without one, forgetting one, and what it means for a
// process that runs on.
import { describe, expect, test, type TestContext } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ControlContext } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { activate, rotateKey, stageKey } from '../../src/control/keys.js';
import { forget, listMemberListings } from '../../src/control/members.js';
import { startChild } from '../support/child.js';
import { insertMember } from '../support/members.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const deadlineMs = 60_000;

interface Operated {
  readonly shop: Shop;
  readonly context: ControlContext;
  records(action: string): Promise<Record<string, unknown>[]>;
}

/** A shop that expects `shop` among the live members, and an operator who does not wait long. */
async function openOperated({ onTestFinished }: Pick<TestContext, 'onTestFinished'>): Promise<Operated> {
  const shop = await openShop({ config: { ...shopConfig, expect_members: ['shop'] } });
  onTestFinished(() => shop.close());
  return {
    shop,
    context: { ...shop.control.context, patienceMs: 300 },
    records: (action) =>
      shop.query('SELECT object, reason, before, after FROM keyturn.audit WHERE action = $1 ORDER BY id', [action]),
  };
}

describe.concurrent('expected members', () => {
  test('init records them, for processes that never read the file, and again only when they change', async (running) => {
    const { shop, context, records } = await openOperated(running);
    expect(await records('member.expect')).toEqual([
      { object: 'expected members', reason: 'keyturn.yaml', before: { names: [] }, after: { names: ['shop'] } },
    ]);
    const again = openControl({ environment: shop.environment(), file: { ...shopConfig, expect_members: ['shop'] } });
    await init(again.context);
    await again.close();
    expect(await records('member.expect')).toHaveLength(1);

    expect(await listMemberListings(context)).toEqual({ members: [], missing: ['shop'] });
    await expect(
      rotateKey(context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined }),
    ).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      message: expect.stringContaining('shop is expected and not live') as string,
    });
  });

  test('one that is live is listed with what it holds, and is not missing', async (running) => {
    const { shop, context } = await openOperated(running);
    const keyturn = await shop.open('shop');
    const { members, missing } = await listMemberListings(context);
    expect(missing).toEqual([]);
    expect(members).toMatchObject([
      {
        name: 'shop',
        kind: 'application',
        pid: process.pid,
        live: true,
        expected: true,
        formats: ['keyturn'],
        keyrings: [
          {
            keyring: 'customers',
            generation: 4,
            newest_generation: 4,
            writes_with: 'customers v1 (id 1)',
            holds_key_ids: [2, 1],
          },
        ],
      },
    ]);
    expect(members[0]?.silent_seconds).toBeLessThan(45);
    await keyturn.close();
  });
});

describe.concurrent('I5 going on without a member', () => {
  test('it is named with its reason, and what will fail there is said and recorded', async (running) => {
    const { shop, context, records } = await openOperated(running);
    await insertMember(shop, { name: 'billing', holds: [1], writes: 1 });
    await stageKey(context, undefined, undefined);
    const without = ['billing', 'shop'];
    await expect(activate(context, undefined, undefined, 'test', ['billing'])).rejects.toMatchObject({
      code: 'MEMBER_BEHIND',
      details: { members: ['shop'] },
    });
    await expect(activate(context, undefined, undefined, undefined, without)).rejects.toMatchObject({ code: 'USAGE' });
    await expect(activate(context, undefined, undefined, 'test', [...without, 'biling'])).rejects.toMatchObject({
      code: 'MEMBER_NOT_FOUND',
      message: expect.stringContaining('there is no member "biling"') as string,
    });
    expect(await records('key.activate')).toHaveLength(1);

    const activated = await activate(context, undefined, undefined, 'down until Monday', without);
    expect(activated).toMatchObject({
      key: { version: 2, state: 'active' },
      without: [
        {
          member: 'application billing (pid 42 on elsewhere)',
          why: 'does not hold key 2',
          fails: expect.stringMatching(/cannot read values written with customers v2 \(id 2\)/) as string,
        },
        { member: 'shop', why: 'is expected and not live' },
      ],
    });
    expect(await records('key.activate.without')).toEqual([
      {
        object: 'key 2',
        reason: 'down until Monday',
        before: null,
        after: {
          without: ['application billing (pid 42 on elsewhere) does not hold key 2', 'shop is expected and not live'],
        },
      },
    ]);
  });

  test('another process of that name that is behind is not waited for, one of another name is', async (running) => {
    const { shop, context } = await openOperated(running);
    await insertMember(shop, { name: 'shop', holds: [1, 2], writes: 2 });
    const id = await insertMember(shop, { name: 'billing', holds: [1], writes: 1 });
    await insertMember(shop, { name: 'billing', holds: [1], writes: 1 });
    const options = { keyring: undefined, ifOlderThanMs: undefined, reason: 'test' };
    await expect(rotateKey(context, { ...options, without: [id] })).rejects.toMatchObject({ code: 'MEMBER_BEHIND' });
    expect(await rotateKey(context, { ...options, without: ['billing'] })).toMatchObject({
      isNew: true,
      key: { state: 'active' },
      without: [{ why: 'does not hold key 2' }, { why: 'does not hold key 2' }],
    });
  });
});

describe.concurrent('forgetting a member', () => {
  test('a silent one goes and is not expected any more; a stranger is refused', async (running) => {
    const { shop, context, records } = await openOperated(running);
    const id = await insertMember(shop, { name: 'shop', holds: [1], writes: 1, silentForSeconds: 46 });
    expect(await forget(context, 'shop', { evenLive: false, reason: 'host replaced' })).toEqual({
      forgotten: ['application shop (pid 42 on elsewhere)'],
      no_longer_expected: true,
      if_alive: [
        'application shop (pid 42 on elsewhere) cannot read values written with customers v2 (id 2) or later keys of customers, until it has refreshed',
      ],
    });
    expect(await listMemberListings(context)).toEqual({ members: [], missing: [] });
    expect(await records('member.forget')).toMatchObject([
      { object: `member ${id}`, reason: 'host replaced', before: { live: false, silentSeconds: 46 } },
    ]);
    await expect(forget(context, 'shop', { evenLive: false, reason: 'again' })).rejects.toMatchObject({
      code: 'MEMBER_NOT_FOUND',
    });
  });

  test('a killed process is forgotten at once when told so; one that is alive comes back and is waited for', async (running) => {
    const { shop, context } = await openOperated(running);
    const killed = startChild('worker', { env: shop.environment(), onlyEnv: true });
    const worker = startChild('worker', { env: shop.environment(), onlyEnv: true });
    const nameOf = (pid: number): string => `worker-${pid}`;
    await until(async () => (await listMemberListings(context)).members.length === 2, {
      what: 'both workers to be members',
      deadlineMs,
    });
    killed.kill('SIGKILL');
    await killed.waitForExit(deadlineMs);
    await expect(forget(context, nameOf(killed.pid), { evenLive: false, reason: 'killed' })).rejects.toMatchObject({
      code: 'MEMBER_LIVE',
      message: expect.stringContaining(`keyturn member forget ${nameOf(killed.pid)} --live`) as string,
    });
    await forget(context, nameOf(killed.pid), { evenLive: true, reason: 'killed' });
    const { if_alive: ifAlive } = await forget(context, nameOf(worker.pid), { evenLive: true, reason: 'a mistake' });
    expect(ifAlive).toHaveLength(1);
    await until(async () => (await listMemberListings(context)).members.length === 1, {
      what: 'the one that is alive to report again',
      deadlineMs,
    });
    expect((await listMemberListings(context)).members).toMatchObject([{ pid: worker.pid, live: true }]);
    worker.kill('SIGTERM');
    await worker.waitForExit(deadlineMs);
  });
});
