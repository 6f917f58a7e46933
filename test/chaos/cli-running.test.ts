// Runs from the command line: with nobody there, with runners that are live, and with runners of the command's own.
import { execFileSync } from 'node:child_process';
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import type { Child } from '../support/child.js';
import { customer, findDifferences, insertCustomers, openShop, shopConfig, type Shop } from '../support/shop.js';
import { imageOf } from '../support/table-image.js';
import { until } from '../support/until.js';

// Each command is a process of its own.
vi.setConfig({ testTimeout: 120_000 });

const rows = 60;
const cellsWithValue = Array.from({ length: rows }, (_, at) => customer(at + 1)).flatMap(
  ({ email, phone, ssn, iban }) => [email, phone, ssn, iban].filter((value) => value !== null),
).length;

async function fill(shop: Shop): Promise<void> {
  const writer = await shop.open();
  await insertCustomers(
    shop,
    writer,
    Array.from({ length: rows }, (_, at) => at + 1),
  );
  await writer.close();
}

/** Nobody of an ended command is left behind: no member, no leader. */
async function isQuiet(shop: Shop): Promise<boolean> {
  const [row] = await shop.query(
    `SELECT (SELECT count(*) FROM keyturn.member)::int AS members, (SELECT count(*) FROM keyturn.leadership WHERE expires_at > clock_timestamp())::int AS leaders`,
  );
  return row?.['members'] === 0 && row['leaders'] === 0;
}

/** Stands for a process that froze before the key was activated: a run waits for it, for up to 45 s. */
async function addLaggard(shop: Shop): Promise<void> {
  await shop.query(
    `INSERT INTO keyturn.member (id, kind, name, host, pid, version, formats, algorithms) VALUES (gen_random_uuid(), 'application', 'frozen', 'elsewhere', 1, '0', '{keyturn}', '{xaes-256-gcm}')`,
  );
  await shop.query(
    `INSERT INTO keyturn.member_keyring (member_id, keyring_id, generation, write_key_id, held_key_ids) SELECT m.id, k.id, 1, 1, '{1}' FROM keyturn.member m, keyturn.keyring k WHERE m.name = 'frozen'`,
  );
}

describe('a shop whose key was rotated', () => {
  let shop: Shop;
  let keyturn: KeyturnProcess;

  beforeAll(async () => {
    shop = await openShop();
    await fill(shop);
    await shop.rotate();
    keyturn = openKeyturnProcess(shop, shopConfig);
  });
  afterAll(async () => {
    keyturn.remove();
    await shop.close();
  });
  const appImage = () => imageOf(shop, 'public');

  test('waiting for a run that nobody would do exits 7, says what to start, and changes nothing', async () => {
    const before = await imageOf(shop, 'keyturn');
    for (const command of [['reencrypt', '--wait'], ['verify'], ['key', 'rotate', '--reencrypt', '--wait']]) {
      const { code, stdout, stderr } = await keyturn.run(...command);
      expect({ command, code, stdout }).toEqual({ command, code: 7, stdout: '' });
      expect(stderr).toMatch(/keyturn supervisor.*keyturn worker.*--local/);
    }
    expect(await imageOf(shop, 'keyturn')).toEqual(before);
  });

  test('I7 --local moves every value, exits 0, and leaves neither a process nor a secret behind', async () => {
    const before = await appImage();
    const dryRun = await keyturn.json('reencrypt', '--dry-run', '--local', '1');
    expect(dryRun).toMatchObject({ code: 0, object: { kind: 'dry_run', fields_reencrypted: cellsWithValue } });
    expect(await appImage()).toEqual(before);

    const stale = await keyturn.json('verify', '--local', '1');
    expect(stale).toMatchObject({
      code: 6,
      object: { kind: 'verify', fields_stale: cellsWithValue, next: 'keyturn reencrypt --keyring customers --wait' },
    });
    expect(await appImage()).toEqual(before);

    const moving = keyturn.start(['reencrypt', '--local', '2']);
    const listProcesses = (): string => execFileSync('ps', ['-e', '-o', 'args'], { encoding: 'utf8' });
    const running = await until(
      async () => [listProcesses()].find((all) => /workers\/supervisor\.js/.test(all) && moving.stderr() !== ''),
      { what: 'the run to be ordered', deadlineMs: 30_000 },
    );
    expect(running).not.toContain(shop.rootKey);
    expect(await moving.waitForExit(60_000)).toEqual({ code: 0, signal: null });
    const report = moving.lines.join('\n');
    expect(report).toMatch(
      new RegExp(
        `succeeded, verified [^]*moved +${rows} +${cellsWithValue}\\b[^]*\nnext: keyturn key retire 1 --keyring customers$`,
      ),
    );
    expect(await isQuiet(shop)).toBe(true);

    const reader = await shop.open();
    expect(await findDifferences(shop, reader)).toEqual([]);
    await reader.close();
    const printed = keyturn.printed();
    for (const secret of [shop.rootKey, new URL(shop.url).password, 'customer-1@', 'ssn-1', 'kt1.']) {
      expect(secret === '' || !printed.includes(secret)).toBe(true);
    }
  });

  test('a cell that fails exits 6 with its remedy, or 0 where failures are accepted; a deep verification finds it too', async () => {
    await shop.query(`UPDATE customer SET email = 'person-1 in the clear' WHERE id = 1`);
    await shop.startSupervisor();
    await shop.startWorker();
    const failed = await keyturn.run('reencrypt', '--wait');
    expect(failed.code).toBe(6);
    expect(failed.stdout).toMatch(
      /public\.customer\.email +NOT_AN_ENVELOPE[^]*NOT_AN_ENVELOPE: the value is not encrypted/,
    );
    expect(failed.stdout).not.toContain('in the clear');
    expect(failed.stderr).toMatch(/ended with 1 failed cell; see: keyturn run show/);
    const accepted = await keyturn.json('reencrypt', '--wait', '--accept-failures');
    expect(accepted).toMatchObject({
      code: 0,
      object: {
        state: 'completed_with_failures',
        fields_failed: 1,
        failures: [{ field: 'email', cause: 'NOT_AN_ENVELOPE', cells: 1 }],
      },
    });
    expect(await keyturn.json('verify', '--deep')).toMatchObject({ code: 6, object: { fields_failed: 1 } });
    expect(await keyturn.json('reencrypt', '--wait', '--scope', 'tenant-2')).toMatchObject({
      code: 0,
      object: { scope: 'tenant-2', rows_examined: rows / 3 },
    });
  });
});

describe('a run that cannot end yet', () => {
  let shop: Shop;
  let keyturn: KeyturnProcess;

  beforeAll(async () => {
    shop = await openShop();
    await fill(shop);
    await shop.rotate();
    await addLaggard(shop);
    keyturn = openKeyturnProcess(shop, shopConfig);
  });
  afterAll(async () => {
    keyturn.remove();
    await shop.close();
  });

  async function waitUntilHeldBack(waiting: Child): Promise<void> {
    await until(async () => waiting.stderr().includes('held back: waiting for application frozen'), {
      what: 'the run to be held back',
      deadlineMs: 30_000,
    });
  }

  async function startWaiting(): Promise<Child> {
    const waiting = keyturn.start(['reencrypt', '--local', '1']);
    await waitUntilHeldBack(waiting);
    return waiting;
  }

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)('%s drains the local runners, exits %i and says how to go on', async (signal, code) => {
    const waiting = await startWaiting();
    // Twice at once, as under `npm run`, where the terminal and npm both send it.
    waiting.kill(signal);
    waiting.kill(signal);
    expect(await waiting.waitForExit(20_000)).toEqual({ code, signal: null });
    expect(waiting.stderr()).toMatch(new RegExp(`interrupted by ${signal}; run 1 is not finished; repeat the command`));
    await shop.query(`DELETE FROM keyturn.member WHERE name = 'frozen'`);
    expect(await isQuiet(shop)).toBe(true);
    await addLaggard(shop);
  });

  test('a second command joins the unfinished run, and one of its own runners that dies ends it with a cause', async () => {
    const waiting = await startWaiting();
    expect(waiting.stderr()).toMatch(/run 1, ordered earlier, is not finished; going on with it/);
    const [worker] = await shop.query(`SELECT pid FROM keyturn.member WHERE kind = 'worker'`);
    process.kill(Number(worker?.['pid']), 'SIGKILL');
    expect(await waiting.waitForExit(20_000)).toEqual({ code: 7, signal: null });
    expect(waiting.stderr()).toMatch(/the local worker was ended by SIGKILL; repeat the command to go on/);
  });

  test('watching says when no supervisor is live, and an interrupted watch leaves the run alone', async () => {
    const watching = keyturn.start(['run', 'watch', '1']);
    await until(async () => watching.stderr().includes('no live supervisor; start one with: keyturn supervisor'), {
      what: 'the watch to miss a supervisor',
      deadlineMs: 30_000,
    });
    watching.kill('SIGINT');
    expect(await watching.waitForExit(20_000)).toEqual({ code: 130, signal: null });
    expect(watching.stderr()).toMatch(/run 1 goes on without this command; see it with: keyturn run watch 1/);
    expect(await shop.query('SELECT state FROM keyturn.run')).toEqual([{ state: 'pending' }]);
  });

  test('--local starts a supervisor when the one it found ends, and passes logs on to stderr where they are asked for', async () => {
    const found = await shop.startSupervisor();
    const waiting = keyturn.start(['reencrypt', '--local', '1', '--json'], { LOG_LEVEL: 'info' });
    await waitUntilHeldBack(waiting);
    expect(waiting.stderr()).not.toContain('keyturn-supervisor');
    await shop.query(`DELETE FROM keyturn.member WHERE name = 'frozen'`);
    await found.stop();
    expect(await waiting.waitForExit(60_000)).toEqual({ code: 0, signal: null });
    expect(waiting.stderr()).toMatch(/"name":"keyturn-supervisor".*"msg":"supervisor leads"/);
    expect(JSON.parse(waiting.lines.join('\n'))).toMatchObject({
      run_id: 1,
      begin: 'joined',
      state: 'succeeded',
      rows_examined: rows,
    });
  });
});
