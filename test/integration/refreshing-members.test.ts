// What a member of a running cluster knows of the keys: it follows a rotation at once, and one that lost touch stops
// encrypting and goes on reading.
import { describe, expect, test } from 'vitest';
import { openKeyturn } from '../../src/app.js';
import { rotateKey } from '../../src/control/keys.js';
import { Secret } from '../../src/crypto/secret.js';
import { createColumn } from '../../src/engine/column.js';
import { startMembership, type Membership } from '../../src/engine/membership.js';
import type { Column, Keyturn } from '../../src/index.js';
import type { KeyStore } from '../../src/keys/key-store.js';
import { openRootKey } from '../../src/keys/roots/open-root-key.js';
import { openDatabase, type Database } from '../../src/store/database.js';
import { createKeyStore, getClusterId } from '../../src/store/keys.js';
import { listTargets } from '../../src/store/registry.js';
import { startPooler } from '../support/pooler.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';
import { until } from '../support/until.js';

const here = { pk: 1, scope: 'a' };

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
