// Backups through the command line, with the library's own scrypt work factor: what is printed where, that Debian's age opens
// the same file, and that nothing secret is left in arguments, output, files or tables.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { generateX25519Identity, identityToRecipient } from 'age-encryption';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import { argumentsOf, findCanaries, keyCanaries, tablesOf, textCanary, type Finding } from '../support/canaries.js';
import { createTestDatabase } from '../support/database.js';
import { customerTable, openShop, shopConfig, type Shop } from '../support/shop.js';

const hasAge = spawnSync('age', ['--version']).status === 0;
const chosen = `canary-${randomBytes(9).toString('hex')}-passphrase`;

let shop: Shop;
let keyturn: KeyturnProcess;
let folder: string;
let generated: string;
/** Most tests lock to a recipient: that costs no scrypt. */
let recipient: string;

beforeAll(async () => {
  shop = await openShop();
  keyturn = openKeyturnProcess(shop, shopConfig);
  folder = mkdtempSync(join(tmpdir(), 'keyturn-cli-backup-'));
  const identity = await generateX25519Identity();
  writeFileSync(join(folder, 'identity'), `# for tests\n${identity}\n`, { mode: 0o600 });
  recipient = await identityToRecipient(identity);
  writeFileSync(join(folder, 'passphrase'), `${chosen}\n`, { mode: 0o600 });
});

afterAll(async () => {
  keyturn.remove();
  await shop.close();
  rmSync(folder, { recursive: true });
});

function file(name: string): string {
  return join(folder, name);
}

describe('keyturn backup', () => {
  test('makes a passphrase, prints it once and on stderr alone, and opens the file with it', async () => {
    const made = await keyturn.json('backup', 'create', '--output', file('keys.age'));
    expect(made.code).toBe(0);
    expect(made.object).toMatchObject({ locked_by: 'passphrase', has_root_keys: false, unopened_keys: [] });
    generated = /shown this once: (\S+)/.exec(made.stderr)?.[1] ?? '';
    expect(made.stderr.split(generated)).toHaveLength(2);
    expect(made.stdout).not.toContain(generated);
    expect(statSync(file('keys.age')).mode & 0o777).toBe(0o600);
    expect(readFileSync(file('keys.age'), 'latin1')).toMatch(/^age-encryption\.org\/v1\n-> scrypt \S+ 18\n/);
    writeFileSync(file('generated'), generated, { mode: 0o600 });
    const seen = await keyturn.json(
      'backup',
      'inspect',
      '--input',
      file('keys.age'),
      '--passphrase-file',
      file('generated'),
    );
    expect(seen.object).toMatchObject({
      keyrings: [
        {
          keyring: 'customers',
          keys: [
            { id: 1, state: 'active' },
            { id: 2, state: 'staged' },
          ],
        },
      ],
    });
  });

  test.runIf(hasAge || process.env['KEYTURN_REQUIRE_AGE'] === '1')(
    "writes what Debian's age opens, by passphrase and by identity, and says what it holds",
    async () => {
      const created = await keyturn.run(
        'backup',
        'create',
        '--output',
        file('recipient.age'),
        '--recipient',
        recipient,
      );
      expect(created).toMatchObject({ code: 0, stderr: '' });
      const plain = execFileSync('age', ['--decrypt', '--identity', file('identity'), file('recipient.age')], {
        encoding: 'utf8',
      });
      expect(JSON.parse(plain)).toMatchObject({
        format: 'keyturn-backup',
        contents: { dataKeys: [{ id: 1 }, { id: 2 }, {}] },
      });
      expect(JSON.parse(await ageWithPassphrase(file('keys.age'), generated))).toMatchObject({
        format: 'keyturn-backup',
      });
      const seen = await keyturn.run(
        'backup',
        'inspect',
        '--input',
        file('recipient.age'),
        '--identity',
        file('identity'),
      );
      expect(seen.code).toBe(0);
    },
  );

  test('takes a passphrase from a file and from a descriptor, and replaces a file only with --force', async () => {
    const to = ['--output', file('chosen.age')];
    expect(await keyturn.run('backup', 'create', ...to, '--passphrase-file', file('passphrase'))).toMatchObject({
      code: 0,
      stderr: '',
    });
    const again = await keyturn.run('backup', 'create', ...to, '--passphrase-file', file('passphrase'));
    expect(again).toMatchObject({ code: 4, stderr: expect.stringContaining('--force') });
    const child = spawn(
      process.execPath,
      [
        join(import.meta.dirname, '../../dist/workers/keyturn.js'),
        'backup',
        'inspect',
        '--input',
        file('chosen.age'),
        '--passphrase-fd',
        '0',
      ],
      {
        stdio: ['pipe', 'pipe', 'pipe'],
      },
    );
    child.stdin.end(`${chosen}\n`);
    let text = '';
    child.stdout.setEncoding('utf8').on('data', (part: string) => (text += part));
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
    expect(text).toContain('customers');
  });

  test('refuses a passphrase file that others can read, a guessable passphrase, and to guess where nobody is there to ask', async () => {
    writeFileSync(file('open'), chosen, { mode: 0o644 });
    writeFileSync(file('short'), 'secret', { mode: 0o600 });
    for (const [option, words] of [
      ['open', 'chmod 600'],
      ['short', 'at least 20 characters'],
    ] as const) {
      const refused = await keyturn.run(
        'backup',
        'create',
        '--output',
        file('no.age'),
        '--passphrase-file',
        file(option),
      );
      expect(refused).toMatchObject({ code: 2, stderr: expect.stringContaining(words) });
    }
    const asked = await keyturn.run('backup', 'inspect', '--input', file('keys.age'));
    expect(asked).toMatchObject({ code: 2, stderr: expect.stringContaining('no terminal') });
    const missing = await keyturn.run(
      'backup',
      'inspect',
      '--input',
      file('none.age'),
      '--passphrase-file',
      file('passphrase'),
    );
    expect(missing).toMatchObject({ code: 7, stderr: expect.stringContaining('ENOENT') });
  });

  test('restores onto a bare database only when told to apply, and says which command comes next', async () => {
    const bare = await createTestDatabase();
    try {
      await bare.pool.query(customerTable);
      const environment = { DATABASE_URL: bare.url };
      await keyturn.run('backup', 'create', '--output', file('shared.age'), '--recipient', recipient);
      const args = ['backup', 'restore', '--input', file('shared.age'), '--identity', file('identity')];
      const dry = await keyturn.runWith(environment, ...args);
      expect(dry).toMatchObject({ code: 0, stdout: expect.stringContaining('would be restored') });
      expect((await keyturn.runWith(environment, 'status')).code).toBe(4);
      const applied = await keyturn.runWith(environment, ...args, '--apply', '--reason', 'drill');
      expect(applied).toMatchObject({ code: 0, stdout: expect.stringContaining('next: keyturn init') });
      expect((await keyturn.runWith(environment, 'init')).code).toBe(0);
      expect(await keyturn.runWith(environment, ...args)).toMatchObject({
        stdout: expect.stringContaining('is here already'),
      });
    } finally {
      await bare.drop();
    }
  });

  test('verifies with the keys of the file alone, prints what it opened of each key, and ends with 6 where one is missing', async () => {
    const store = async (id: number): Promise<void> => {
      const application = await shop.open();
      const email = await application.column('customer', 'email').encrypt({ pk: id, scope: 'a' }, `Ada ${id}`);
      await shop.query(`INSERT INTO customer (id, tenant_id, email) VALUES ($1, 'a', $2)`, [id, email]);
      await application.close();
    };
    await store(1);
    await keyturn.run('backup', 'create', '--output', file('verified.age'), '--recipient', recipient);
    const args = ['backup', 'verify', '--input', file('verified.age'), '--identity', file('identity')];
    const good = await keyturn.run(...args);
    expect(good.code).toBe(0);
    expect(good.stdout).toMatch(/opened with a root key at hand\n +key .*\n +customers v1 \(id 1\) +active +1 +1 +1\n/);
    // Two rotations: the first takes the standby that is in the backup.
    for (let times = 0; times < 2; times++) await keyturn.run('key', 'rotate');
    await store(2);
    const short = await keyturn.json(...args);
    expect(short).toMatchObject({ code: 6, object: { missing_keys: [{ key_id: 3, cells: 1 }], failures: [] } });
    expect(short.stderr).toContain('values name key 3, which it lacks');
    expect((await keyturn.run(...args)).stdout).toContain('key 3 is not in the backup; values that name it: 1');
    await keyturn.run('backup', 'create', '--output', file('verified.age'), '--force', '--recipient', recipient);
    expect(await keyturn.run(...args)).toMatchObject({ code: 0 });
  });

  test('says after a rotation that the new key is in no backup, and the status says so until there is one', async () => {
    const rotated = await keyturn.run('key', 'rotate');
    expect(rotated.stdout).toMatch(/backup +not whole: key \d+ is in none; run: keyturn backup create/);
    expect((await keyturn.run('status')).stdout).toMatch(/backup +not whole: key \d+ is in none/);
    expect((await keyturn.run('doctor')).stdout).toMatch(/backup: .*is in none/);
    await keyturn.run('backup', 'create', '--output', file('shared.age'), '--force', '--recipient', recipient);
    expect((await keyturn.run('status')).stdout).toMatch(/backup +every key; the last .* ago/);
  });

  test('warns loudly before it writes root keys, and leaves nothing secret in arguments, output, files or tables (I7)', async () => {
    const args = [
      'backup',
      'create',
      '--output',
      file('all.age'),
      '--include-roots',
      '--passphrase-file',
      file('passphrase'),
    ];
    const child = keyturn.start(args);
    const seen: Finding[] = [argumentsOf('backup create', child)];
    expect(await child.waitForExit(60_000)).toMatchObject({ code: 0 });
    expect(child.stderr()).toContain('WARNING: this backup will hold the root keys');
    const shown = keyturn.printed().replaceAll(generated, '');
    seen.push({ place: 'output', text: shown });
    for (const name of ['keys.age', 'chosen.age', 'all.age'])
      seen.push({ place: name, text: readFileSync(file(name), 'latin1') });
    seen.push(...(await tablesOf(shop, 'keyturn')));
    const canaries = [
      ...keyCanaries('the root key', Buffer.from(shop.rootKey, 'hex')),
      textCanary('the root key as text', shop.rootKey),
      textCanary('the chosen passphrase', chosen),
      textCanary('the made passphrase', generated),
    ];
    expect(findCanaries(seen, canaries)).toEqual([]);
    expect((await tablesOf(shop, 'keyturn')).some(({ text }) => text.includes(folder))).toBe(false);
  });
});

/** age asks on a terminal: script(1) gives it one. */
async function ageWithPassphrase(input: string, passphrase: string): Promise<string> {
  const output = file('by-age.json');
  const child = spawn(
    'script',
    ['--quiet', '--return', '--command', `age --decrypt --output '${output}' '${input}'`, '/dev/null'],
    {
      stdio: ['pipe', 'pipe', 'pipe'],
    },
  );
  let isAsked = false;
  child.stdout.on('data', (text: Buffer) => {
    if (isAsked || !text.toString().includes('passphrase')) return;
    isAsked = true;
    child.stdin.write(`${passphrase}\n`);
  });
  expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0);
  return readFileSync(output, 'utf8');
}
