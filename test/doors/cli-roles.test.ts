// Every command under every role: it works, or it ends with exit 5 and changes nothing. What a role may do to which table
// stands in test/integration/roles.test.ts.
import { randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generateX25519Identity, identityToRecipient } from 'age-encryption';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { openControl, openKeyturn } from '../../src/app.js';
import type { ConfigFile, Environment } from '../../src/config.js';
import { noConfigFile, type OpenControl, type OpenControlFunction } from '../../src/control/context.js';
import { printSql } from '../../src/control/print-sql.js';
import { knownCommands, parseCommandLine, runCapturedWith, type Captured } from '../cli/captured.js';
import { createTestDatabase, type TestDatabase } from '../support/database.js';
import { insertMember } from '../support/members.js';
import { createTestRole, type TestRole } from '../support/roles.js';
import { customerTable, shopConfig } from '../support/shop.js';

const roleNames = ['app', 'auditor', 'worker', 'owner'] as const;
type RoleName = (typeof roleNames)[number];

interface Line {
  /** `ROLE`, `FOLDER` and `RECIPIENT` are replaced. */
  readonly line: string;
  /** For whom it works; the others end with exit 5. */
  readonly works: readonly RoleName[];
  /** What the command is to find, made once and again for each role for which it works. */
  readonly given?: (() => Promise<unknown>) | undefined;
}

const line = (words: string, works: readonly RoleName[], given?: () => Promise<unknown>): Line => ({
  line: words,
  works,
  given,
});
const everybody: readonly RoleName[] = roleNames;
const seeing: readonly RoleName[] = ['auditor', 'worker', 'owner'];
const working: readonly RoleName[] = ['worker', 'owner'];
/** Those that may read values. */
const reading: readonly RoleName[] = ['app', 'worker', 'owner'];
const owner: readonly RoleName[] = ['owner'];

const file = '--input FOLDER/owner.age --identity FOLDER/identity';

/** In this order: each finds what those before have left. */
const lines: readonly Line[] = [
  line('init', owner),
  line('status', seeing, insertRows),
  line('doctor', working),
  line('target list', everybody),
  line('target census', ['app', ...working]),
  line('target discover', ['app', ...working]),
  line('target rename customer customer', owner),
  line('key list', everybody),
  line('key stage', owner),
  line('key lazy on', owner),
  line('key activate v2', owner),
  line('key rotate', owner),
  line('key rotate --reencrypt', owner),
  line('reencrypt --emergency', working),
  line('reencrypt --dry-run', working),
  line('verify --no-wait', working),
  line('verify --sql', everybody),
  line('run list', seeing),
  line('run show 1', seeing),
  line('run limit 1 --workers 2', working),
  line('run pause 1', working),
  line('run pause --all', working),
  line('run resume 1', working),
  line('run cancel 1', working),
  line('run retry 1', working, () => query(`UPDATE keyturn.run SET state = 'cancelled'`)),
  line('run watch 1', seeing, () => query(`UPDATE keyturn.run SET state = 'succeeded' WHERE id = 1`)),
  line('quarantine list', seeing),
  line('quarantine retry', working, quarantineCell),
  line('quarantine resolve --run 1 --reason mended', working, quarantineCell),
  line('rebind --target customer --pk 3 --was-scope a', working, () =>
    query(`UPDATE customer SET tenant_id = 'b' WHERE id = 3`),
  ),
  line('member list', seeing),
  line('member forget gone --live', working, () => insertMember({ query }, { name: 'gone', holds: [1], writes: 1 })),
  line('schedule set', owner),
  line('schedule list', seeing),
  line('schedule remove', owner),
  line('root status', everybody),
  line('root prepare --to env:OTHER_ROOT', owner),
  line('root rollback', owner),
  line('root finalize', owner, () => succeeds('root prepare --to env:OTHER_ROOT')),
  line('root rotate --to env:KEYTURN_ROOT_KEY', owner),
  line('backup create --output FOLDER/ROLE.age --recipient RECIPIENT', owner),
  line(`backup inspect ${file}`, everybody),
  line(`backup verify ${file}`, reading),
  line(`backup restore ${file}`, owner),
  line(`backup restore ${file} --apply`, owner),
  line('audit list', seeing),
  line('audit verify', seeing),
  line('key retire v2', owner, () => runStatementsFor('key retire v2')),
  line('key destroy v2 --reason over', owner),
  line('key restore v2', owner, async () => {
    await succeeds('key destroy v2 --cancel --reason kept');
    await runStatementsFor('key restore v2');
  }),
  line('key compromise v3 --reason leaked', owner),
  line('adopt --target customer --column email --from plaintext --prepare', owner),
  line('adopt --target customer --column email --finalize', owner),
];

/** Start processes, under the worker's login: test/integration/roles.test.ts. */
const processes = ['demo', 'supervisor', 'worker'];

let database: TestDatabase;
let roles: Readonly<Record<RoleName, TestRole>>;
let config: ConfigFile;
let folder: string;
let recipient: string;
const roots = { KEYTURN_ROOT_KEY: randomBytes(32).toString('hex'), OTHER_ROOT: randomBytes(32).toString('hex') };
/** A root key is gone from the environment once it was read. */
const opensRoots = /^(root|backup|rebind) /;
/** By role, for commands that read no file and open no root key. */
const opened = new Map<RoleName, OpenControl>();

async function query(text: string, parameters?: unknown[]): Promise<Record<string, unknown>[]> {
  return (await database.pool.query(text, parameters)).rows as Record<string, unknown>[];
}

const environmentOf = (role: RoleName): Record<string, string> => ({
  DATABASE_URL: roles[role].urlFor(database.url),
  LOG_LEVEL: 'silent',
  ...roots,
});

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-cli-roles-'));
  const identity = await generateX25519Identity();
  writeFileSync(join(folder, 'identity'), `${identity}\n`, { mode: 0o600 });
  recipient = await identityToRecipient(identity);
  const [app, auditor, worker, own] = await Promise.all(roleNames.map(createTestRole));
  if (app === undefined || auditor === undefined || worker === undefined || own === undefined)
    throw new Error('a role is missing');
  roles = { app, auditor, worker, owner: own };
  config = {
    ...shopConfig,
    roles: { owner: own.name, app: app.name, worker: worker.name, auditor: auditor.name },
  };
  database = await createTestDatabase();
  await query(customerTable);
  await query(`GRANT SELECT, INSERT, UPDATE ON customer TO ${app.name}`);
  const { context } = openControl({ environment: { DATABASE_URL: 'postgres://' } as Environment, file: config });
  await query(await printSql({ config: context.config }));
});

afterAll(async () => {
  await Promise.all([...opened.values()].map((control) => control.close()));
  await database.drop();
  await Promise.all(Object.values(roles).map((role) => role.drop()));
  rmSync(folder, { recursive: true });
});

function keyturn(role: RoleName, words: string): Promise<Captured> {
  const open: OpenControlFunction = (options) => {
    if (options.file !== noConfigFile) return openControl({ ...options, file: config });
    if (opensRoots.test(words)) return openControl(options);
    const control = opened.get(role) ?? openControl(options);
    opened.set(role, control);
    return { context: control.context, close: async () => undefined };
  };
  const replaced = words.replaceAll('ROLE', role).replaceAll('FOLDER', folder).replaceAll('RECIPIENT', recipient);
  return runCapturedWith({ environment: environmentOf(role), openControl: open }, ...replaced.split(' '));
}

async function succeeds(words: string): Promise<void> {
  expect(await keyturn('owner', words)).toMatchObject({ code: 0 });
}

/** The table has another owner, who runs what a fence needs. */
async function runStatementsFor(words: string): Promise<void> {
  const { stdout } = await keyturn('owner', `${words} --json`);
  const { error } = JSON.parse(stdout) as { error: { details: { statements: readonly string[] } } };
  for (const statement of error.details.statements) await query(statement);
}

async function insertRows(): Promise<void> {
  const application = await openKeyturn({ config, environment: environmentOf('app') });
  const column = application.column('customer', 'email');
  for (const id of [1, 2, 3]) {
    const email = await column.encrypt({ pk: id, scope: 'a' }, `Ada ${id}`);
    await query('INSERT INTO customer (id, tenant_id, email) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING', [
      id,
      'a',
      email,
    ]);
  }
  await application.close();
}

async function quarantineCell(): Promise<void> {
  await query(
    `WITH batch AS (INSERT INTO keyturn.batch (run_id, pass, target_id, kind) SELECT 1, 1, id, 'reencrypt' FROM keyturn.target RETURNING id, target_id)
     INSERT INTO keyturn.quarantine (run_id, batch_id, target_id, column_id, row_key, cause)
     SELECT 1, b.id, b.target_id, c.id, ARRAY['1'], 'MALFORMED' FROM batch b, keyturn.target_column c WHERE c.name = 'email' LIMIT 1
     ON CONFLICT (run_id, column_id, row_key) DO UPDATE SET resolved_at = NULL, resolution = NULL`,
  );
}

async function newestRecord(): Promise<unknown> {
  return (await query('SELECT max(id) AS id FROM keyturn.audit'))[0]?.['id'];
}

test('every command has a line, and each line is a command', () => {
  const leaves = knownCommands().filter(({ isGroup }) => !isGroup);
  const named = lines.map(({ line: words }) => parseCommandLine(words.split(' ')));
  expect([...new Set([...named, ...processes])].toSorted()).toEqual(leaves.map(({ path }) => path).toSorted());
});

for (const { line: words, works, given } of lines) {
  test(`keyturn ${words} works under ${works.join(', ')} and no other role`, async () => {
    await given?.();
    const before = await newestRecord();
    const refused = roleNames.filter((role) => !works.includes(role));
    await Promise.all(
      refused.map(async (role) => {
        const { code, stdout, stderr } = await keyturn(role, words);
        expect({ role, code, stdout }).toEqual({ role, code: 5, stdout: '' });
        expect(stderr).toMatch(/this database login (may not do that \(SQLSTATE 42501\)|is)/);
      }),
    );
    expect(await newestRecord()).toEqual(before);
    for (const [at, role] of works.entries()) {
      if (at > 0) await given?.();
      const { code, stderr } = await keyturn(role, words);
      expect({ role, code, stderr: code === 0 ? '' : stderr }).toEqual({ role, code: 0, stderr: '' });
    }
  });
}
