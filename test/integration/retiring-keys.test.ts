// I6 up to the retirement: a key is retired only when no live member could write with it, every older transaction has
// ended, and one scan found neither a registered cell that names it nor an envelope that nobody registered. The fence that
// makes the scan's finding last is the subject of fencing-keys.test.ts.
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import type { ControlContext } from '../../src/control/context.js';
import { init } from '../../src/control/init.js';
import { listKeys, restore, retire, rotateKey } from '../../src/control/keys.js';
import { type EmbeddedPostgres, startEmbeddedPostgres } from '../../src/embedded/postgres.js';
import type { Keyturn } from '../../src/index.js';
import { startDirectRunner } from '../support/direct-run.js';
import { insertMember } from '../support/members.js';
import { openShop, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';

const config: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [
    {
      table: 'customer',
      keyring: 'customers',
      columns: {
        email: {},
        phone: {},
        facts: { paths: { ssn: ['ssn'], first: ['list', '0'], second: ['list', '1'] } },
      },
    },
  ],
};
const customerDdl = 'CREATE TABLE customer (id int PRIMARY KEY, email text, phone bytea, facts jsonb, note text)';

interface Envelopes {
  readonly text: string;
  readonly bytes: Buffer;
}

/** A shop after a rotation: key 1 decrypts only, key 2 is active; envelopes of both for tests to put anywhere. */
async function openRotated(ddl: readonly string[]): Promise<{ shop: Shop; old: Envelopes; current: Envelopes }> {
  const shop = await openShop({ config, ddl: [customerDdl, ...ddl] });
  const envelopes = async (): Promise<Envelopes> => {
    const keyturn: Keyturn = await shop.open();
    const text = await keyturn.column('customer', 'email').encrypt({ pk: 1 }, 'CANARY');
    const bytes = await keyturn.column('customer', 'phone').encrypt({ pk: 1 }, 'CANARY');
    await keyturn.close();
    return { text: String(text), bytes: Buffer.from(bytes as Buffer) };
  };
  const old = await envelopes();
  await shop.rotate();
  return { shop, old, current: await envelopes() };
}

/** Everything but the record and the time of a mark: a refusal puts the fence up and takes it down again. */
async function standing(shop: Shop): Promise<unknown> {
  const record = ['audit', 'audit_head', 'audit_id_seq', 'audit_link', 'data_key'];
  return {
    image: await imageOf(shop, 'keyturn', record),
    keys: await shop.query('SELECT id, state, fenced_at FROM keyturn.data_key ORDER BY id'),
    fences: await shop.query(`SELECT tgname FROM pg_trigger WHERE tgname LIKE 'zz_keyturn%'`),
  };
}

async function stateOfFirst(shop: Shop): Promise<string | undefined> {
  return (await listKeys(shop.control.context, 'customers'))[0]?.keys.find(({ version }) => version === 1)?.state;
}

describe('what stands in the way', () => {
  let shop: Shop;
  let old: Envelopes;
  let current: Envelopes;

  beforeAll(async () => {
    ({ shop, old, current } = await openRotated([
      'CREATE SCHEMA crm',
      'CREATE DOMAIN mail AS text',
      'CREATE DOMAIN private_mail AS mail',
      `CREATE TABLE crm.copies (id int PRIMARY KEY, a text, b varchar(300), c char(300), d bytea, e jsonb, f json, g private_mail, "H ""x"" \\ '" text, n int)`,
      'CREATE TABLE spread (id int, a text) PARTITION BY RANGE (id)',
      'CREATE TABLE spread_all PARTITION OF spread DEFAULT',
      'CREATE TABLE base (a text)',
      'CREATE TABLE heir () INHERITS (base)',
    ]));
  });

  afterAll(() => shop.close());

  /** The error of the attempt; `unchanged` says whether it left rows and triggers as they were, but for the record. */
  async function attempt(): Promise<{ error: unknown; unchanged: boolean }> {
    const before = JSON.stringify(await standing(shop));
    const error: unknown = await retire(shop.control.context, undefined, 'v1', undefined).catch(
      (thrown: unknown) => thrown,
    );
    return { error, unchanged: JSON.stringify(await standing(shop)) === before };
  }

  test('registered cells that name the key are counted by column', async () => {
    await shop.query('INSERT INTO customer VALUES (1, $1, $2, $3), (2, $1, NULL, NULL), (3, $4, NULL, NULL)', [
      old.text,
      old.bytes,
      { ssn: old.text, list: [old.text, current.text] },
      current.text,
    ]);
    expect(await attempt()).toMatchObject({
      unchanged: true,
      error: {
        code: 'KEY_IN_USE',
        kind: 'refused',
        message:
          'customers v1 (id 1) is still named by 2 cells of public.customer.email, 1 cells of public.customer.phone, 1 cells of public.customer.facts.first, 1 cells of public.customer.facts.ssn; move them with: keyturn reencrypt',
      },
    });
    await shop.query('DELETE FROM customer');
  });

  test('a live member that writes with it is named, a silent one is not', async () => {
    await insertMember(shop, { name: 'silent', holds: [1], writes: 1, silentForSeconds: 60 });
    const id = await insertMember(shop, { name: 'billing', holds: [1, 2], writes: 1 });
    expect(await attempt()).toMatchObject({
      unchanged: true,
      error: {
        code: 'MEMBER_BEHIND',
        message:
          'customers v1 (id 1) cannot retire: application billing (pid 42 on elsewhere) writes with key 1; update or stop it first',
        details: { members: ['application billing (pid 42 on elsewhere)'] },
      },
    });
    await shop.query('DELETE FROM keyturn.member WHERE id = $1', [id]);
  });

  const strays: readonly { what: string; put: string; value: () => unknown; where: string; remove: string }[] = [
    {
      what: 'a text column',
      put: 'INSERT INTO crm.copies (id, a) VALUES (1, $1)',
      value: () => current.text,
      where: '1 in crm.copies.a',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a varchar column',
      put: 'INSERT INTO crm.copies (id, b) VALUES (1, $1)',
      value: () => old.text,
      where: '1 in crm.copies.b',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a char column',
      put: 'INSERT INTO crm.copies (id, c) VALUES (1, $1)',
      value: () => old.text,
      where: '1 in crm.copies.c',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a bytea column',
      put: 'INSERT INTO crm.copies (id, d) VALUES (1, $1)',
      value: () => old.bytes,
      where: '1 in crm.copies.d',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a jsonb column',
      put: 'INSERT INTO crm.copies (id, e) VALUES (1, $1)',
      value: () => JSON.stringify({ deep: [{ x: old.text }] }),
      where: '1 in crm.copies.e',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a json column',
      put: 'INSERT INTO crm.copies (id, f) VALUES (1, $1)',
      value: () => JSON.stringify([old.text]),
      where: '1 in crm.copies.f',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a column of a domain over a domain',
      put: 'INSERT INTO crm.copies (id, g) VALUES (1, $1)',
      value: () => old.text,
      where: '1 in crm.copies.g',
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a column with an awkward name',
      put: `INSERT INTO crm.copies (id, "H ""x"" \\ '") VALUES (1, $1)`,
      value: () => old.text,
      where: `1 in crm.copies.H "x" \\ '`,
      remove: 'DELETE FROM crm.copies',
    },
    {
      what: 'a partition',
      put: 'INSERT INTO spread VALUES (1, $1)',
      value: () => old.text,
      where: '1 in public.spread.a',
      remove: 'DELETE FROM spread',
    },
    {
      what: 'a table that inherits',
      put: 'INSERT INTO heir VALUES ($1)',
      value: () => old.text,
      where: '1 in public.heir.a',
      remove: 'DELETE FROM heir',
    },
    {
      what: 'an unregistered column of a registered table',
      put: 'INSERT INTO customer (id, note) VALUES (1, $1)',
      value: () => old.text,
      where: '1 in public.customer.note',
      remove: 'DELETE FROM customer',
    },
    {
      what: 'an unregistered path of a registered document',
      put: 'INSERT INTO customer (id, facts) VALUES (1, $1)',
      value: () => ({ ssn: current.text, history: [current.text] }),
      where: '1 in public.customer.facts',
      remove: 'DELETE FROM customer',
    },
    {
      what: 'an unregistered element beside registered ones',
      put: 'INSERT INTO customer (id, facts) VALUES (1, $1)',
      value: () => ({ list: [current.text, current.text, current.text] }),
      where: '1 in public.customer.facts',
      remove: 'DELETE FROM customer',
    },
    {
      what: 'an envelope inside the object at a registered path',
      put: 'INSERT INTO customer (id, facts) VALUES (1, $1)',
      value: () => ({ ssn: { value: current.text } }),
      where: '1 in public.customer.facts',
      remove: 'DELETE FROM customer',
    },
  ];

  for (const { what, put, value, where, remove } of strays) {
    test(`an envelope in ${what} is found and named, without a byte of it (I7)`, async () => {
      await shop.query(put, [value()]);
      const error: unknown = await retire(shop.control.context, undefined, 'v1', undefined).catch(
        (thrown: unknown) => thrown,
      );
      expect(error).toMatchObject({
        code: 'KEY_IN_USE',
        message: expect.stringContaining('columns that no target covers hold envelopes: ') as string,
      });
      expect(String(error)).toContain(where);
      expect(String(error)).not.toContain(old.text.slice(24, 40));
      expect(String(error)).not.toContain(current.text.slice(24, 40));
      expect(await stateOfFirst(shop)).toBe('decrypt_only');
      await shop.query(remove);
    });
  }

  test('a materialized view over a registered column keeps copies: it is found too', async () => {
    await shop.query('INSERT INTO customer (id, email) VALUES (1, $1)', [current.text]);
    await shop.query('CREATE MATERIALIZED VIEW mail_list AS SELECT email FROM customer');
    expect(await attempt()).toMatchObject({
      unchanged: true,
      error: {
        code: 'KEY_IN_USE',
        message: expect.stringContaining('1 in public.mail_list.email') as string,
      },
    });
    await shop.query('DROP MATERIALIZED VIEW mail_list');
    await shop.query('DELETE FROM customer');
  });
});

describe('older transactions', () => {
  let shop: Shop;
  let old: Envelopes;
  let writer: pg.Client;

  beforeEach(async () => {
    ({ shop, old } = await openRotated([]));
    writer = new pg.Client({ connectionString: shop.url, application_name: 'slow writer' });
    await writer.connect();
  });

  afterEach(async () => {
    await writer.end();
    await shop.close();
  });

  test('one that wrote an envelope and has not committed is waited for, named, and refused after the deadline', async () => {
    await writer.query('BEGIN');
    await writer.query('INSERT INTO customer (id, email) VALUES (1, $1)', [old.text]);
    const { rows } = await writer.query('SELECT pg_backend_pid() AS pid');
    const before = await standing(shop);
    const impatient: ControlContext = { ...shop.control.context, patienceMs: 500 };
    await expect(retire(impatient, undefined, 'v1', undefined)).rejects.toMatchObject({
      code: 'OLDER_TRANSACTION_RUNNING',
      kind: 'refused',
      message: `the fence of public.customer can only be changed when transactions that write to it have ended; still open after 0.5 s: transaction of backend ${String(rows[0]?.pid)} (slow writer); end it and repeat`,
    });
    expect(await standing(shop)).toEqual(before);

    await writer.query('COMMIT');
    await expect(retire(impatient, undefined, 'v1', undefined)).rejects.toMatchObject({
      code: 'KEY_IN_USE',
      message: expect.stringContaining('1 cells of public.customer.email') as string,
    });
  });

  test('one that ends in time lets the scan begin, and what it committed is seen', async () => {
    await writer.query('BEGIN');
    await writer.query('INSERT INTO customer (id, email) VALUES (1, $1)', [old.text]);
    const waits: string[] = [];
    const retiring = retire(
      { ...shop.control.context, onProgress: (words) => waits.push(words) },
      undefined,
      'v1',
      undefined,
    ).then(
      () => 'retired',
      (error: unknown) => error,
    );
    await expect
      .poll(() => waits.some((words) => words.startsWith('waiting for transactions that write to public.customer: ')), {
        timeout: 10_000,
      })
      .toBe(true);
    await writer.query('COMMIT');
    expect(await retiring).toMatchObject({ code: 'KEY_IN_USE' });
  });

  test('a transaction begun after the wait, and connections without one, hold nothing up', async () => {
    await writer.query('SELECT 1');
    const later = new pg.Client({ connectionString: shop.url });
    await later.connect();
    try {
      await writer.query('BEGIN; SELECT 1');
      let isLater = false;
      const retiring = retire(
        {
          ...shop.control.context,
          onProgress: (words) => {
            isLater ||= words.startsWith('waiting for older transactions');
          },
        },
        undefined,
        'v1',
        undefined,
      );
      await expect.poll(() => isLater, { timeout: 10_000 }).toBe(true);
      await later.query('BEGIN; SELECT 1');
      await writer.query('ROLLBACK');
      expect(await retiring).toMatchObject({ key: { state: 'retired' } });
    } finally {
      await later.end();
    }
  });
});

describe('prepared transactions', () => {
  // Servers come with prepared transactions switched off, so this one is started for it.
  let server: EmbeddedPostgres;
  let client: pg.Client;

  beforeAll(async () => {
    server = await startEmbeddedPostgres({ settings: { max_prepared_transactions: '1' } });
    client = new pg.Client({ connectionString: server.url });
    await client.connect();
  });

  afterAll(async () => {
    await client.end();
    await server.stop();
  });

  test('are waited for and named as well', async () => {
    await client.query(customerDdl);
    const environment = { DATABASE_URL: server.url, KEYTURN_ROOT_KEY: randomBytes(32).toString('hex') };
    const control = openControl({ environment, file: config });
    try {
      await init(control.context);
      await rotateKey(control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined });
      await client.query('BEGIN');
      await client.query(`INSERT INTO customer (id, email) VALUES (1, 'kt1.S1QBAgAAAAGqqqqq')`);
      await client.query(`PREPARE TRANSACTION 'half way'`);
      await expect(retire({ ...control.context, patienceMs: 300 }, undefined, 'v1', undefined)).rejects.toMatchObject({
        code: 'OLDER_TRANSACTION_RUNNING',
        message: expect.stringContaining('prepared transaction half way') as string,
      });
      await client.query(`ROLLBACK PREPARED 'half way'`);
      expect(await retire(control.context, undefined, 'v1', undefined)).toMatchObject({ key: { state: 'retired' } });
    } finally {
      await control.close();
    }
  });
});

describe('a retirement', () => {
  let shop: Shop;
  let old: Envelopes;
  let current: Envelopes;

  beforeAll(async () => {
    ({ shop, old, current } = await openRotated([]));
    // Documents of every shape: paths that lead nowhere must not stop the scan.
    for (const [at, facts] of [
      'null',
      '5',
      '"text"',
      '[]',
      '["a", "b"]',
      '{}',
      '{"ssn": 5, "list": {"0": 1}}',
      JSON.stringify({ ssn: current.text, list: [current.text, current.text] }),
    ].entries()) {
      await shop.query('INSERT INTO customer (id, email, facts) VALUES ($1, $2, $3)', [at + 1, current.text, facts]);
    }
  });

  afterAll(() => shop.close());

  test('keeps the evidence: what was counted with which statements in which snapshot, and with which fence', async () => {
    const { key, proof } = await retire(shop.control.context, undefined, 'customers v1 (id 1)', 'done with it');
    expect(key).toMatchObject({ version: 1, state: 'retired' });
    expect(proof).toMatchObject({
      key: 'customers v1 (id 1)',
      snapshot: expect.stringMatching(/^\d+:\d+:/) as string,
      scannedAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT/) as string,
      columns: [
        { target: 'public.customer', column: 'email', cells: 8, naming: 0 },
        { target: 'public.customer', column: 'phone', cells: 0, naming: 0 },
        { target: 'public.customer', column: 'facts.first', cells: 2, naming: 0 },
        { target: 'public.customer', column: 'facts.second', cells: 1, naming: 0 },
        { target: 'public.customer', column: 'facts.ssn', cells: 2, naming: 0 },
      ],
      // The registered document is looked at as well, beside its registered paths.
      unregistered: { tables: 1, columns: 2 },
    });
    const [kept] = await shop.query('SELECT data_key_id::int, snapshot, evidence FROM keyturn.retirement');
    expect(kept).toEqual({
      data_key_id: 1,
      snapshot: proof.snapshot,
      evidence: {
        ...(JSON.parse(JSON.stringify(proof)) as object),
        fence: [
          {
            table: 'public.customer',
            definitions: [
              expect.stringMatching(/^CREATE TRIGGER zz_keyturn_fence_insert BEFORE INSERT .* WHEN /) as string,
              expect.stringMatching(/^CREATE TRIGGER zz_keyturn_fence_update BEFORE UPDATE .* WHEN /) as string,
            ],
          },
        ],
      },
    });
    expect(await shop.query(proof.sql[0] ?? '')).toHaveLength(1);
    expect(JSON.stringify(proof)).not.toContain(current.text.slice(24));
  });

  test('a value that names the retired key says how to undo it, and after key restore it decrypts again', async () => {
    const keyturn = await shop.open();
    const column = keyturn.column('customer', 'email');
    await expect(column.decrypt({ pk: 1 }, old.text)).rejects.toMatchObject({
      code: 'KEY_NOT_HELD',
      message:
        'the value names key 1, which this process does not hold because it is retired; undo with: keyturn key restore',
    });
    expect(await shop.query('SELECT held_key_ids FROM keyturn.member_keyring')).toEqual([{ held_key_ids: ['3', '2'] }]);
    await keyturn.close();

    expect(await restore(shop.control.context, undefined, 'v1', 'not done after all')).toMatchObject({
      key: { state: 'decrypt_only', retiredAt: undefined },
    });
    const again = await shop.open();
    expect(await again.column('customer', 'email').decrypt({ pk: 1 }, old.text)).toMatchObject({
      plaintext: 'CANARY',
      stale: true,
    });
    await again.close();
  });

  test('after a verified run every earlier key can be retired, one after the other', async () => {
    const keyturn = await shop.open();
    await shop.query('DELETE FROM customer');
    await shop.query('INSERT INTO customer (id, email) VALUES (1, $1)', [old.text]);
    await keyturn.close();
    await rotateKey(shop.control.context, { keyring: undefined, ifOlderThanMs: undefined, reason: undefined });
    const runner = await startDirectRunner(shop);
    expect(await runner.finish(await shop.order()).finally(runner.close)).toMatchObject({
      state: 'succeeded',
      fields_reencrypted: 1,
    });
    for (const name of ['v1', 'v2'])
      expect(await retire(shop.control.context, undefined, name, undefined)).toMatchObject({
        key: { state: 'retired' },
      });
    const [keyring] = await listKeys(shop.control.context, 'customers');
    expect(keyring?.keys.map(({ state }) => state)).toEqual(['retired', 'retired', 'active', 'staged']);
  });
});
