// A rolling deployment through a rotation: processes of the old and the new version side by side, one of them without the
// new key until late. The new version has one column more, and encrypts one that the old one keeps plain while it is adopted. Nobody ever reads a wrong value, and reads move what they meet.
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { ConfigFile } from '../../src/config.js';
import { prepareMove } from '../../src/control/adopt.js';
import { activate, stageKey } from '../../src/control/keys.js';
import { openShop, type Shop } from '../support/shop.js';
import { startChild, type Child } from '../support/child.js';
import { until } from '../support/until.js';

const config: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [{ table: 'traveller', keyring: 'customers', columns: { passport: {}, nickname: {}, visa: {} } }],
};

let shop: Shop;

beforeAll(async () => {
  shop = await openShop({
    config,
    ddl: [
      'CREATE TABLE traveller (id serial PRIMARY KEY, label text NOT NULL, passport text NOT NULL, nickname text, visa text)',
    ],
  });
});

afterAll(() => shop.close());

function deploy(name: string, version: 'old' | 'new'): Child {
  return startChild('orm-application', {
    args: [config, name, version].map((argument) => JSON.stringify(argument)),
    env: shop.environment(),
  });
}

async function roundsOf(child: Child, rounds: number): Promise<void> {
  const wanted = child.lines.length + rounds;
  await until(async () => child.lines.length >= wanted, { what: `${rounds} rounds`, deadlineMs: 30_000 });
}

/** Rows by the key that their value names. */
async function rowsByKey(): Promise<ReadonlyMap<number, number>> {
  const counts = new Map<number, number>();
  for (const { passport } of await shop.query('SELECT passport FROM traveller')) {
    const key = Buffer.from(String(passport).slice(4), 'base64url').readUInt32BE(4);
    counts.set(key, (counts.get(key) ?? 0) + 1);
  }
  return counts;
}

test('I5 I9 old and new processes side by side through a rotation read every value, one without the new key until late', async () => {
  await prepareMove(shop.control.context, {
    target: 'traveller',
    column: 'nickname',
    move: 'adopting',
    format: 'plaintext',
    secretUri: undefined,
    reason: 'test',
  });
  const old = deploy('old', 'old');
  await roundsOf(old, 3);
  const staged = await stageKey(shop.control.context, undefined, 'test');
  // The old process learns of the key with its next refresh; a new one holds it from the start.
  const fresh = deploy('fresh', 'new');
  await roundsOf(fresh, 1);
  // A process that froze before the key was staged has not got it when the others begin to write with it.
  process.kill(old.pid, 'SIGSTOP');
  const refused = activate({ ...shop.control.context, patienceMs: 500 }, undefined, String(staged.key.id), 'test');
  await expect(refused).rejects.toMatchObject({ code: 'MEMBER_BEHIND' });
  await shop.query(`UPDATE keyturn.member SET heartbeat_at = heartbeat_at - interval '1 minute' WHERE name = 'old'`);
  await activate(shop.control.context, undefined, String(staged.key.id), 'test');
  await roundsOf(fresh, 3);
  await until(async () => (await rowsByKey()).get(staged.key.id) !== undefined, {
    what: 'values under the new key',
    deadlineMs: 20_000,
  });
  process.kill(old.pid, 'SIGCONT');
  await roundsOf(old, 3);
  await until(async () => (await rowsByKey()).size === 1, { what: 'reads to move every value', deadlineMs: 30_000 });
  for (const child of [old, fresh]) {
    child.kill('SIGTERM');
    expect(await child.waitForExit(15_000)).toMatchObject({ code: 0 });
    expect(child.lines).not.toContain('wrong');
    expect(child.lines.length).toBeGreaterThan(3);
  }
  const [forms] = await shop.query(
    `SELECT count(*) FILTER (WHERE nickname LIKE 'kt1.%') > 0 AS enveloped, count(visa) > 0 AS visas,
       count(*) FILTER (WHERE label LIKE 'old-%' AND visa IS NULL) > 0 AS without FROM traveller`,
  );
  expect(forms).toEqual({ enveloped: true, visas: true, without: true });
  const [counted] = await shop.query('SELECT sum(rows_updated)::int AS rows FROM keyturn.lazy_upgrade');
  expect(Number(counted?.['rows'])).toBeGreaterThan(0);
});
