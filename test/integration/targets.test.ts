// What a target may be: every kind of primary key and of column, under names and in shapes that are awkward. Each case
// writes through the library, rotates, runs batch by batch without any queue, and reads everything back.
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { examineEverything } from '../../src/control/doctor.js';
import type { RunReport } from '../../src/control/runs.js';
import type { Keyturn, KeyValue } from '../../src/index.js';
import { startDirectRunner, type DirectRunner } from '../support/direct-run.js';
import {
  ddlOf,
  keyedConfig,
  keyedTables,
  keyParameters,
  quoted,
  whereKey,
  type KeyedTable,
} from '../support/keyed-tables.js';
import { openShop, type Shop } from '../support/shop.js';

const plaintextOf = (key: readonly KeyValue[]): string => `secret of ${key.map(String).join('|')}`;

describe('every kind of primary key', () => {
  let shop: Shop;
  let keyturn: Keyturn;
  let runner: DirectRunner;
  let firstKeyId: number;
  let newKeyId: number;
  let report: RunReport;

  async function insert(table: KeyedTable): Promise<void> {
    const column = keyturn.column(`public.${table.name}`, 'secret');
    const names = table.key.map(({ name }) => quoted(name)).join(', ');
    const values = table.key.map(({ type }, at) => `$${at + 2}::text::${type}`).join(', ');
    for (const key of table.keys) {
      const stored = await column.encrypt({ pk: key }, plaintextOf(key));
      await shop.query(`INSERT INTO ${quoted(table.name)} (secret, ${names}) VALUES ($1, ${values})`, [
        stored,
        ...keyParameters(key),
      ]);
    }
  }

  beforeAll(async () => {
    shop = await openShop({ config: keyedConfig, ddl: keyedTables.flatMap(ddlOf) });
    firstKeyId = Number((await shop.query(`SELECT id FROM keyturn.data_key WHERE state = 'active'`))[0]?.['id']);
    keyturn = await shop.open();
    for (const table of keyedTables) await insert(table);
    await keyturn.close();
    newKeyId = await shop.rotate();
    runner = await startDirectRunner(shop);
    report = await runner.finish(await shop.order());
    keyturn = await shop.open();
  });

  afterAll(async () => {
    await runner.close();
    await shop.close();
  });

  test('one run moves the rows of all of them, each exactly once (I4)', () => {
    const rows = keyedTables.reduce((sum, table) => sum + table.keys.length, 0);
    expect(report).toMatchObject({
      state: 'succeeded',
      target_key_id: newKeyId,
      rows_examined: rows,
      rows_updated: rows,
      fields_examined: rows,
      fields_reencrypted: rows,
      fields_stale: 0,
      failures: [],
    });
  });

  for (const table of keyedTables) {
    test(`${table.kind}: every cell is under the new key and decrypts where it was written`, async () => {
      const column = keyturn.column(`public.${table.name}`, 'secret');
      for (const key of table.keys) {
        const rows = await shop.query(
          `SELECT secret FROM ${quoted(table.name)} WHERE ${whereKey(table)}`,
          keyParameters(key),
        );
        expect(rows).toHaveLength(1);
        const decrypted = await column.decrypt({ pk: key }, rows[0]?.['secret'] as string);
        expect(decrypted).toEqual({ plaintext: plaintextOf(key), keyId: newKeyId, stale: false });
      }
      expect(newKeyId).not.toBe(firstKeyId);
    });

    test(`${table.kind}: the ledger has each row once`, async () => {
      const [row] = await shop.query(
        `SELECT sum(l.rows_examined)::int AS rows, sum(l.cells_reencrypted)::int AS cells FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id
         JOIN keyturn.target t ON t.id = b.target_id WHERE b.run_id = $1 AND b.kind = 'reencrypt' AND t.table_name = $2`,
        [report.run_id, table.name],
      );
      expect(row).toEqual({ rows: table.keys.length, cells: table.keys.length });
    });
  }

  test('a deep verification decrypts all of it and finds nothing stale', async () => {
    const verified = await runner.finish(await shop.order({ kind: 'verify', deep: true }));
    expect(verified).toMatchObject({
      state: 'succeeded',
      fields_examined: report.fields_examined,
      fields_stale: 0,
      fields_failed: 0,
    });
  });

  test('the key of a row can be given by column name, in any order', async () => {
    const column = keyturn.column('public.by_uuid_bigint_varchar', 'secret');
    const stored = await column.encrypt(
      { pk: { code: 'b', number: '12', tenant: 'ABCDEF01-2345-4678-9ABC-DEF012345678' } },
      'x',
    );
    const same = { pk: ['abcdef01-2345-4678-9abc-def012345678', 12n, 'b'] };
    expect((await column.decrypt(same, stored)).plaintext).toBe('x');
  });
});

describe('every kind of column', () => {
  const ddl = [
    `CREATE TABLE document (id int PRIMARY KEY, title text, "Code ""x"" \\ y" varchar(300), content bytea, facts jsonb, plain text,
       updated_at timestamptz NOT NULL DEFAULT 'epoch', version int NOT NULL DEFAULT 1)`,
  ];
  const triggers = [
    `CREATE TABLE journal (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text)`,
    `CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at := clock_timestamp(); NEW.version := OLD.version + 1; RETURN NEW; END $$`,
    `CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO journal (what) VALUES (TG_NAME); RETURN NULL; END $$`,
    `CREATE TRIGGER touch BEFORE UPDATE ON document FOR EACH ROW WHEN (current_setting('keyturn.active', true) IS DISTINCT FROM '1') EXECUTE FUNCTION touch()`,
    `CREATE TRIGGER note_statement AFTER UPDATE ON document FOR EACH STATEMENT WHEN (current_setting('keyturn.active', true) IS DISTINCT FROM '1') EXECUTE FUNCTION note()`,
    `CREATE TRIGGER note_row AFTER UPDATE OF title ON document FOR EACH ROW EXECUTE FUNCTION note()`,
  ];
  const config = {
    keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
    targets: [
      {
        table: 'document',
        keyring: 'customers',
        columns: {
          title: {},
          'Code "x" \\ y': { bind: 'column' as const },
          content: {},
          facts: {
            paths: {
              ssn: ['ssn'],
              iban: ['bank', 'iban'],
              second: ['list', '1'],
              odd: ['a "b" \\ \'c\'', 'ü'],
              deep: ['bank', 'history', '0', 'iban'],
            },
          },
        },
      },
    ],
  };

  const longText = 'Grüße 👋 '.repeat(2_000);
  const bytes = Buffer.from(Array.from({ length: 512 }, (_, at) => at & 0xff));

  /** What the application keeps in each cell of a row; null for no cell. */
  interface Row {
    readonly id: number;
    readonly cells: Readonly<Record<string, string | Buffer | null>>;
    /** The document around the encrypted paths. */
    readonly facts: unknown;
  }

  const code = 'Code "x" \\ y';
  const rows: readonly Row[] = [
    {
      id: 1,
      cells: {
        title: 'Ada',
        [code]: 'A-1',
        content: bytes,
        'facts.ssn': '1',
        'facts.iban': 'DE1',
        'facts.second': 's',
        'facts.odd': 'o',
        'facts.deep': 'd',
      },
      facts: {
        ssn: '?',
        bank: { iban: '?', bic: 'X', history: [{ iban: '?', year: 1.5 }, 2] },
        list: [1, '?', null],
        'a "b" \\ \'c\'': { ü: '?', kept: [] },
        n: null,
      },
    },
    {
      id: 2,
      cells: { title: '', [code]: '', content: Buffer.alloc(0), 'facts.ssn': '', 'facts.iban': null },
      facts: { ssn: '?', bank: { iban: null } },
    },
    { id: 3, cells: { title: null, [code]: null, content: null }, facts: null },
    {
      id: 4,
      cells: { title: longText, [code]: 'x'.repeat(150), content: Buffer.concat(Array<Buffer>(200).fill(bytes)) },
      facts: { empty: {}, big: 1234567890.125 },
    },
    // Documents in which the paths lead nowhere: a scalar, a list, a list where an object was expected, a JSON null.
    { id: 5, cells: { title: 'scalar' }, facts: 'just text' },
    { id: 6, cells: { title: 'list' }, facts: [['ssn'], { bank: 1 }] },
    {
      id: 7,
      cells: { title: 'shapes', 'facts.ssn': null },
      facts: { ssn: null, bank: [1, 2], list: { '1': 'not encrypted: an object has this key' } },
    },
    { id: 8, cells: { title: 'null' }, facts: 'JSON null' },
    { id: 9, cells: { title: null, 'facts.deep': 'only here' }, facts: { bank: { history: [{ iban: '?' }] } } },
  ];

  const pathsOf: Readonly<Record<string, readonly string[]>> = Object.fromEntries(
    Object.entries(config.targets[0]?.columns.facts.paths ?? {}).map(([name, path]) => [`facts.${name}`, path]),
  );

  let shop: Shop;
  let runner: DirectRunner;
  let warnings: readonly string[];
  let before: Record<string, unknown>[];
  let placesBefore: Record<string, unknown>[];
  let report: RunReport;
  let keyId: number;

  /** Everything but the envelopes. */
  const image = `SELECT id, plain, updated_at, version, regexp_replace(facts::text, '"kt1\\.[^"]*"', '"?"', 'g') AS around
    FROM document ORDER BY id`;
  const places = 'SELECT id, ctid::text FROM document ORDER BY id';

  beforeAll(async () => {
    shop = await openShop({ config, ddl });
    const keyturn = await shop.open();
    for (const row of rows) {
      const stored: Record<string, string | Buffer | null> = {};
      for (const [name, plaintext] of Object.entries(row.cells)) {
        stored[name] =
          plaintext === null ? null : await keyturn.column('document', name).encrypt({ pk: row.id }, plaintext);
      }
      const facts = row.id === 3 ? null : row.id === 8 ? 'null' : JSON.stringify(row.facts);
      await shop.query(
        `INSERT INTO document (id, title, ${quoted(code)}, content, facts, plain) VALUES ($1, $2, $3, $4, $5, 'kept')`,
        [row.id, stored['title'], stored[code], stored['content'], facts],
      );
      for (const [name, path] of Object.entries(pathsOf)) {
        const value = stored[name];
        if (typeof value === 'string')
          await shop.query(
            'UPDATE document SET facts = jsonb_set(facts, $2::text[], to_jsonb($3::text)) WHERE id = $1',
            [row.id, path, value],
          );
      }
    }
    await keyturn.close();
    for (const statement of triggers) await shop.query(statement);
    warnings = (await examineEverything(shop.control.context))
      .filter(({ check }) => check === 'trigger')
      .map(({ reason }) => reason);
    before = await shop.query(image);
    placesBefore = await shop.query(places);
    keyId = await shop.rotate();
    runner = await startDirectRunner(shop);
    report = await runner.finish(await shop.order());
  });

  afterAll(async () => {
    await runner.close();
    await shop.close();
  });

  test('NULL, JSON null and paths that lead nowhere are no cells; the empty string is one', () => {
    const cells = rows.flatMap((row) => Object.values(row.cells)).filter((value) => value !== null).length;
    // Row 7 keeps a text under list: { "1": … }, which the path ["list", "1"] names as well.
    expect(report).toMatchObject({
      state: 'completed_with_failures',
      fields_examined: cells + 1,
      fields_reencrypted: cells,
      fields_failed: 1,
    });
    expect(report.failures).toEqual([
      { target: 'public.document', field: 'facts.second', cause: 'NOT_AN_ENVELOPE', key_id: null, cells: 1 },
    ]);
  });

  test('every cell decrypts to what was written, and is under the new key', async () => {
    const keyturn = await shop.open();
    for (const row of rows) {
      for (const [name, plaintext] of Object.entries(row.cells)) {
        const path = pathsOf[name];
        const expression = path === undefined ? quoted(name) : 'facts #>> $2::text[]';
        const [found] = await shop.query(
          `SELECT ${expression} AS stored FROM document WHERE id = $1`,
          path === undefined ? [row.id] : [row.id, path],
        );
        const stored = found?.['stored'] as string | Buffer | null;
        const seen = stored === null ? null : await keyturn.column('document', name).decrypt({ pk: row.id }, stored);
        expect(seen).toEqual(plaintext === null ? null : { plaintext, keyId, stale: false });
      }
    }
  });

  test('the rest of every row and document is byte for byte as it was', async () => {
    expect(await shop.query(image)).toEqual(before);
    expect(before[0]?.['around']).toContain('"kept": []');
  });

  test('rows without a stale cell are not rewritten: they stay where they were', async () => {
    const now = await shop.query(places);
    const unmoved = placesBefore.filter((row, at) => now[at]?.['ctid'] === row['ctid']).map((row) => row['id']);
    expect(unmoved).toEqual([3]);
  });

  test('updated_at and version are untouched, triggers with the opt-out clause did not fire, the other one did, for each row', async () => {
    expect(
      await shop.query(`SELECT count(*)::int AS n FROM document WHERE updated_at <> 'epoch' OR version <> 1`),
    ).toEqual([{ n: 0 }]);
    const fired = await shop.query('SELECT what, count(*)::int AS n FROM journal GROUP BY what');
    const moved = rows.filter((row) => Object.values(row.cells).some((cell) => cell !== null)).length;
    expect(fired).toEqual([{ what: 'note_row', n: moved }]);
  });

  test('doctor had listed exactly the trigger without the clause', () => {
    expect(warnings).toEqual([
      expect.stringContaining('trigger note_row fires when a row is rewritten: CREATE TRIGGER note_row'),
    ]);
  });

  test("the application's own update still fires its triggers", async () => {
    await shop.query(`UPDATE document SET plain = 'changed' WHERE id = 1`);
    expect(await shop.query(`SELECT version, updated_at > 'epoch' AS touched FROM document WHERE id = 1`)).toEqual([
      { version: 2, touched: true },
    ]);
  });
});

describe('a table of several batches that is written meanwhile', () => {
  const spacing = 10;
  const initialRows = 9_500;
  let shop: Shop;
  let keyturn: Keyturn;
  let runner: DirectRunner;
  let report: RunReport;
  let visits = 0;
  const inserted: number[] = [];
  const deleted: number[] = [];

  async function insert(ids: readonly number[]): Promise<void> {
    const column = keyturn.column('visitor', 'secret');
    const secrets = await Promise.all(ids.map((id) => column.encrypt({ pk: id }, `visitor ${id}`)));
    await shop.query('INSERT INTO visitor SELECT * FROM unnest($1::bigint[], $2::text[])', [ids, secrets]);
  }

  /** Between two batches: rows appear before, between and behind those that are there, and others go. */
  async function churn(): Promise<void> {
    visits++;
    const places = [-visits, 1_000 + visits, 5_000 + visits, initialRows + visits];
    const added = places.map((place) => place * spacing + 3);
    const gone = [2_000 + visits, 7_000 + visits, 9_000 + visits].map((place) => place * spacing);
    await insert(added);
    inserted.push(...added);
    await shop.query('DELETE FROM visitor WHERE id = ANY($1::bigint[])', [gone]);
    deleted.push(...gone);
  }

  beforeAll(async () => {
    shop = await openShop({
      config: {
        keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
        targets: [{ table: 'visitor', keyring: 'customers', columns: { secret: {} } }],
      },
      ddl: [
        'CREATE TABLE visitor (id bigint PRIMARY KEY, secret text)',
        'CREATE TABLE rewrite (id bigint)',
        'CREATE FUNCTION note_rewrite() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO rewrite VALUES (NEW.id); RETURN NULL; END $$',
        'CREATE TRIGGER note_rewrite AFTER UPDATE ON visitor FOR EACH ROW EXECUTE FUNCTION note_rewrite()',
      ],
    });
    keyturn = await shop.open();
    await insert(Array.from({ length: initialRows }, (_, at) => at * spacing));
    await keyturn.close();
    await shop.rotate();
    keyturn = await shop.open();
    runner = await startDirectRunner(shop, { beforeBatch: churn });
    report = await runner.finish(await shop.order());
  });

  afterAll(async () => {
    await runner.close();
    await shop.close();
  });

  test('I4 every row that was there all the time is rewritten exactly once, no other ever', async () => {
    const rewritten = (await shop.query('SELECT id::int, count(*)::int AS times FROM rewrite GROUP BY id')).map(
      ({ id, times }) => ({ id: Number(id), times }),
    );
    expect(rewritten.filter(({ times }) => times !== 1)).toEqual([]);
    const ids = new Set(rewritten.map(({ id }) => id));
    const stayed = Array.from({ length: initialRows }, (_, at) => at * spacing).filter((id) => !deleted.includes(id));
    expect(stayed.filter((id) => !ids.has(id))).toEqual([]);
    expect(inserted.filter((id) => ids.has(id))).toEqual([]);
    expect(report).toMatchObject({ state: 'succeeded', rows_updated: ids.size, fields_stale: 0, fields_failed: 0 });
    expect(inserted.length).toBeGreaterThan(10);
  });

  test('its batches follow each other without gap or overlap up to the bound of the plan, in several slices', async () => {
    const batches = await shop.query(
      `SELECT after_key[1] AS after, upto_key[1] AS upto, slices FROM keyturn.batch WHERE run_id = $1 AND pass = 1 ORDER BY id`,
      [report.run_id],
    );
    expect(batches.length).toBeGreaterThan(2);
    expect(batches.map(({ after }) => after)).toEqual([null, ...batches.slice(0, -1).map(({ upto }) => upto)]);
    expect(batches.at(-1)?.['upto']).toBe(String((initialRows - 1) * spacing));
    expect(batches.reduce((sum, { slices }) => sum + Number(slices), 0)).toBeGreaterThan(batches.length * 2);
  });

  test('every value of every row decrypts, those written during the run included', async () => {
    const column = keyturn.column('visitor', 'secret');
    const rows = await shop.query('SELECT id, secret FROM visitor');
    expect(rows.length).toBe(initialRows - deleted.length + inserted.length);
    const wrong: string[] = [];
    for (const { id, secret } of rows) {
      const { plaintext, stale } = await column.decrypt({ pk: String(id) }, String(secret));
      if (plaintext !== `visitor ${String(id)}` || stale) wrong.push(String(id));
    }
    expect(wrong).toEqual([]);
  });
});
