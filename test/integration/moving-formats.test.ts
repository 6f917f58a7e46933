// Every shipped format and a user's own, in one table and one run: into Keyturn's format, and out of it again. Few rows and
// no member that has to be waited for; with applications at work: test/chaos/moving-every-format.test.ts.
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { finalizeMove, prepareMove } from '../../src/control/adopt.js';
import { takeCensus } from '../../src/control/targets.js';
import type { RunReport } from '../../src/control/runs.js';
import { foreignFormatByName } from '../../src/formats/registry.js';
import { startDirectRunner } from '../support/direct-run.js';
import { openShop, type Shop } from '../support/shop.js';

const secrets = { OLD_SECRET: randomBytes(32).toString('hex'), OLD_PASSPHRASE: 'correct horse battery staple' };

interface Moved {
  readonly column: string;
  readonly type: 'text' | 'bytea';
  readonly format: string;
  readonly secret: keyof typeof secrets | undefined;
}

const moved: readonly Moved[] = [
  { column: 'cbc', type: 'text', format: 'typeorm-encrypted-cbc', secret: 'OLD_SECRET' },
  { column: 'gcm', type: 'text', format: 'typeorm-encrypted-gcm', secret: 'OLD_SECRET' },
  { column: 'pgp', type: 'bytea', format: 'pgcrypto', secret: 'OLD_PASSPHRASE' },
  { column: 'armoured', type: 'text', format: 'pgcrypto', secret: 'OLD_PASSPHRASE' },
  { column: 'based', type: 'text', format: 'aes-gcm-base64', secret: 'OLD_SECRET' },
  { column: 'hexed', type: 'text', format: 'aes-gcm-hex', secret: 'OLD_SECRET' },
  { column: 'bare', type: 'bytea', format: 'aes-gcm-bytes', secret: 'OLD_SECRET' },
  { column: 'own', type: 'text', format: 'rot47', secret: undefined },
  { column: 'plain', type: 'text', format: 'plaintext', secret: undefined },
];
const values = ['', 'value ü', 'x'.repeat(300)];

let shop: Shop;

beforeAll(async () => {
  shop = await openShop({
    config: {
      keyrings: { coins: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: [
        { table: 'coin', keyring: 'coins', columns: Object.fromEntries(moved.map(({ column }) => [column, {}])) },
      ],
    },
    ddl: [
      'CREATE EXTENSION pgcrypto',
      `CREATE TABLE coin (id bigint PRIMARY KEY, ${moved.map(({ column, type }) => `${column} ${type}`).join(', ')})`,
    ],
    environment: { ...secrets, KEYTURN_FORMATS: join(import.meta.dirname, '../support/formats/rot47.mjs') },
  });
  await shop.control.context.loadFormats();
});

afterAll(() => shop.close());

/** As the other system would write and read it. */
function foreignOf({ format: name, secret }: Moved): {
  encrypt: (value: string, type: Moved['type']) => string | Buffer;
  decrypt: (stored: string | Buffer) => string;
} {
  const format = foreignFormatByName(name);
  const key = format?.readKey(Buffer.from(secret === undefined ? '' : secrets[secret]));
  if (format === undefined || key === undefined) throw new Error(`no format ${name}`);
  return {
    encrypt: (value, type) => format.encrypt(Buffer.from(value), key, type === 'text' ? 'text' : 'bytes'),
    decrypt: (stored) => format.decrypt(stored, key).toString(),
  };
}

async function runAll(): Promise<RunReport> {
  const runner = await startDirectRunner(shop);
  try {
    return await runner.finish(await shop.order());
  } finally {
    await runner.close();
  }
}

async function prepareAll(move: 'adopting' | 'leaving'): Promise<void> {
  for (const { column, format, secret } of moved)
    await prepareMove(shop.control.context, {
      target: 'coin',
      column,
      move,
      format,
      secretUri: secret === undefined ? undefined : `env:${secret}`,
      reason: 'test',
    });
}

async function finalizeAll(state: 'adopted' | 'left'): Promise<void> {
  for (const { column } of moved)
    expect(await finalizeMove(shop.control.context, { target: 'coin', column, reason: 'test' })).toMatchObject({
      state,
      cells: values.length,
    });
}

const allMoved = {
  state: 'succeeded',
  failures: [],
  rows_updated: values.length,
  fields_reencrypted: values.length * moved.length,
  fields_stale: 0,
};

test('typeorm-encrypted CBC and GCM, pgcrypto, bare AES-GCM in base64, hex and bytes, a format of the user’s own and plaintext are adopted in one run', async () => {
  for (const [at, value] of values.entries()) {
    const stored = moved.map((one) => foreignOf(one).encrypt(value, one.type));
    await shop.query(`INSERT INTO coin VALUES (${at}, ${moved.map((_, index) => `$${index + 1}`).join(', ')})`, stored);
    // What the server itself writes.
    await shop.query(
      'UPDATE coin SET pgp = pgp_sym_encrypt($2, $3), armoured = armor(pgp_sym_encrypt($2, $3)) WHERE id = $1',
      [at, value, secrets.OLD_PASSPHRASE],
    );
  }
  await prepareAll('adopting');
  expect(await runAll()).toMatchObject(allMoved);
  await finalizeAll('adopted');
  const census = await takeCensus(shop.control.context, 'coin');
  expect(census).toHaveLength(moved.length);
  expect(census.every(({ state, cells }) => state === 'active' && cells === values.length)).toBe(true);
  const keyturn = await shop.open();
  const rows = await shop.query('SELECT * FROM coin ORDER BY id');
  for (const { column } of moved)
    for (const [at, value] of values.entries()) {
      const read = await keyturn.column('coin', column).decrypt({ pk: at }, rows[at]?.[column] as string | Buffer);
      expect(read.plaintext.toString()).toBe(value);
    }
  await keyturn.close();
});

test('the same columns go back in one run, readable for the systems they came from', async () => {
  await prepareAll('leaving');
  expect(await runAll()).toMatchObject(allMoved);
  await finalizeAll('left');
  const rows = await shop.query('SELECT * FROM coin ORDER BY id');
  for (const one of moved)
    expect(rows.map((row) => foreignOf(one).decrypt(row[one.column] as string | Buffer))).toEqual(values);
  expect(
    await shop.query(
      'SELECT pgp_sym_decrypt(pgp, $1) AS pgp, pgp_sym_decrypt(dearmor(armoured), $1) AS armoured FROM coin ORDER BY id',
      [secrets.OLD_PASSPHRASE],
    ),
  ).toEqual(values.map((value) => ({ pgp: value, armoured: value })));
});
