// key rotate killed with SIGKILL around the insertion of a key, around its activation, and in the middle of the commit that
// appends the record: the state is before or after, the repeated command goes on, and the record stays whole.
import { afterAll, beforeAll, expect, test } from 'vitest';
import { verifyAudit } from '../../src/control/audit.js';
import type { ControlPoint } from '../../src/control/context.js';
import { rotateKey } from '../../src/control/keys.js';
import { startChild, type Child } from '../support/child.js';
import { killWhileInserting } from '../support/killed-command.js';
import { findDifferences, insertCustomers, openShop, type Shop } from '../support/shop.js';
import { loseKey } from '../support/without-guards.js';

const deadlineMs = 30_000;
let shop: Shop;
beforeAll(async () => {
  shop = await openShop();
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, [1, 2, 3]);
  await keyturn.close();
});
afterAll(() => shop.close());

async function states(): Promise<string> {
  const rows = await shop.query('SELECT state FROM keyturn.data_key WHERE purpose = 1 ORDER BY version');
  return rows.map(({ state }) => String(state)).join(' ');
}

function start(point: ControlPoint | 'none'): Child {
  return startChild('key-turner', { env: shop.environment(), onlyEnv: true, args: [point] });
}

async function killAt(point: ControlPoint): Promise<void> {
  const child = start(point);
  await child.waitForLine(/^reached/, deadlineMs);
  expect(await child.waitForExit(deadlineMs)).toMatchObject({ signal: 'SIGKILL' });
}

const young = { keyring: undefined, ifOlderThanMs: 3_600_000, reason: 'test' };

async function expectWhole(): Promise<void> {
  expect(await verifyAudit(shop.control.context, undefined)).toMatchObject({ intact: true, damage: null });
  const keyturn = await shop.open();
  expect(await findDifferences(shop, keyturn)).toEqual([]);
  await keyturn.close();
}

test('I5 I10 killed around insertion and activation, and while its record is appended, a rotation is before or after', async () => {
  expect(await states()).toBe('active staged');
  // No standby: the rotation makes a key first.
  await loseKey(shop.query, 2);
  await killAt('rot.after_key_insert');
  expect(await states()).toBe('active staged');
  await killAt('rot.before_activate');
  expect(await states()).toBe('active staged');
  // In the middle of the commit, when the database appends the records of the activation to the chain: without its server
  // process nothing has happened; with it the commit that was asked for comes to its end.
  const append = [
    'keyturn.audit_link',
    `(SELECT action FROM keyturn.audit WHERE id = NEW.audit_id) = 'key.activate'`,
  ] as const;
  await killWhileInserting(shop, () => start('none'), append, { withServer: true });
  expect(await states()).toBe('active staged');
  await expectWhole();
  await killWhileInserting(shop, () => start('none'), append);
  expect(await states()).toBe('decrypt_only active');
  await expectWhole();
  // Repeated, it is recognised: the key is young, and what is missing is the standby.
  expect(await rotateKey(shop.control.context, young)).toMatchObject({ isNew: false, key: { version: 2 } });
  expect(await states()).toBe('decrypt_only active staged');
  await killAt('rot.after_activate');
  expect(await states()).toBe('decrypt_only decrypt_only active');
  await expectWhole();
  expect(await rotateKey(shop.control.context, young)).toMatchObject({ isNew: false, key: { version: 3 } });
  expect(await states()).toBe('decrypt_only decrypt_only active staged');
}, 120_000);
