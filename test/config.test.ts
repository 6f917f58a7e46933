// keyturn.yaml and the environment: what a good file becomes, and for each bad field its path and what was expected.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type ConfigFile, loadConfig, loadConnectionConfig } from '../src/config.js';
import { KeyturnError } from '../src/errors.js';

let folder: string;

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-config-'));
});

afterAll(() => {
  rmSync(folder, { recursive: true, force: true });
});

function write(name: string, content: string): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  return path;
}

function errorOf(work: () => unknown): KeyturnError {
  try {
    work();
  } catch (error) {
    if (error instanceof KeyturnError) return error;
    throw error;
  }
  throw new Error('expected a KeyturnError, nothing was thrown');
}

const good = `
roles: { app: shop_app, worker: keyturn_worker, auditor: inspector }
expect_members: [shop, billing]
keyrings:
  customers: { root: env:KEYTURN_ROOT_KEY }
  patients: { roots: [file:/run/new, env:OLD], algorithm: aes-256-gcm }
targets:
  - table: public.customer
    keyring: customers
    scope: tenant_id
    columns:
      email: {}
      phone: { bind: column }
      name:
      profile: { paths: { ssn: [ssn], iban: [bank, iban], first_tag: [tags, '0'] } }
  - table: patient
    keyring: patients
    columns: { "Befund 'A' \\\\": { format: keyturn } }
`;

describe('keyturn.yaml', () => {
  test('a good file becomes one frozen config, defaults filled in', () => {
    const path = write('good.yaml', good);
    const config = loadConfig({ DATABASE_URL: 'postgres://db/shop' }, path);
    expect(Object.isFrozen(config)).toBe(true);
    expect(config).toMatchObject({
      source: path,
      logLevel: 'info',
      roles: { app: 'shop_app', worker: 'keyturn_worker', auditor: 'inspector' },
      expectMembers: ['shop', 'billing'],
      keyrings: [
        { name: 'customers', roots: ['env:KEYTURN_ROOT_KEY'], algorithm: 'xaes-256-gcm' },
        { name: 'patients', roots: ['file:/run/new', 'env:OLD'], algorithm: 'aes-256-gcm' },
      ],
    });
    expect(config.targets).toEqual([
      {
        schema: 'public',
        table: 'customer',
        keyring: 'customers',
        scopeColumn: 'tenant_id',
        columns: [
          { name: 'email', column: 'email', path: undefined, format: 'keyturn', bind: 'row' },
          { name: 'phone', column: 'phone', path: undefined, format: 'keyturn', bind: 'column' },
          { name: 'name', column: 'name', path: undefined, format: 'keyturn', bind: 'row' },
          { name: 'profile.ssn', column: 'profile', path: ['ssn'], format: 'keyturn', bind: 'row' },
          { name: 'profile.iban', column: 'profile', path: ['bank', 'iban'], format: 'keyturn', bind: 'row' },
          { name: 'profile.first_tag', column: 'profile', path: ['tags', '0'], format: 'keyturn', bind: 'row' },
        ],
      },
      {
        schema: 'public',
        table: 'patient',
        keyring: 'patients',
        scopeColumn: undefined,
        columns: [{ name: "Befund 'A' \\", column: "Befund 'A' \\", path: undefined, format: 'keyturn', bind: 'row' }],
      },
    ]);
  });

  test('the path comes from KEYTURN_CONFIG, and an object may be given in its place', () => {
    const path = write('named.yaml', good);
    expect(loadConfig({ KEYTURN_CONFIG: path }).source).toBe(path);
    expect(loadConfig({}, { keyrings: { a: { root: 'env:A' } } })).toMatchObject({
      source: 'the given object',
      expectMembers: [],
      roles: {},
      targets: [],
    });
  });

  const keyrings = { customers: { root: 'env:ROOT' } };
  const target = { table: 'customer', keyring: 'customers', columns: { email: {} } };

  const refusals: readonly { wrong: string; file: unknown; says: string }[] = [
    { wrong: 'no keyrings', file: {}, says: 'keyrings: Invalid input: expected record, received undefined' },
    {
      wrong: 'a list instead of a file',
      file: [],
      says: '(top level): Invalid input: expected object, received array',
    },
    { wrong: 'an unknown setting', file: { keyrings, root: 'x' }, says: '(top level): Unrecognized key: "root"' },
    { wrong: 'an unknown role', file: { keyrings, roles: { admin: 'x' } }, says: 'roles: Unrecognized key: "admin"' },
    { wrong: 'a role without a name', file: { keyrings, roles: { app: '' } }, says: 'roles.app: Too small' },
    {
      wrong: 'a role name over 63 bytes',
      file: { keyrings, roles: { app: 'a'.repeat(64) } },
      says: 'roles.app: Too big',
    },
    { wrong: 'an expected member without a name', file: { keyrings, expect_members: [''] }, says: 'expect_members.0:' },
    {
      wrong: 'a keyring without a root',
      file: { keyrings: { a: {} } },
      says: 'keyrings.a: expected either root: URI or roots: [preferred, other]',
    },
    {
      wrong: 'a keyring with root and roots',
      file: { keyrings: { a: { root: 'env:A', roots: ['env:B'] } } },
      says: 'keyrings.a: expected either root: URI or roots: [preferred, other]',
    },
    { wrong: 'no roots at all', file: { keyrings: { a: { roots: [] } } }, says: 'keyrings.a.roots: Too small' },
    { wrong: 'three roots', file: { keyrings: { a: { roots: ['a', 'b', 'c'] } } }, says: 'keyrings.a.roots: Too big' },
    {
      wrong: 'an unknown algorithm',
      file: { keyrings: { a: { root: 'env:A', algorithm: 'aes-256-cbc' } } },
      says: 'keyrings.a.algorithm: Invalid option: expected one of "aes-256-gcm"|"xaes-256-gcm"',
    },
    {
      wrong: 'an unknown keyring setting',
      file: { keyrings: { a: { root: 'env:A', size: 1 } } },
      says: 'keyrings.a: Unrecognized key: "size"',
    },
    {
      wrong: 'a path of a format module',
      file: { keyrings, targets: [{ ...target, columns: { email: { format: './my-format.js' } } }] },
      says: 'targets.0.columns.email.format: a format of your own is named by its path in KEYTURN_FORMATS',
    },
    {
      wrong: 'a keyring name with capitals',
      file: { keyrings: { Customers: { root: 'env:A' } } },
      says: 'keyrings.Customers: a keyring name takes a-z, 0-9, _ and -, and begins with a letter',
    },
    {
      wrong: 'a target without a table',
      file: { keyrings, targets: [{ ...target, table: undefined }] },
      says: 'targets.0.table: Invalid input',
    },
    {
      wrong: 'a target without columns',
      file: { keyrings, targets: [{ ...target, columns: undefined }] },
      says: 'targets.0.columns: Invalid input',
    },
    {
      wrong: 'an empty list of columns',
      file: { keyrings, targets: [{ ...target, columns: {} }] },
      says: 'target customer lists no columns',
    },
    {
      wrong: 'an unknown target setting',
      file: { keyrings, targets: [{ ...target, tenant: 'x' }] },
      says: 'targets.0: Unrecognized key: "tenant"',
    },
    {
      wrong: 'a scope that is no name',
      file: { keyrings, targets: [{ ...target, scope: 5 }] },
      says: 'targets.0.scope: Invalid input',
    },
    {
      wrong: 'an unknown column setting',
      file: { keyrings, targets: [{ ...target, columns: { email: { path: ['a'] } } }] },
      says: 'targets.0.columns.email: Unrecognized key: "path"',
    },
    {
      wrong: 'an unknown binding',
      file: { keyrings, targets: [{ ...target, columns: { email: { bind: 'table' } } }] },
      says: 'targets.0.columns.email.bind: Invalid option: expected one of "row"|"column"',
    },
    {
      wrong: 'a column without paths where paths: stands',
      file: { keyrings, targets: [{ ...target, columns: { email: {}, profile: { paths: {} } } }] },
      says: 'targets.0.columns.profile.paths: name at least one path',
    },
    {
      wrong: 'an empty path',
      file: { keyrings, targets: [{ ...target, columns: { profile: { paths: { ssn: [] } } } }] },
      says: 'targets.0.columns.profile.paths.ssn: Too small',
    },
    {
      wrong: 'a path segment that is no text',
      file: { keyrings, targets: [{ ...target, columns: { profile: { paths: { tag: ['tags', 0] } } } }] },
      says: 'targets.0.columns.profile.paths.tag.1: Invalid input: expected string, received number',
    },
    {
      wrong: 'a path name with a dot',
      file: { keyrings, targets: [{ ...target, columns: { profile: { paths: { 'a.b': ['a'] } } } }] },
      says: 'a path name takes letters, digits and _',
    },
    {
      wrong: 'two columns of one name',
      file: {
        keyrings,
        targets: [{ ...target, columns: { 'profile.ssn': {}, profile: { paths: { ssn: ['ssn'] } } } }],
      },
      says: 'target customer has two columns called profile.ssn',
    },
    {
      wrong: 'a keyring that is not there',
      file: { keyrings, targets: [{ ...target, keyring: 'patients' }] },
      says: 'target customer names keyring "patients"; known keyrings: customers',
    },
    {
      wrong: 'a keyring called like a property of every object',
      file: { keyrings, targets: [{ ...target, keyring: 'constructor' }] },
      says: 'target customer names keyring "constructor"; known keyrings: customers',
    },
    {
      wrong: 'a table twice',
      file: { keyrings, targets: [target, { ...target, table: 'public.customer' }] },
      says: 'table public.customer is listed twice; list all its columns under one target',
    },
    {
      wrong: 'a table of three parts',
      file: { keyrings, targets: [{ ...target, table: 'db.public.customer' }] },
      says: '"db.public.customer" is not a table name; expected table or schema.table',
    },
    {
      wrong: 'a table without a schema before its dot',
      file: { keyrings, targets: [{ ...target, table: '.customer' }] },
      says: '".customer" is not a table name',
    },
  ];

  for (const { wrong, file, says } of refusals) {
    test(`${wrong} is refused with its path`, () => {
      const error = errorOf(() => loadConfig({}, file as ConfigFile));
      expect(error).toMatchObject({ code: 'CONFIG_INVALID', kind: 'invalid' });
      expect(error.message).toMatch(/^the given object/);
      expect(error.message).toContain(says);
    });
  }

  test('all problems of a file are named at once', () => {
    const { message } = errorOf(() => loadConfig({}, { keyrings: { A: {} }, targets: [{}] } as unknown as ConfigFile));
    for (const part of ['keyrings.A: a keyring name', 'targets.0.table', 'targets.0.keyring', 'targets.0.columns']) {
      expect(message).toContain(part);
    }
  });

  test('the same table name in two schemas is two tables', () => {
    const targets = ['eu.customer', 'us.customer'].map((table) => ({ ...target, table }));
    expect(loadConfig({}, { keyrings, targets }).targets.map(({ schema }) => schema)).toEqual(['eu', 'us']);
  });

  test('a missing file and one that is no YAML say which file, and show nothing of its content (I7)', () => {
    const missing = errorOf(() => loadConfig({}, join(folder, 'missing.yaml')));
    expect(missing).toMatchObject({ code: 'CONFIG_INVALID' });
    expect(missing.message).toContain(`no readable config at ${join(folder, 'missing.yaml')}; write a keyturn.yaml`);

    const secret = 'c0ffee'.repeat(10);
    const broken = errorOf(() => loadConfig({}, write('broken.yaml', `keyrings:\n  a: { root: [${secret}\n`)));
    expect(broken).toMatchObject({ code: 'CONFIG_INVALID' });
    expect(broken.message).toContain('broken.yaml is not YAML: ');
    expect(broken.message).not.toContain(secret);
  });

  test('a setting written twice is refused: the second would silently win', () => {
    const file = write('twice.yaml', 'keyrings:\n  a: { root: env:A }\n  a: { root: env:B }\n');
    expect(errorOf(() => loadConfig({}, file)).message).toContain('Map keys must be unique');
  });
});

describe('the environment', () => {
  test('connection strings come from variables or, without them, from the files that *_FILE name', () => {
    const config = loadConnectionConfig({
      DATABASE_URL_FILE: write('url', 'postgres://file/shop\n'),
      REDIS_URL: 'redis://direct',
      REDIS_URL_FILE: join(folder, 'never read'),
      LOG_LEVEL: 'debug',
    });
    expect(config.databaseUrl?.expose()).toBe('postgres://file/shop');
    expect(config.databaseDirectUrl?.expose()).toBe('postgres://file/shop');
    expect(config.redisUrl?.expose()).toBe('redis://direct');
    expect(config.logLevel).toBe('debug');
  });

  test('the direct connection is its own where it is given', () => {
    const config = loadConnectionConfig({
      DATABASE_URL: 'postgres://pooler/a',
      DATABASE_DIRECT_URL: 'postgres://server/a',
    });
    expect(config.databaseUrl?.expose()).toBe('postgres://pooler/a');
    expect(config.databaseDirectUrl?.expose()).toBe('postgres://server/a');
  });

  test('an empty variable is as good as none', () => {
    const config = loadConnectionConfig({ DATABASE_URL: '', REDIS_URL: '', DATABASE_DIRECT_URL_FILE: '' });
    expect([config.databaseUrl, config.databaseDirectUrl, config.redisUrl]).toEqual([undefined, undefined, undefined]);
  });

  test('a *_FILE that is missing or empty is refused by name', () => {
    const [missing, empty] = [join(folder, 'missing'), write('empty', '\n')];
    for (const [path, why] of [
      [missing, 'cannot be read'],
      [empty, 'is empty'],
    ] as const) {
      expect(errorOf(() => loadConnectionConfig({ REDIS_URL_FILE: path }))).toMatchObject({
        code: 'CONFIG_INVALID',
        message: `REDIS_URL_FILE points at ${path}, which ${why}`,
      });
    }
  });

  test('I7 a config prints without its connection strings', () => {
    const config = loadConnectionConfig({
      DATABASE_URL: 'postgres://me:hunter2@db/shop',
      REDIS_URL: 'redis://:hunter2@r',
    });
    expect(`${inspect(config)} ${JSON.stringify(config)} ${String(config.databaseUrl)}`).not.toContain('hunter2');
  });
});
