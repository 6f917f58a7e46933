// What an application has in hands: round trips for every kind of column, one error for whatever does not decrypt here,
// and addresses and values that do not fit refused before anything is encrypted.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { createRootKey } from '../../src/crypto/root-key.js';
import { type Column, isKeyturnError, type Keyturn, type RootKeyProvider, type RowAddress } from '../../src/index.js';
import { openShop, type Shop } from '../support/shop.js';

const config: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [
    {
      table: 'customer',
      keyring: 'customers',
      scope: 'tenant',
      columns: { email: {}, code: {}, phone: {}, anywhere: { bind: 'column' }, profile: { paths: { ssn: ['ssn'] } } },
    },
    { table: 'crm.visit', keyring: 'customers', columns: { note: {} } },
    { table: 'twin', keyring: 'customers', scope: 'tenant', columns: { email: {} } },
  ],
};
const ddl = [
  'CREATE TABLE customer (id bigint PRIMARY KEY, tenant int, email text, code varchar(100), phone bytea, anywhere text, profile jsonb)',
  'CREATE SCHEMA crm',
  'CREATE TABLE crm.visit (day uuid, number smallint, note text, PRIMARY KEY (day, number))',
  'CREATE TABLE twin (id bigint PRIMARY KEY, tenant int, email text)',
];

const day = '0191f2a4-7c1b-7000-8000-000000000001';
const here: RowAddress = { pk: 1, scope: 5 };

let shop: Shop;
let keyturn: Keyturn;
let email: Column;
let phone: Column;

beforeAll(async () => {
  shop = await openShop({ config, ddl });
  keyturn = await shop.open();
  email = keyturn.column('customer', 'email');
  phone = keyturn.column('customer', 'phone');
});

afterAll(() => shop.close());

async function errorOf(work: () => Promise<unknown>): Promise<unknown> {
  return work().then(
    (value) => expect.fail(`expected an error, got ${typeof value}`),
    (error: unknown) => error,
  );
}

describe('round trips', () => {
  for (const plaintext of [
    'ada@example.com',
    '',
    ' ',
    'Grüße 👋',
    '\u0000 nul',
    '\ufeffbyte order mark',
    'a\r\nb',
    'x'.repeat(100_000),
    'kt1.not an envelope',
  ]) {
    test(`a text column keeps ${JSON.stringify(plaintext.slice(0, 20))}`, async () => {
      const stored = await email.encrypt(here, plaintext);
      expect(stored).toMatch(/^kt1\.[A-Za-z0-9_-]+$/);
      expect(await email.decrypt(here, stored)).toEqual({ plaintext, keyId: 1, stale: false });
    });
  }

  test('a bytea column keeps any bytes and gives them back as a Buffer', async () => {
    for (const bytes of [Buffer.alloc(0), Buffer.from([0, 255, 0x4b, 0x54, 1]), Buffer.alloc(70_000, 7)]) {
      const stored = await phone.encrypt(here, bytes);
      expect(Buffer.isBuffer(stored)).toBe(true);
      expect(await phone.decrypt(here, stored)).toEqual({ plaintext: bytes, keyId: 1, stale: false });
    }
    expect(await phone.decrypt(here, await phone.encrypt(here, 'text'))).toMatchObject({
      plaintext: Buffer.from('text'),
    });
    expect(await phone.decrypt(here, await phone.encrypt(here, new Uint8Array([1, 2])))).toMatchObject({
      plaintext: Buffer.from([1, 2]),
    });
  });

  test('a jsonb path is a column of its own, and bytes that are text are taken for a text column', async () => {
    const ssn = keyturn.column('public.customer', 'profile.ssn');
    expect(await ssn.decrypt(here, await ssn.encrypt(here, Buffer.from('123-ü')))).toMatchObject({
      plaintext: '123-ü',
    });
  });

  test('two encryptions of one value differ, and show nothing of it (I7)', async () => {
    const [one, other] = await Promise.all([
      email.encrypt(here, 'ada@example.com'),
      email.encrypt(here, 'ada@example.com'),
    ]);
    expect(one).not.toBe(other);
    expect(Buffer.from(String(one).slice(4), 'base64url').toString('latin1')).not.toContain('ada');
  });

  test('the largest value round-trips, a larger one is refused by its length', async () => {
    const largest = Buffer.alloc(1_048_576, 1);
    expect((await phone.decrypt(here, await phone.encrypt(here, largest))).plaintext).toHaveLength(largest.length);
    const error = await errorOf(() => phone.encrypt(here, Buffer.alloc(largest.length + 1)));
    expect(error).toMatchObject({ code: 'VALUE_INVALID', message: expect.stringContaining('1048577') as string });
  });

  test('spellings of one address are one address', async () => {
    const spellings: RowAddress[] = [
      { pk: 12, scope: 5 },
      { pk: 12n, scope: 5n },
      { pk: '12', scope: '5' },
      { pk: '012', scope: '05' },
      { pk: [12], scope: 5 },
      { pk: { id: '12' }, scope: 5 },
    ];
    for (const written of spellings) {
      const stored = await email.encrypt(written, 'x');
      for (const read of spellings) expect(await email.decrypt(read, stored)).toMatchObject({ plaintext: 'x' });
    }
    const zero = await email.encrypt({ pk: -0, scope: '-0' }, 'x');
    expect(await email.decrypt({ pk: '0', scope: 0 }, zero)).toMatchObject({ plaintext: 'x' });
    const note = keyturn.column('crm.visit', 'note');
    const stored = await note.encrypt({ pk: [day.toUpperCase(), -3] }, 'x');
    expect(await note.decrypt({ pk: { number: '-3', day } }, stored)).toMatchObject({ plaintext: 'x' });
  });

  test('a row whose tenant column is NULL is an address of its own', async () => {
    const stored = await email.encrypt({ pk: 1, scope: null }, 'x');
    expect(await email.decrypt({ pk: 1, scope: null }, stored)).toMatchObject({ plaintext: 'x' });
    expect(await errorOf(() => email.decrypt(here, stored))).toMatchObject({ code: 'DECRYPT_FAILED' });
  });
});

describe('I2 a value decrypts only where it was encrypted', () => {
  test('in another row, column, tenant or table it is one error without cause or bytes, the same as for altered bytes (I7)', async () => {
    const stored = String(await email.encrypt(here, 'ada@example.com'));
    const attempts = {
      row: () => email.decrypt({ pk: 2, scope: 5 }, stored),
      tenant: () => email.decrypt({ pk: 1, scope: 6 }, stored),
      column: () => keyturn.column('customer', 'code').decrypt(here, stored),
      path: () => keyturn.column('customer', 'profile.ssn').decrypt(here, stored),
      table: () => keyturn.column('twin', 'email').decrypt(here, stored),
      altered: () =>
        email.decrypt(
          here,
          stored.replace(/.$/, (last) => (last === 'A' ? 'E' : 'A')),
        ),
      truncated: () => email.decrypt(here, stored.slice(0, -2)),
      extended: () => email.decrypt(here, `${stored}AAAA`),
      'no envelope': () => email.decrypt(here, 'ada@example.com'),
      empty: () => email.decrypt(here, ''),
    };
    const messages = new Set<string>();
    for (const [what, attempt] of Object.entries(attempts)) {
      const error = await errorOf(attempt);
      expect({ what, error }).toMatchObject({ what, error: { code: 'DECRYPT_FAILED', kind: 'corrupt' } });
      if (!isKeyturnError(error)) throw error;
      expect(error.cause).toBeUndefined();
      expect(`${error.message} ${JSON.stringify(error.details)}`).not.toContain(stored.slice(24, 40));
      expect(JSON.stringify(error.details)).not.toContain('ada');
      messages.add(error.message);
    }
    expect([...messages]).toEqual([
      'the stored value does not decrypt at this cell: altered, moved from another cell, or not an envelope',
    ]);
  });

  test('a column bound to the column alone takes a value from another row, but from no other column or tenant', async () => {
    const anywhere = keyturn.column('customer', 'anywhere');
    const stored = await anywhere.encrypt(here, 'x');
    expect(await anywhere.decrypt({ pk: 2, scope: 5 }, stored)).toMatchObject({ plaintext: 'x' });
    expect(await errorOf(() => anywhere.decrypt({ pk: 1, scope: 6 }, stored))).toMatchObject({
      code: 'DECRYPT_FAILED',
    });
    expect(await errorOf(() => email.decrypt(here, stored))).toMatchObject({ code: 'DECRYPT_FAILED' });
  });

  test('another cluster cannot read a value, even at the same address under the same root key', async () => {
    const other = await openShop({ config, ddl });
    try {
      const stored = await email.encrypt(here, 'x');
      const elsewhere = await other.open();
      expect(await errorOf(() => elsewhere.column('customer', 'email').decrypt(here, stored))).toMatchObject({
        code: 'DECRYPT_FAILED',
      });
    } finally {
      await other.close();
    }
  });
});

describe('what is refused before anything is encrypted', () => {
  const addresses: readonly { what: string; column: string; address: unknown; says: string }[] = [
    {
      what: 'no address',
      column: 'customer.email',
      address: undefined,
      says: 'expected the address { pk, scope } of a row of public.customer, got undefined',
    },
    {
      what: 'a null address',
      column: 'crm.visit.note',
      address: null,
      says: 'expected the address { pk } of a row of crm.visit, got null',
    },
    {
      what: 'no primary key',
      column: 'customer.email',
      address: { scope: 5 },
      says: 'expected an integer (number, bigint or decimal text) for public.customer.id, got nothing',
    },
    {
      what: 'a null primary key',
      column: 'customer.email',
      address: { pk: null, scope: 5 },
      says: 'for public.customer.id, got nothing',
    },
    {
      what: 'a fraction',
      column: 'customer.email',
      address: { pk: 1.5, scope: 5 },
      says: 'expected an integer (number, bigint or decimal text) for public.customer.id, got number',
    },
    {
      what: 'a number that lost its last digits',
      column: 'customer.email',
      address: { pk: 2 ** 53, scope: 5 },
      says: 'for public.customer.id, got number',
    },
    {
      what: 'not a number',
      column: 'customer.email',
      address: { pk: Number.NaN, scope: 5 },
      says: 'for public.customer.id, got number',
    },
    {
      what: 'text that is no integer',
      column: 'customer.email',
      address: { pk: '1e3', scope: 5 },
      says: 'for public.customer.id, got string',
    },
    {
      what: 'an object without the key',
      column: 'customer.email',
      address: { pk: { ID: 1 }, scope: 5 },
      says: 'for public.customer.id, got nothing',
    },
    {
      what: 'a date',
      column: 'customer.email',
      address: { pk: new Date(0), scope: 5 },
      says: 'for public.customer.id, got nothing',
    },
    {
      what: 'too many key columns',
      column: 'customer.email',
      address: { pk: [1, 2], scope: 5 },
      says: 'the primary key of public.customer has 1 columns (id), got 2',
    },
    {
      what: 'too few key columns',
      column: 'crm.visit.note',
      address: { pk: [day] },
      says: 'the primary key of crm.visit has 2 columns (day, number), got 1',
    },
    {
      what: 'a single value for a composite key',
      column: 'crm.visit.note',
      address: { pk: day },
      says: 'the primary key of crm.visit has 2 columns (day, number), got 1',
    },
    {
      what: 'a UUID without dashes',
      column: 'crm.visit.note',
      address: { pk: [day.replaceAll('-', ''), 1] },
      says: 'expected a UUID in 8-4-4-4-12 form for crm.visit.day, got string',
    },
    {
      what: 'key columns in another order',
      column: 'crm.visit.note',
      address: { pk: [1, day] },
      says: 'expected a UUID in 8-4-4-4-12 form for crm.visit.day, got number',
    },
    {
      what: 'no tenant',
      column: 'customer.email',
      address: { pk: 1 },
      says: "values of public.customer are bound to their tenant: pass { scope } with the row's tenant, null if that is NULL",
    },
    {
      what: 'a tenant of another type',
      column: 'customer.email',
      address: { pk: 1, scope: 'acme' },
      says: 'expected an integer (number, bigint or decimal text) for public.customer.tenant, got string',
    },
    {
      what: 'a tenant where there is none',
      column: 'crm.visit.note',
      address: { pk: [day, 1], scope: 5 },
      says: 'target crm.visit has no tenant column, so { scope } has no meaning for it',
    },
  ];

  for (const { what, column, address, says } of addresses) {
    test(`an address with ${what} is refused, encrypting and decrypting`, async () => {
      const at = column.lastIndexOf('.');
      const handle = keyturn.column(column.slice(0, at), column.slice(at + 1));
      for (const attempt of [
        () => handle.encrypt(address as RowAddress, 'x'),
        () => handle.decrypt(address as RowAddress, 'kt1.x'),
      ]) {
        expect(await errorOf(attempt)).toMatchObject({
          code: 'VALUE_INVALID',
          kind: 'invalid',
          message: expect.stringContaining(says) as string,
        });
      }
    });
  }

  test('NULL is no cell: neither encrypted nor decrypted, and the error says what to do', async () => {
    for (const nothing of [null, undefined] as unknown as string[]) {
      expect(await errorOf(() => email.encrypt(here, nothing))).toMatchObject({
        code: 'VALUE_INVALID',
        message:
          'expected a string or bytes to encrypt for public.customer.email, got NULL, which is no cell: store NULL itself',
      });
      expect(await errorOf(() => email.decrypt(here, nothing))).toMatchObject({
        code: 'VALUE_INVALID',
        message:
          'expected the stored string of public.customer.email, got NULL, which is no cell: there is nothing to decrypt',
      });
    }
  });

  test('values of another type are refused by type, never by content (I7)', async () => {
    for (const [value, type] of [
      [42, 'number'],
      [{ secret: 'Ada' }, 'object'],
      [true, 'boolean'],
    ] as const) {
      const error = await errorOf(() => email.encrypt(here, value as unknown as string));
      expect(error).toMatchObject({
        code: 'VALUE_INVALID',
        message: `expected a string or bytes to encrypt for public.customer.email, got ${type}`,
      });
    }
    expect(await errorOf(() => email.decrypt(here, Buffer.from('kt1.')))).toMatchObject({
      message: 'expected the stored string of public.customer.email, got object',
    });
    expect(await errorOf(() => phone.decrypt(here, 'kt1.'))).toMatchObject({
      message: 'expected the stored Buffer of public.customer.phone, got string',
    });
  });

  test('text that UTF-8 cannot keep, and bytes that are no text for a text column, are refused when written, not when read', async () => {
    expect(await errorOf(() => email.encrypt(here, 'half \ud83d pair'))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('half a surrogate pair') as string,
    });
    expect(await errorOf(() => email.encrypt(here, Buffer.from([0x41, 0xff])))).toMatchObject({
      code: 'VALUE_INVALID',
      message: 'the bytes for public.customer.email are not UTF-8 text; keep bytes in a bytea column',
    });
  });

  test('an envelope that varchar(n) cannot hold is refused with both lengths', async () => {
    const code = keyturn.column('customer', 'code');
    expect(String(await code.encrypt(here, 'x'.repeat(20)))).toHaveLength(100);
    expect(await errorOf(() => code.encrypt(here, 'x'.repeat(21)))).toMatchObject({
      code: 'VALUE_INVALID',
      message:
        'the envelope takes 102 characters and public.customer.code holds 100; shorten the value or ALTER the column to text',
    });
  });

  test('tables and columns that are not registered are named together with those that are', () => {
    const refused = (table: string, column: string): unknown => {
      try {
        return keyturn.column(table, column);
      } catch (error) {
        return error;
      }
    };
    expect(refused('nobody', 'email')).toMatchObject({
      code: 'TARGET_NOT_FOUND',
      message:
        'there is no target "nobody"; registered: crm.visit, public.customer, public.twin; add it to keyturn.yaml and run: keyturn init',
    });
    expect(refused('visit', 'note')).toMatchObject({ code: 'TARGET_NOT_FOUND' });
    expect(refused('customer', 'profile')).toMatchObject({
      code: 'TARGET_NOT_FOUND',
      message: expect.stringContaining('it has: email, code, phone, anywhere, profile.ssn') as string,
    });
  });
});

describe('opening and closing', () => {
  test('after a rotation an earlier value is stale, still decrypts, and new ones are under the new key', async () => {
    const own = await openShop({ config, ddl });
    try {
      const before = await own.open();
      const stored = await before.column('customer', 'email').encrypt(here, 'x');
      await before.close();
      const keyId = await own.rotate();
      const after = (await own.open()).column('customer', 'email');
      expect(await after.decrypt(here, stored)).toEqual({ plaintext: 'x', keyId: 1, stale: true });
      expect(await after.decrypt(here, await after.encrypt(here, 'x'))).toEqual({
        plaintext: 'x',
        keyId,
        stale: false,
      });
    } finally {
      await own.close();
    }
  });

  test('closing twice is safe; a closed library is no member any more, so it decrypts and does not encrypt (I5)', async () => {
    const own = await shop.open('leaving');
    const column = own.column('customer', 'email');
    const stored = await column.encrypt(here, 'x');
    await Promise.all([own.close(), own.close()]);
    await own.close();
    expect(await shop.query(`SELECT FROM keyturn.member WHERE name = 'leaving'`)).toEqual([]);
    expect(await column.decrypt(here, stored)).toMatchObject({ plaintext: 'x' });
    expect(await errorOf(() => column.encrypt(here, 'x'))).toMatchObject({
      code: 'KEYRING_STALE',
      message: expect.stringContaining('this member has left') as string,
    });
  });

  test('a keyring that is not in the database is named, and nothing is left behind', async () => {
    const members = await shop.query('SELECT id FROM keyturn.member');
    const opening = openKeyturn({
      config: { keyrings: { patients: { root: 'env:KEYTURN_ROOT_KEY' } } },
      environment: shop.environment(),
    });
    await expect(opening).rejects.toMatchObject({
      code: 'KEYRING_NOT_FOUND',
      message: 'there is no keyring "patients" in this database; run: keyturn init',
    });
    expect(await shop.query('SELECT id FROM keyturn.member')).toEqual(members);
  });

  test('a root key is opened by a provider of the application, and without that provider its scheme is unknown', async () => {
    const stored = await email.encrypt(here, 'x');
    const asked: string[] = [];
    const provider: RootKeyProvider = {
      scheme: 'our-hsm',
      async open(location, { cluster }) {
        asked.push(location);
        return createRootKey(Buffer.from(shop.rootKey, 'hex'), cluster);
      },
    };
    const options = {
      config: { ...config, keyrings: { customers: { root: 'our-hsm:slot 1' } } },
      environment: shop.environment(),
    };
    const own = await openKeyturn({ ...options, rootKeyProviders: [provider] });
    try {
      expect(await own.column('customer', 'email').decrypt(here, stored)).toMatchObject({ plaintext: 'x' });
      expect(asked).toEqual(['slot 1']);
    } finally {
      await own.close();
    }
    expect(await errorOf(() => openKeyturn(options))).toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: expect.stringContaining('root key scheme our-hsm: is unknown') as string,
    });
  });

  test('a database that is away is an error without the address (I7)', async () => {
    const environment = { ...shop.environment(), DATABASE_URL: 'postgres://me:hunter2@127.0.0.1:1/shop' };
    const error = await errorOf(() => openKeyturn({ config, environment }));
    expect(error).toMatchObject({ code: 'DATABASE_UNAVAILABLE', kind: 'unavailable' });
    expect(String(error)).not.toContain('hunter2');
  });
});
