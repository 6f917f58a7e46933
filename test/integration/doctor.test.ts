// doctor: every shape of table, server and queue that is not handled is refused or warned of, with a reason and a remedy;
// nothing is passed over in silence.
import { Redis } from 'ioredis';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import type { OpenControl } from '../../src/control/context.js';
import { examineCrypto, examineEverything, examineServerVersion } from '../../src/control/doctor.js';
import { describeCrypto, nativeAddon } from '../../src/crypto/native-addon.js';
import { init } from '../../src/control/init.js';
import { orderRun } from '../../src/control/runs.js';
import { readStatus } from '../../src/control/status.js';
import type { Finding } from '../../src/engine/preflight.js';
import { availableBackends } from '../support/backends.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { startPooler } from '../support/pooler.js';
import { startPrivateRedis } from '../support/redis.js';
import { createTestRole } from '../support/roles.js';
import { openShop, shopConfig, type Shop } from '../support/shop.js';

type TargetFile = NonNullable<ConfigFile['targets']>[number];

interface Shape {
  readonly what: string;
  readonly table: string;
  readonly ddl: readonly string[];
  readonly target?: Partial<TargetFile>;
  /** Findings other than `ok`, in order: level, check, and what reason and remedy must say. */
  readonly found: readonly (readonly ['refuse' | 'warn', string, RegExp, RegExp])[];
}

const email = { columns: { email: {} } };
const changes = 'RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$';

const shapes: readonly Shape[] = [
  {
    what: 'a plain table',
    table: 'plain',
    ddl: ['CREATE TABLE plain (id bigint PRIMARY KEY, email text)'],
    found: [],
  },
  {
    what: 'a table that is not there',
    table: 'missing',
    ddl: [],
    found: [['refuse', 'table', /^there is no such table$/, /check the name in keyturn.yaml/]],
  },
  {
    what: 'a view',
    table: 'some_view',
    ddl: ['CREATE VIEW some_view AS SELECT id, email FROM plain'],
    found: [
      ['refuse', 'table', /it is a view/, /register the table that holds the rows/],
      ['refuse', 'primary key', /it has no primary key/, /ADD COLUMN id/],
    ],
  },
  {
    what: 'a materialized view',
    table: 'kept_view',
    ddl: ['CREATE MATERIALIZED VIEW kept_view AS SELECT id FROM plain', 'CREATE UNIQUE INDEX ON kept_view (id)'],
    found: [
      ['refuse', 'table', /it is a materialized view/, /register the table/],
      ['refuse', 'primary key', /it has no primary key/, /ADD COLUMN id/],
      ['refuse', 'column', /the table has no column "email"/, /check the name/],
    ],
  },
  {
    what: 'a table without a primary key',
    table: 'keyless',
    ddl: ['CREATE TABLE keyless (id bigint NOT NULL UNIQUE, email text)'],
    found: [
      [
        'refuse',
        'primary key',
        /it has no primary key, so its rows have no address/,
        /^ALTER TABLE public.keyless ADD COLUMN id bigint/,
      ],
    ],
  },
  {
    what: 'a deferrable primary key',
    table: 'deferred',
    ddl: ['CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE, email text)'],
    found: [['refuse', 'primary key', /is deferrable, so it may hold duplicates/, /NOT DEFERRABLE/]],
  },
  {
    what: 'a primary key that only the database can make',
    table: 'always_numbered',
    ddl: ['CREATE TABLE always_numbered (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text)'],
    found: [['warn', 'primary key', /only the database can make its numbers/, /BY DEFAULT, or bind: column/]],
  },
  {
    what: 'a primary key whose default cannot be fetched beforehand',
    table: 'made_up',
    ddl: [
      `CREATE SEQUENCE made_up_numbers`,
      `CREATE TABLE made_up (id text DEFAULT 'C' || nextval('made_up_numbers'), part int DEFAULT nextval('made_up_numbers'), other uuid DEFAULT gen_random_uuid(), email text, PRIMARY KEY (id, part, other))`,
    ],
    found: [
      ['warn', 'primary key', /its default is an expression that only the database can work out/, /or bind: column/],
    ],
  },
  {
    what: 'primary keys of types without one text form',
    table: 'odd_keys',
    ddl: [
      'CREATE DOMAIN customer_number AS int',
      'CREATE TABLE odd_keys (a numeric, b date, c char(3), d customer_number, e int, f timestamptz, email text, PRIMARY KEY (a, b, c, d, e, f))',
    ],
    found: [
      [
        'refuse',
        'primary key',
        /^a numeric key prints differently/,
        /use one of smallint, integer, bigint, uuid, text, character varying, or add an identity column/,
      ],
      ['refuse', 'primary key', /^a date key/, /use one of/],
      ['refuse', 'primary key', /^a character key/, /use one of/],
      ['refuse', 'primary key', /^a customer_number key/, /use one of/],
      ['refuse', 'primary key', /^a timestamp with time zone key/, /use one of/],
    ],
  },
  {
    what: 'a primary key whose collation ignores case',
    table: 'caseless',
    ddl: [
      `CREATE COLLATION ignore_case (provider = icu, locale = 'und-u-ks-level2', deterministic = false)`,
      'CREATE TABLE caseless (id text COLLATE ignore_case PRIMARY KEY, email text)',
    ],
    found: [
      [
        'warn',
        'primary key',
        /its collation calls different texts equal/,
        /address each row by its key as it is stored/,
      ],
    ],
  },
  {
    what: 'an encrypted column that belongs to the primary key',
    table: 'key_itself',
    ddl: ['CREATE TABLE key_itself (id int, email text, PRIMARY KEY (id, email))'],
    found: [
      ['refuse', 'unique index', /unique index key_itself_pkey compares envelopes/, /keyed digest/],
      ['refuse', 'column', /it is part of the primary key/, /encrypt another column/],
    ],
  },
  {
    what: 'a column that is not there, of a type that holds no envelope, or jsonb without paths',
    table: 'columns',
    ddl: [
      'CREATE DOMAIN mail AS text',
      'CREATE TABLE columns (id int PRIMARY KEY, a int, b char(200), c mail, d jsonb, e text, f json, g text[])',
    ],
    target: {
      columns: { none: {}, a: {}, b: {}, c: {}, d: {}, e: { paths: { x: ['x'] } }, f: { paths: { x: ['x'] } }, g: {} },
    },
    found: [
      ['refuse', 'column', /the table has no column "none"/, /check the name in keyturn.yaml/],
      ['refuse', 'column type', /^integer holds no envelopes/, /use text, varchar, bytea, or jsonb with paths/],
      ['refuse', 'column type', /^character holds no envelopes/, /use text/],
      ['refuse', 'column type', /^mail holds no envelopes/, /use text/],
      ['refuse', 'column type', /a whole jsonb column holds no envelope/, /name the paths that are encrypted/],
      [
        'refuse',
        'column type',
        /paths need a jsonb column, this one is text/,
        /change it to jsonb, or register it without paths/,
      ],
      ['refuse', 'column type', /paths need a jsonb column, this one is json/, /change it to jsonb/],
      ['refuse', 'column type', /^text\[\] holds no envelopes/, /use text/],
    ],
  },
  {
    what: 'an unknown format',
    table: 'formats',
    ddl: ['CREATE TABLE formats (id int PRIMARY KEY, email text)'],
    target: { columns: { email: { format: 'fernet' } } },
    found: [['refuse', 'format', /format "fernet" is unknown/, /use one of keyturn/]],
  },
  {
    what: 'varchar columns that are too short for an envelope, or short',
    table: 'short',
    ddl: ['CREATE TABLE short (id int PRIMARY KEY, a varchar(73), b varchar(74), c varchar(300), d varchar)'],
    target: { columns: { a: {}, b: {}, c: {}, d: {} } },
    found: [
      [
        'refuse',
        'length',
        /varchar\(73\) is too short: the envelope of an empty value takes 74 characters/,
        /ALTER COLUMN "a" TYPE text/,
      ],
      ['warn', 'length', /varchar\(74\) holds envelopes of plaintexts up to 0 bytes/, /ALTER COLUMN "b" TYPE text/],
      ['warn', 'length', /varchar\(300\) holds envelopes of plaintexts up to 170 bytes/, /ALTER COLUMN "c" TYPE text/],
    ],
  },
  {
    what: 'a generated column, and one that others are generated from',
    table: 'generated',
    ddl: [
      `CREATE TABLE generated (id int PRIMARY KEY, email text, upper_email text GENERATED ALWAYS AS (upper(email)) STORED,
         profile jsonb, sku text GENERATED ALWAYS AS (profile ->> 'sku') STORED)`,
    ],
    target: { columns: { email: {}, upper_email: {}, profile: { paths: { ssn: ['ssn'] } } } },
    found: [
      ['refuse', 'generated column', /generated column upper_email is computed from the envelope/, /drop it/],
      [
        'refuse',
        'generated column',
        /it is generated, so it cannot be rewritten/,
        /register the column it is generated from/,
      ],
      [
        'warn',
        'generated column',
        /generated column sku is computed from the document/,
        /make sure that it reads other paths/,
      ],
    ],
  },
  {
    what: 'a column with a default',
    table: 'defaults',
    ddl: [
      `CREATE TABLE defaults (id int GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, email text DEFAULT 'none', profile jsonb NOT NULL DEFAULT '{}')`,
    ],
    target: { columns: { email: {}, profile: { paths: { ssn: ['ssn'] } } } },
    found: [
      ['warn', 'default', /takes the default of the column, which is no envelope/, /ALTER COLUMN "email" DROP DEFAULT/],
    ],
  },
  {
    what: 'indexes on the column',
    table: 'indexed',
    ddl: [
      'CREATE TABLE indexed (id int PRIMARY KEY, email text UNIQUE, name text, note text, tag text, profile jsonb)',
      'CREATE INDEX by_name ON indexed (name)',
      'CREATE INDEX by_upper_name ON indexed (upper(name))',
      'CREATE UNIQUE INDEX by_lower_note ON indexed (lower(note))',
      'CREATE UNIQUE INDEX tag_only_asked ON indexed (id) INCLUDE (tag) WHERE tag IS NOT NULL',
      `CREATE UNIQUE INDEX by_sku ON indexed ((profile ->> 'sku'))`,
    ],
    target: { columns: { email: {}, name: {}, note: {}, tag: {}, profile: { paths: { ssn: ['ssn'] } } } },
    found: [
      [
        'refuse',
        'unique index',
        /unique index indexed_email_key compares envelopes, which always differ/,
        /drop it; use a keyed digest/,
      ],
      ['warn', 'index', /index by_name on the envelope slows every rewrite/, /drop it/],
      ['warn', 'index', /index by_upper_name on the envelope/, /drop it/],
      ['refuse', 'unique index', /unique index by_lower_note compares envelopes/, /keyed digest/],
      ['warn', 'index', /index tag_only_asked on the envelope/, /drop it/],
      [
        'warn',
        'unique index',
        /unique index by_sku is computed from the document/,
        /make sure that it reads other paths/,
      ],
    ],
  },
  {
    what: 'an exclusion constraint, a check and a foreign key on the column',
    table: 'constrained',
    ddl: [
      'CREATE TABLE mails (email text PRIMARY KEY)',
      "CREATE TABLE constrained (id int PRIMARY KEY, email text REFERENCES mails, name text, note text, EXCLUDE USING hash (name WITH =), CONSTRAINT note_has_at CHECK (note LIKE '%@%'))",
    ],
    target: { columns: { email: {}, name: {}, note: {} } },
    found: [
      ['refuse', 'foreign key', /foreign key constrained_email_fkey compares envelopes/, /refer to another column/],
      ['refuse', 'unique index', /unique index constrained_name_excl compares envelopes/, /keyed digest/],
      [
        'warn',
        'check',
        /check note_has_at reads the envelope, and a failing check prints the row/,
        /make sure that it holds for every envelope/,
      ],
    ],
  },
  {
    what: 'a materialized view over the column',
    table: 'viewed',
    ddl: [
      'CREATE TABLE viewed (id int PRIMARY KEY, email text)',
      'CREATE MATERIALIZED VIEW mail_list AS SELECT email FROM viewed',
    ],
    found: [
      [
        'warn',
        'materialized view',
        /mail_list keeps copies of envelopes until refreshed/,
        /REFRESH MATERIALIZED VIEW mail_list after the run/,
      ],
    ],
  },
  {
    what: 'triggers: each is listed with the clause that opts out, those that opted out or do not fire are not',
    table: 'triggered',
    ddl: [
      'CREATE TABLE triggered (id int PRIMARY KEY, email text, name text)',
      `CREATE FUNCTION change() ${changes}`,
      'CREATE TRIGGER on_any_update BEFORE UPDATE ON triggered FOR EACH ROW EXECUTE FUNCTION change()',
      'CREATE TRIGGER on_email AFTER INSERT OR UPDATE OF email, name ON triggered FOR EACH STATEMENT EXECUTE FUNCTION change()',
      'CREATE TRIGGER on_name_only BEFORE UPDATE OF name ON triggered FOR EACH ROW EXECUTE FUNCTION change()',
      'CREATE TRIGGER on_insert BEFORE INSERT ON triggered FOR EACH ROW EXECUTE FUNCTION change()',
      'CREATE TRIGGER on_delete AFTER DELETE ON triggered FOR EACH ROW EXECUTE FUNCTION change()',
      `CREATE TRIGGER opted_out BEFORE UPDATE ON triggered FOR EACH ROW WHEN (current_setting('keyturn.active', true) IS DISTINCT FROM '1') EXECUTE FUNCTION change()`,
      `CREATE TRIGGER only_mentions BEFORE UPDATE ON triggered FOR EACH ROW EXECUTE FUNCTION change('keyturn.active')`,
      'CREATE TRIGGER switched_off BEFORE UPDATE ON triggered FOR EACH ROW EXECUTE FUNCTION change()',
      'ALTER TABLE triggered DISABLE TRIGGER switched_off',
    ],
    found: [
      [
        'warn',
        'trigger',
        /^trigger on_any_update fires when a row is rewritten: CREATE TRIGGER on_any_update/,
        /with the clause WHEN \(current_setting\('keyturn.active', true\) IS DISTINCT FROM '1'\)$/,
      ],
      ['warn', 'trigger', /^trigger on_email fires/, /with the clause WHEN/],
      ['warn', 'trigger', /^trigger only_mentions fires/, /with the clause WHEN/],
    ],
  },
  {
    what: 'a trigger on one partition only',
    table: 'parted',
    ddl: [
      'CREATE TABLE parted (id int PRIMARY KEY, email text) PARTITION BY RANGE (id)',
      'CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (MINVALUE) TO (0)',
      'CREATE TABLE parted_high PARTITION OF parted DEFAULT',
      'CREATE TRIGGER on_low BEFORE UPDATE ON parted_low FOR EACH ROW EXECUTE FUNCTION change()',
    ],
    found: [
      [
        'warn',
        'trigger',
        /^trigger on_low fires when a row is rewritten: .* ON public.parted_low /,
        /with the clause WHEN/,
      ],
    ],
  },
  {
    what: 'a single partition as a target',
    table: 'parted_high',
    ddl: [],
    found: [
      [
        'refuse',
        'partitions',
        /it is a partition of parted, and a row that moves to another partition/,
        /^register parted$/,
      ],
    ],
  },
  {
    what: 'rules on UPDATE',
    table: 'ruled',
    ddl: [
      'CREATE TABLE ruled (id int PRIMARY KEY, email text)',
      'CREATE RULE keep AS ON UPDATE TO ruled DO INSTEAD NOTHING',
      'CREATE RULE greet AS ON INSERT TO ruled DO ALSO NOTIFY ruled',
    ],
    found: [['refuse', 'rules', /rule keep rewrites every UPDATE/, /replace it by a trigger/]],
  },
  {
    what: 'a table that others inherit from',
    table: 'parent',
    ddl: ['CREATE TABLE parent (id int PRIMARY KEY, email text)', 'CREATE TABLE child () INHERITS (parent)'],
    found: [
      [
        'refuse',
        'inheritance',
        /tables inherit from it \(child\), so its primary key does not cover all its rows/,
        /use declarative partitioning/,
      ],
    ],
  },
  {
    what: 'paths that lie inside each other, or are the same',
    table: 'paths',
    ddl: ['CREATE TABLE paths (id int PRIMARY KEY, profile jsonb, other jsonb)'],
    target: {
      columns: {
        profile: { paths: { bank: ['bank'], iban: ['bank', 'iban'], again: ['bank'], apart: ['banks'] } },
        other: { paths: { bank: ['bank'] } },
      },
    },
    found: [
      [
        'refuse',
        'paths',
        /its path contains, or equals, that of profile.iban/,
        /let no registered path lie inside another/,
      ],
      ['refuse', 'paths', /its path contains, or equals, that of profile.again/, /inside another/],
      ['refuse', 'paths', /its path contains, or equals, that of profile.again/, /inside another/],
    ],
  },
  {
    what: 'tenant columns that are missing, of the wrong type, or encrypted themselves',
    table: 'no_scope',
    ddl: ['CREATE TABLE no_scope (id int PRIMARY KEY, email text)'],
    target: { ...email, scope: 'tenant' },
    found: [['refuse', 'scope', /there is no such tenant column/, /check scope: in keyturn.yaml/]],
  },
  {
    what: 'a tenant column without one text form',
    table: 'odd_scope',
    ddl: ['CREATE TABLE odd_scope (id int PRIMARY KEY, email text, tenant numeric)'],
    target: { ...email, scope: 'tenant' },
    found: [['refuse', 'scope', /a tenant column of type numeric has no one text form/, /use one of smallint/]],
  },
  {
    what: 'a tenant column that is encrypted itself',
    table: 'encrypted_scope',
    ddl: ['CREATE TABLE encrypted_scope (id int PRIMARY KEY, email text)'],
    target: { ...email, scope: 'email' },
    found: [['refuse', 'scope', /the tenant column is itself encrypted/, /name a column that is not encrypted/]],
  },
];

function rest(findings: readonly Finding[], check?: string): readonly Finding[] {
  return findings.filter((finding) => (check === undefined ? finding.level !== 'ok' : finding.check === check));
}

describe('tables', () => {
  let database: TestDatabase;
  let control: OpenControl;
  let findings: readonly Finding[];

  beforeAll(async () => {
    database = await createTestDatabase();
    for (const statement of shapes.flatMap(({ ddl }) => ddl)) await database.pool.query(statement);
    const config: ConfigFile = {
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: shapes.map(({ table, target }) => ({ table, keyring: 'customers', ...email, ...target })),
    };
    control = openControl({ environment: { DATABASE_URL: database.url }, file: config });
    findings = await examineEverything(control.context);
  });

  afterAll(async () => {
    await control.close();
    await database.drop();
  });

  for (const { what, table, found } of shapes) {
    test(`${what}: ${found.map(([level, check]) => `${level} ${check}`).join(', ') || 'nothing but ok'}`, () => {
      const about = rest(findings).filter(
        ({ subject }) => subject === `public.${table}` || subject.startsWith(`public.${table}.`),
      );
      expect(about.map(({ level, check }) => [level, check])).toEqual(found.map(([level, check]) => [level, check]));
      for (const [at, [, , reason, remedy]] of found.entries()) {
        expect(about[at]?.reason).toMatch(reason);
        expect(about[at]?.remedy).toMatch(remedy);
      }
      const isFine = findings.some(
        (finding) => finding.level === 'ok' && finding.check === 'target' && finding.subject === `public.${table}`,
      );
      expect(isFine).toBe(!found.some(([level]) => level === 'refuse'));
    });
  }

  test('a table that can be rotated comes with an estimate of its size', async () => {
    const plain = findings.find(({ subject, check }) => subject === 'public.plain' && check === 'target');
    expect(plain?.reason).toMatch(/^can be rotated: about \d+ rows by the last ANALYZE, \d+ MiB with its indexes$/);
  });

  test('init refuses what doctor refuses, names every reason, and registers none of the targets', async () => {
    await expect(init(control.context)).rejects.toMatchObject({ code: 'ROOT_KEY_UNAVAILABLE' });
    const withRoot = openControl({
      environment: { DATABASE_URL: database.url, KEYTURN_ROOT_KEY: '5e'.repeat(31) + '01' },
      file: {
        keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
        targets: shapes.map(({ table, target }) => ({ table, keyring: 'customers', ...email, ...target })),
      },
    });
    try {
      const refusals = rest(findings).filter(({ level }) => level === 'refuse');
      const error: unknown = await init(withRoot.context).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({
        code: 'PREFLIGHT_REFUSED',
        details: { subjects: refusals.map(({ subject }) => subject) },
      });
      for (const { subject, reason, remedy } of refusals)
        expect(String(error)).toContain(`${subject}: ${reason}; ${remedy}`);
      expect((await database.pool.query('SELECT FROM keyturn.target')).rowCount).toBe(0);
    } finally {
      await withRoot.close();
    }
  });
});

describe('row-level security', () => {
  test('is refused where it hides rows from the connected role, and warned of where it may hide them from workers', async () => {
    const database = await createTestDatabase();
    const role = await createTestRole();
    try {
      for (const statement of [
        'CREATE TABLE guarded (id int PRIMARY KEY, email text)',
        'ALTER TABLE guarded ENABLE ROW LEVEL SECURITY',
        'CREATE POLICY low ON guarded USING (id < 10)',
        'CREATE TABLE forced (id int PRIMARY KEY, email text)',
        'ALTER TABLE forced ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY',
        `GRANT SELECT ON guarded, forced TO ${role.name}`,
      ]) {
        await database.pool.query(statement);
      }
      const file: ConfigFile = {
        keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
        targets: ['guarded', 'forced'].map((table) => ({ table, keyring: 'customers', ...email })),
      };
      const seenBy = async (url: string): Promise<readonly Finding[]> => {
        const control = openControl({ environment: { DATABASE_URL: url }, file });
        const findings = await examineEverything(control.context).finally(control.close);
        return rest(findings, 'row security');
      };
      const stranger = await seenBy(role.urlFor(database.url));
      expect(stranger.map(({ level, subject }) => [level, subject])).toEqual([
        ['refuse', 'public.guarded'],
        ['refuse', 'public.forced'],
      ]);
      expect(stranger[0]).toMatchObject({
        reason: 'row-level security hides rows from the connected role, so they would be missed',
        remedy: expect.stringContaining('BYPASSRLS') as string,
      });
      const superuser = await seenBy(database.url);
      expect(superuser.map(({ level, subject }) => [level, subject])).toEqual([
        ['warn', 'public.guarded'],
        ['warn', 'public.forced'],
      ]);
      expect(superuser[0]).toMatchObject({
        reason: expect.stringContaining('may to the role that workers connect as') as string,
        remedy: expect.stringContaining('BYPASSRLS') as string,
      });
    } finally {
      await database.drop();
      await role.drop();
    }
  });
});

describe('foreign partitions', () => {
  test('are refused by name', async (context) => {
    const database = await createTestDatabase();
    try {
      const { rowCount } = await database.pool.query(`SELECT FROM pg_available_extensions WHERE name = 'postgres_fdw'`);
      if (rowCount === 0) context.skip('this server comes without postgres_fdw');
      for (const statement of [
        'CREATE EXTENSION postgres_fdw',
        'CREATE SERVER elsewhere FOREIGN DATA WRAPPER postgres_fdw',
        'CREATE TABLE spread (id int NOT NULL, email text) PARTITION BY RANGE (id)',
        'CREATE TABLE spread_here PARTITION OF spread FOR VALUES FROM (0) TO (10)',
        'CREATE FOREIGN TABLE spread_there PARTITION OF spread DEFAULT SERVER elsewhere',
      ]) {
        await database.pool.query(statement);
      }
      const control = openControl({
        environment: { DATABASE_URL: database.url },
        file: {
          keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
          targets: ['spread', 'spread_there'].map((table) => ({ table, keyring: 'customers', ...email })),
        },
      });
      const findings = await examineEverything(control.context).finally(control.close);
      expect(findings).toContainEqual({
        level: 'refuse',
        check: 'partitions',
        subject: 'public.spread',
        reason: 'it has foreign partitions (spread_there), whose rows cannot be moved here',
        remedy: 'detach them, or move their rows where they live',
      });
      expect(findings).toContainEqual(
        expect.objectContaining({
          level: 'refuse',
          check: 'table',
          subject: 'public.spread_there',
          reason: 'it is a foreign table',
        }),
      );
    } finally {
      await database.drop();
    }
  });
});

describe('targets that changed after they were registered', () => {
  let shop: Shop;
  let drifted: readonly Finding[];

  const drifts: readonly {
    table: string;
    ddl: string;
    level: Finding['level'];
    check: string;
    subject: string;
    reason: RegExp;
    remedy: RegExp;
  }[] = [
    {
      table: 'lost_column',
      ddl: 'ALTER TABLE lost_column DROP COLUMN email',
      level: 'refuse',
      check: 'column',
      subject: 'public.lost_column.email',
      reason: /the table has no column "email"/,
      remedy: /check the name/,
    },
    {
      table: 'other_type',
      ddl: 'ALTER TABLE other_type ALTER COLUMN email TYPE char(300)',
      level: 'refuse',
      check: 'column type',
      subject: 'public.other_type.email',
      reason: /character holds no envelopes/,
      remedy: /use text/,
    },
    {
      table: 'lost_key',
      ddl: 'ALTER TABLE lost_key DROP CONSTRAINT lost_key_pkey',
      level: 'refuse',
      check: 'primary key',
      subject: 'public.lost_key',
      reason: /it has no primary key/,
      remedy: /ADD COLUMN/,
    },
    {
      table: 'other_key',
      ddl: 'ALTER TABLE other_key DROP CONSTRAINT other_key_pkey, ADD PRIMARY KEY (number)',
      level: 'refuse',
      check: 'binding',
      subject: 'public.other_key',
      reason: /its primary key is not the one it was registered with/,
      remedy: /change it back/,
    },
    {
      table: 'other_kind',
      ddl: 'ALTER TABLE other_kind ALTER COLUMN id TYPE text',
      level: 'refuse',
      check: 'binding',
      subject: 'public.other_kind',
      reason: /its primary key is not the one it was registered with/,
      remedy: /change it back/,
    },
    {
      table: 'made_anew',
      ddl: 'DROP TABLE made_anew; CREATE TABLE made_anew (id int PRIMARY KEY, number int, email text)',
      level: 'refuse',
      check: 'table',
      subject: 'public.made_anew',
      reason: /was created anew since it was registered, so a run would pass its rows over/,
      remedy: /^keyturn init$/,
    },
    {
      table: 'dropped',
      ddl: 'DROP TABLE dropped',
      level: 'warn',
      check: 'table',
      subject: 'public.dropped',
      reason: /its table was dropped/,
      remedy: /^keyturn target rename public.dropped NEW/,
    },
  ];
  const config: ConfigFile = {
    keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
    targets: ['untouched', ...drifts.map(({ table }) => table)].map((table) => ({
      table,
      keyring: 'customers',
      ...email,
    })),
  };

  beforeAll(async () => {
    shop = await openShop({
      config,
      ddl: (config.targets ?? []).map(
        ({ table }) => `CREATE TABLE ${table} (id int PRIMARY KEY, number int NOT NULL, email text)`,
      ),
    });
    for (const { ddl } of drifts) await shop.query(ddl);
    drifted = await examineEverything(shop.control.context);
  });

  afterAll(() => shop.close());

  for (const { table, ...finding } of drifts) {
    test(`${table}: ${finding.level} ${finding.check}`, () => {
      const about = rest(drifted).filter(({ subject }) => subject.startsWith(`public.${table}`));
      expect(about).toHaveLength(1);
      expect(about[0]).toMatchObject({
        level: finding.level,
        check: finding.check,
        subject: finding.subject,
        reason: expect.stringMatching(finding.reason) as string,
        remedy: expect.stringMatching(finding.remedy) as string,
      });
    });
  }

  test('a run over the keyring is refused with all of those reasons, none of its tables passed over', async () => {
    const order = orderRun(shop.control.context, {
      kind: 'reencrypt',
      keyring: undefined,
      target: undefined,
      scope: undefined,
      deep: false,
      reason: undefined,
    });
    const error: unknown = await order.catch((thrown: unknown) => thrown);
    const subjects = drifts.filter(({ level }) => level === 'refuse').map(({ subject }) => subject);
    expect(error).toMatchObject({
      code: 'PREFLIGHT_REFUSED',
      details: { subjects: expect.arrayContaining(subjects) as string[] },
    });
    expect(await shop.query('SELECT FROM keyturn.run')).toEqual([]);
  });

  test('status goes on answering', async () => {
    const { keyrings } = await readStatus(shop.control.context);
    expect(keyrings).toMatchObject([{ keyring: 'customers', targets: drifts.length + 1 }]);
  });

  test('a column that the file adds to a registered target is examined before init sees it', async () => {
    const file: ConfigFile = {
      ...config,
      targets: [{ table: 'untouched', keyring: 'customers', columns: { email: {}, number: {} } }],
    };
    const control = openControl({ environment: shop.environment(), file });
    const findings = await examineEverything(control.context).finally(control.close);
    expect(rest(findings).filter(({ subject }) => subject.startsWith('public.untouched'))).toEqual([
      {
        level: 'refuse',
        check: 'column type',
        subject: 'public.untouched.number',
        reason: 'integer holds no envelopes',
        remedy: 'use text, varchar, bytea, or jsonb with paths',
      },
    ]);
  });
});

describe('server and connections', () => {
  let database: TestDatabase;

  beforeAll(async () => {
    database = await createTestDatabase();
  });

  afterAll(() => database.drop());

  async function examine(environment: Record<string, string>, check: string): Promise<readonly Finding[]> {
    const control = openControl({ environment, file: { keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } } } });
    return rest(await examineEverything(control.context).finally(control.close), check);
  }

  test('a server from version 14 on is fine, an older one is refused', () => {
    expect(examineServerVersion(140_000)).toMatchObject({ level: 'ok', subject: 'PostgreSQL 14.0' });
    expect(examineServerVersion(180_004)).toMatchObject({ level: 'ok', subject: 'PostgreSQL 18.4' });
    expect(examineServerVersion(130_021)).toEqual({
      level: 'refuse',
      check: 'server version',
      subject: 'PostgreSQL 13.21',
      reason: 'is older than PostgreSQL 14',
      remedy: 'upgrade the server',
    });
  });

  test('it says which path to OpenSSL is in use here, and how the native one is built where it is not', async () => {
    expect(examineCrypto(true, 'the native batch path')).toMatchObject({
      level: 'ok',
      reason: 'is called through the native batch path',
    });
    expect(examineCrypto(false, 'node:crypto').reason).toContain('npm run build:native');
    expect(await examine({ DATABASE_URL: database.url }, 'cryptography')).toEqual([
      examineCrypto(nativeAddon !== undefined, describeCrypto()),
    ]);
  });

  test('this server is fine', async () => {
    const environment = { DATABASE_URL: database.url };
    expect(await examine(environment, 'server version')).toMatchObject([{ level: 'ok' }]);
    expect(await examine(environment, 'server role')).toMatchObject([{ level: 'ok', reason: 'is a writable primary' }]);
    expect(await examine(environment, 'pooler')).toMatchObject([
      { level: 'ok', reason: 'reaches the server directly' },
    ]);
    expect(await examine(environment, 'queue')).toMatchObject([{ level: 'ok', subject: 'PostgreSQL' }]);
  });

  test('a database that was never initialised is a warning that names init', async () => {
    expect(await examine({ DATABASE_URL: database.url }, 'schema')).toMatchObject([
      { level: 'warn', reason: expect.stringContaining('no keyturn schema') as string, remedy: 'keyturn init' },
    ]);
  });

  test('read-only transactions are refused', async () => {
    const name = new URL(database.url).pathname.slice(1);
    await database.pool.query(`ALTER DATABASE ${name} SET default_transaction_read_only = on`);
    try {
      expect(await examine({ DATABASE_URL: database.url }, 'server role')).toEqual([
        {
          level: 'refuse',
          check: 'server role',
          subject: 'server',
          reason: 'transactions are read-only here',
          remedy: 'ALTER ROLE … RESET default_transaction_read_only',
        },
      ]);
    } finally {
      await database.pool.query(`ALTER DATABASE ${name} RESET default_transaction_read_only`);
    }
  });

  test('parameters in the server log are a warning', async () => {
    const name = new URL(database.url).pathname.slice(1);
    await database.pool.query(`ALTER DATABASE ${name} SET log_parameter_max_length_on_error = 100`);
    try {
      expect(await examine({ DATABASE_URL: database.url }, 'server log')).toMatchObject([
        {
          level: 'warn',
          reason: 'is 100B: a failed statement writes envelopes into the server log',
          remedy: 'set it to 0',
        },
      ]);
    } finally {
      await database.pool.query(`ALTER DATABASE ${name} RESET log_parameter_max_length_on_error`);
    }
  });

  test('a pooler without a direct connection is refused when the queue is in PostgreSQL, warned of when it is in Redis', async () => {
    const pooler = await startPooler(database.url);
    try {
      const refused = await examine({ DATABASE_URL: pooler.url }, 'pooler');
      expect(refused).toMatchObject([
        {
          level: 'refuse',
          subject: 'DATABASE_URL',
          reason: expect.stringContaining('LISTEN') as string,
          remedy: expect.stringContaining('set DATABASE_DIRECT_URL to the server itself') as string,
        },
      ]);
      expect(await examine({ DATABASE_URL: pooler.url, REDIS_URL: 'redis://127.0.0.1:1' }, 'pooler')).toMatchObject([
        { level: 'warn' },
      ]);
      expect(await examine({ DATABASE_URL: pooler.url, DATABASE_DIRECT_URL: database.url }, 'pooler')).toMatchObject([
        { level: 'ok', reason: 'goes through a pooler, DATABASE_DIRECT_URL is set' },
      ]);
    } finally {
      await pooler.close();
    }
  });

  test('a Redis that does not answer is refused, without its address (I7)', async () => {
    const findings = await examine({ DATABASE_URL: database.url, REDIS_URL: 'redis://:hunter2@127.0.0.1:1' }, 'queue');
    expect(findings).toMatchObject([
      {
        level: 'refuse',
        subject: 'Redis',
        reason: expect.stringContaining('no connection to the queue') as string,
        remedy: expect.stringContaining('unset REDIS_URL') as string,
      },
    ]);
    expect(JSON.stringify(findings)).not.toContain('hunter2');
  });

  test.runIf(availableBackends().includes('redis'))(
    'a Redis that may evict jobs is refused, one that evicts nothing is fine',
    async () => {
      const redis = await startPrivateRedis();
      if (redis === undefined) throw new Error('redis-server is gone from PATH');
      const client = new Redis(redis.url);
      try {
        const environment = { DATABASE_URL: database.url, REDIS_URL: redis.url };
        expect(await examine(environment, 'queue')).toMatchObject([
          { level: 'ok', reason: 'answers and evicts nothing' },
        ]);
        await client.config('SET', 'maxmemory-policy', 'allkeys-lru');
        expect(await examine(environment, 'queue')).toEqual([
          {
            level: 'refuse',
            check: 'queue',
            subject: 'Redis',
            reason: 'maxmemory-policy is allkeys-lru, so jobs may be evicted',
            remedy: 'CONFIG SET maxmemory-policy noeviction',
          },
        ]);
      } finally {
        client.disconnect();
        await redis.stop();
      }
    },
  );
});

describe('what pacing would not see', () => {
  let shop: Shop;
  beforeAll(async () => {
    shop = await openShop();
  });
  afterAll(() => shop.close());

  async function examine(file: ConfigFile): Promise<readonly Finding[]> {
    const control = openControl({ environment: { DATABASE_URL: shop.url }, file });
    return rest(await examineEverything(control.context).finally(control.close), 'pacing');
  }

  test('is warned of with its remedy: the number of CPUs, and the right of the role that supervisors log in as', async () => {
    const sessions = {
      level: 'warn',
      check: 'pacing',
      subject: 'sessions',
      reason: 'the number of CPUs of the database server is not known, so no run gives way to busy sessions',
      remedy: 'set pace.cpus in keyturn.yaml, then keyturn init',
    };
    // A superuser sees everything.
    expect(await examine(shopConfig)).toEqual([sessions]);
    const role = await createTestRole();
    try {
      const file = { ...shopConfig, roles: { worker: role.name } };
      expect(await examine(file)).toMatchObject([
        sessions,
        { level: 'warn', subject: role.name, remedy: `GRANT pg_monitor TO ${role.name}` },
      ]);
      await shop.query(`GRANT pg_monitor TO ${role.name}`);
      await shop.query('UPDATE keyturn.cluster SET cpus = 8');
      expect(await examine(file)).toMatchObject([{ level: 'ok', subject: 'gauges' }]);
    } finally {
      await role.drop();
    }
  });

  test('is no matter before init', async () => {
    const database = await createTestDatabase();
    const control = openControl({ environment: { DATABASE_URL: database.url }, file: shopConfig });
    try {
      expect(rest(await examineEverything(control.context), 'pacing')).toEqual([]);
    } finally {
      await control.close();
      await database.drop();
    }
  });
});
