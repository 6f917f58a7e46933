// root status, prepare, finalize, rollback and rotate as an operator runs them: what they print, how they exit, and that no
// key is ever among it.
import { randomBytes } from 'node:crypto';
import {
  chmodSync,
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from 'vitest';
import { openControl } from '../../src/app.js';
import { runCapturedWith, type Captured } from '../cli/captured.js';
import { openKeyturnProcess, type KeyturnProcess } from '../cli/keyturn-process.js';
import { findCanaries, keyCanaries } from '../support/canaries.js';
import { insertMember } from '../support/members.js';
import { nextUri, openRootedShop, type RootedShop } from '../support/roots.js';
import { shopConfig } from '../support/shop.js';

// Each command is a process of its own.
vi.setConfig({ testTimeout: 120_000 });

const newKeys = [0, 1, 2].map(() => randomBytes(32).toString('hex'));
const printedHere: string[] = [];

let rooted: RootedShop;
let keyturn: KeyturnProcess;

beforeAll(async () => {
  rooted = await openRootedShop();
  keyturn = openKeyturnProcess({ environment: () => rooted.environment('both') }, shopConfig);
});
afterAll(async () => {
  keyturn.remove();
  await rooted.close();
});

test('an operator changes the root key step by step, repeats each step, and is told what comes next', async () => {
  expect(await keyturn.json('root', 'status')).toMatchObject({
    code: 0,
    object: { roots: [{ id: 1, state: 'current', data_keys: 3 }], change: null, next: 'nothing to do' },
  });
  expect(await keyturn.json('root', 'prepare', '--to', nextUri, '--reason', 'yearly')).toMatchObject({
    code: 0,
    object: { outcome: 'prepared', data_keys: 3, root: { id: 2, uri: nextUri } },
  });
  const again = await keyturn.run('root', 'prepare', '--to', nextUri);
  expect(again).toMatchObject({ code: 0, stderr: expect.stringContaining('is prepared already') as string });

  const member = await insertMember(rooted.shop, { name: 'billing', holds: [1], writes: 1 });
  const status = await keyturn.run('root', 'status');
  expect(status.stdout).toContain(
    'finalize would wait: application billing (pid 42 on elsewhere) cannot open root key 2',
  );
  const without = await keyturn.json('root', 'finalize', '--without', 'billing', '--reason', 'switched off');
  expect(without).toMatchObject({
    code: 0,
    object: { outcome: 'finalized', next: expect.stringContaining('escrow') as string },
  });
  await rooted.shop.query('DELETE FROM keyturn.member WHERE id = $1', [member]);

  const finalizedAgain = await keyturn.run('root', 'finalize');
  expect(finalizedAgain).toMatchObject({
    code: 0,
    stderr: expect.stringContaining('no root change is prepared') as string,
  });
  expect(await keyturn.json('root', 'rotate', '--to', nextUri)).toMatchObject({
    code: 0,
    object: { outcome: 'unchanged', root: { id: 2 } },
  });
});

test('refusals have the exit code of their kind and change nothing', async () => {
  const before = await rooted.shop.query('SELECT * FROM keyturn.data_key_wrap');
  await insertMember(rooted.shop, { name: 'billing', holds: [1], writes: 1 });
  expect(await keyturn.run('root', 'rotate', '--to', 'env:KEYTURN_ROOT_KEY')).toMatchObject({
    code: 4,
    stdout: '',
    stderr: expect.stringContaining('application billing (pid 42 on elsewhere) cannot open root key 1') as string,
  });
  expect(await keyturn.run('root', 'prepare', '--to', 'env:NOT_SET')).toMatchObject({ code: 7 });
  const wrong = {
    KEYTURN_NEXT_ROOT: rooted.shop.rootKey,
    KEYTURN_THIRD: '9f3c5ab81e7d02c64fb1e8937ad560224cc19bf0683e17d5ab40928ef6711d3a',
  };
  expect(await keyturn.runWith(wrong, 'root', 'prepare', '--to', 'env:KEYTURN_THIRD')).toMatchObject({
    code: 8,
    stderr: expect.stringContaining('MasterKeyMismatch') as string,
  });
  expect(await rooted.shop.query('SELECT * FROM keyturn.data_key_wrap')).toEqual(before);
});

test('a new root key comes from an argument with a warning, from a file or from a descriptor, and is written where --to says', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-new-root-'));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  await rooted.shop.query('DELETE FROM keyturn.member');
  const place = (name: string): string => join(folder, name);
  const here = async (...args: string[]): Promise<Captured> => {
    const captured = await runCapturedWith(
      {
        environment: rooted.environment('both'),
        openControl: (options) => openControl({ ...options, file: shopConfig }),
      },
      'root',
      'rotate',
      ...args,
    );
    printedHere.push(captured.stdout, captured.stderr);
    return captured;
  };
  const rotate = (name: string, ...args: string[]): Promise<Captured> => here('--to', `file:${place(name)}`, ...args);
  const [first = '', second = '', third = ''] = newKeys;
  const written = await rotate('first.key', '--new-key', first);
  expect(written).toMatchObject({ code: 0, stderr: expect.stringContaining('an argument is public') as string });
  expect(readFileSync(place('first.key'), 'utf8')).toBe(`${first}\n`);
  expect(statSync(place('first.key')).mode & 0o777).toBe(0o600);
  // Repeated after success it is recognised; the same key for another place is no new one.
  expect(await rotate('first.key', '--new-key', first)).toMatchObject({ code: 0 });
  expect(await rotate('copy.key', '--new-key', first)).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('which is in use at file:') as string,
  });
  expect(await rotate('first.key', '--new-key', second)).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('holds another root key') as string,
  });
  expect(await rotate('short.key', '--new-key', second.slice(1))).toMatchObject({
    code: 4,
    stderr: expect.stringContaining('expected 64 hexadecimal characters, got 63') as string,
  });
  expect(await here('--to', 'env:X', '--new-key', second)).toMatchObject({ code: 2 });
  writeFileSync(place('given'), `${second}\n`, { mode: 0o644 });
  expect(await rotate('second.key', '--new-key-file', place('given'))).toMatchObject({ code: 2 });
  chmodSync(place('given'), 0o600);
  expect(await rotate('second.key', '--new-key-file', place('given'))).toMatchObject({ code: 0 });
  expect(await rotate('third.key', '--new-key-fd', '1')).toMatchObject({
    code: 2,
    stderr: expect.stringContaining('descriptor 1 is for output') as string,
  });
  writeFileSync(place('given'), `${third}\n`);
  const descriptor = openSync(place('given'), 'r');
  expect(await rotate('third.key', '--new-key-fd', String(descriptor))).toMatchObject({ code: 0 });
  closeSync(descriptor);
  expect(readdirSync(folder).toSorted()).toEqual(['first.key', 'given', 'second.key', 'third.key']);
});

test('I7 nothing that was printed, and nothing in the control tables, shows a root key', async () => {
  const { KEYTURN_ROOT_KEY = '', KEYTURN_NEXT_ROOT = '' } = rooted.environment('both');
  const canaries = [
    ...keyCanaries('the present root key', Buffer.from(KEYTURN_ROOT_KEY, 'hex')),
    ...keyCanaries('the next root key', Buffer.from(KEYTURN_NEXT_ROOT, 'hex')),
    ...newKeys.flatMap((key) => keyCanaries('a new root key', Buffer.from(key, 'hex'))),
  ];
  const rows = await rooted.shop.query(
    `SELECT a::text AS line FROM keyturn.audit a UNION ALL SELECT r::text FROM keyturn.root_key r UNION ALL SELECT k::text FROM keyturn.keyring k`,
  );
  expect(
    findCanaries(
      [
        { place: 'output', text: keyturn.printed() + printedHere.join('\n') },
        { place: 'tables', text: rows.map(({ line }) => String(line)).join('\n') },
      ],
      canaries,
    ),
  ).toEqual([]);
});
