// The provider of the root key is away: starts wait for it, members that hold their keys read, write and stay members.
import { randomBytes } from 'node:crypto';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { stageKey } from '../../src/control/keys.js';
import { Secret } from '../../src/crypto/secret.js';
import { createColumn } from '../../src/engine/column.js';
import { startMembership, type Membership } from '../../src/engine/membership.js';
import { openRootKey } from '../../src/keys/roots/open-root-key.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { createKeyStore, getClusterId } from '../../src/store/keys.js';
import { listTargets } from '../../src/store/registry.js';
import { startFakeTransit, transitToken, type FakeTransit } from '../support/fake-transit.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';
import { loseKey } from '../support/without-guards.js';

const here = { pk: 1, scope: 'a' };
let shop: Shop;
/** Both serve one key; the operator's stays up while the member's is away. */
let operators: FakeTransit;
let members: FakeTransit;
let database: Database;
let membership: Membership;
const troubles: unknown[] = [];

beforeAll(async () => {
  [operators, members] = await Promise.all([startFakeTransit(), startFakeTransit()]);
  const key = randomBytes(32);
  const uri = `vault:transit/${operators.addKey(key)}`;
  members.addKey(key);
  shop = await openShop({
    config: { ...shopConfig, keyrings: { customers: { root: uri } } },
    environment: { VAULT_ADDR: operators.url, VAULT_TOKEN: transitToken },
  });
  await loseKey(shop.query, 2);
  database = openDatabase({ url: new Secret(shop.url), maxConnections: 2, applicationName: 'member' });
  const cluster = await getClusterId(database);
  const env = { VAULT_ADDR: members.url, VAULT_TOKEN: transitToken };
  const root = await openRootKey(uri, { cluster, env, timing: { attempts: 1, timeoutMs: 500 } });
  membership = await startMembership({
    database,
    store: createKeyStore(database),
    kind: 'application',
    name: 'member',
    version: 'test',
    keyrings: ['customers'],
    openRoots: async () => [root],
    onTrouble: (error) => troubles.push(error),
  });
});

afterAll(async () => {
  await membership.close();
  await database.close();
  await shop.close();
  await Promise.all([operators.close(), members.close()]);
});

async function heartbeat(): Promise<Record<string, unknown> | undefined> {
  const [row] = await shop.query(
    'SELECT heartbeat_at::text AS at, held_key_ids::int[] AS held, root_key_ids::int[] AS roots FROM keyturn.member JOIN keyturn.member_keyring ON id = member_id',
  );
  return row;
}

test('an outage stops starts, never a member: it reads and writes, its heart beats, and it takes up new keys when the provider is back', async () => {
  const [target] = await listTargets(database);
  if (target === undefined) throw new Error('the shop has no target');
  const email = createColumn(membership, target, 'email', { offer: () => undefined });
  const stored = await email.encrypt(here, 'before the outage');
  const before = await heartbeat();
  expect(before).toMatchObject({ held: [1], roots: [1] });

  members.fail('reset');
  await stageKey(shop.control.context, undefined, 'a key that the member cannot unwrap now');
  const during = await until(
    async () => {
      const row = await heartbeat();
      return row?.['at'] !== before?.['at'] && row;
    },
    { what: 'the next heartbeat', deadlineMs: 20_000 },
  );
  expect(during).toMatchObject({ held: [1], roots: [] });
  expect(await email.decrypt(here, stored)).toMatchObject({ plaintext: 'before the outage', stale: false });
  expect(await email.decrypt(here, await email.encrypt(here, 'during the outage'))).toMatchObject({
    plaintext: 'during the outage',
  });
  expect(troubles).toContainEqual(expect.objectContaining({ code: 'ROOT_KEY_UNAVAILABLE' }));

  operators.fail('reset');
  await expect(shop.open('late')).rejects.toMatchObject({ code: 'ROOT_KEY_UNAVAILABLE', kind: 'unavailable' });
  operators.fail(undefined);

  members.fail(undefined);
  const again = await until(
    async () => {
      const keyring = await membership.refresh('customers');
      return keyring.lookup(3).status === 'held' && keyring;
    },
    { what: 'the staged key to be taken up', deadlineMs: 20_000 },
  );
  expect(again.held.map(({ id }) => id)).toEqual([3, 1]);
});
