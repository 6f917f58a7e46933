// A file that holds keys, with each operation of the disk failing in turn and the writer killed after each: the old file or
// the new one is there, whole and private, and nothing of the failed attempt after the next one.
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { nodeFileSystem, writeDurably, type FileSystem } from '../../src/keys/durable-file.js';
import { startChild } from '../support/child.js';
import { failFileAt } from '../support/failing-files.js';
import { filePoints } from '../support/killing-files.js';
import { outcomeOf } from '../support/outcome-of.js';

const older = Buffer.from('the older content');
const newer = Buffer.from('the newer content, which is longer than the older');

let folder: string;
let path: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-durable-'));
  path = join(folder, 'keys.age');
});

afterEach(() => rmSync(folder, { recursive: true }));

function expectOneWholeFile(): void {
  expect([older, newer].some((content) => content.equals(readFileSync(path)))).toBe(true);
  expect(statSync(path).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder)).toEqual(['keys.age']);
}

describe('a durable write', () => {
  test('leaves a private file with the content, and nothing else', async () => {
    await writeDurably({ path, content: newer, force: false });
    expect(readFileSync(path)).toEqual(newer);
    expectOneWholeFile();
  });

  test('never replaces what is there unless it is told to, not even a link that leads nowhere', async () => {
    symlinkSync(join(folder, 'nowhere'), path);
    await expect(writeDurably({ path, content: newer, force: false })).rejects.toMatchObject({
      code: 'BACKUP_REFUSED',
    });
    rmSync(path);
    await writeDurably({ path, content: older, force: false });
    await expect(writeDurably({ path, content: newer, force: false })).rejects.toMatchObject({
      code: 'BACKUP_REFUSED',
    });
    expect(readFileSync(path)).toEqual(older);
    await writeDurably({ path, content: newer, force: true });
    expectOneWholeFile();
    expect(readFileSync(path)).toEqual(newer);
  });

  test.each(['EIO', 'ENOSPC', 'EINTR'])(
    'whose n-th file operation fails with %s leaves the old file or the new one whole, for every n',
    async (code) => {
      await writeDurably({ path, content: older, force: false });
      let nth = 1;
      for (; ; nth++) {
        const { files } = failFileAt(nth, code);
        const outcome = await outcomeOf(() => writeDurably({ path, content: newer, force: true }, files));
        expectOneWholeFile();
        if (outcome === 'done') break;
        expect(outcome).toBe('FILE_UNAVAILABLE');
        await writeDurably({ path, content: older, force: true });
      }
      expect(readFileSync(path)).toEqual(newer);
      expect(nth).toBeGreaterThan(8);
    },
  );

  test('that reads back as something else says so', async () => {
    const files: FileSystem = { ...nodeFileSystem, read: async () => older };
    await expect(writeDurably({ path, content: newer, force: false }, files)).rejects.toMatchObject({
      code: 'FILE_UNAVAILABLE',
    });
  });

  test('removes what a writer that is gone has left, and nothing else', async () => {
    const kept = [
      '.keys.age.1-0123456789ab.tmp',
      '.other.age.999999999-0123456789ab.tmp',
      '.keys.age.tmp',
      'keys.age.tmp',
    ];
    for (const name of [...kept, '.keys.age.999999999-0123456789ab.tmp']) writeFileSync(join(folder, name), '');
    await writeDurably({ path, content: newer, force: false });
    // Process 1 is alive: its file may be one that is being written.
    expect(readdirSync(folder).toSorted()).toEqual([...kept, 'keys.age'].toSorted());
  });
});

describe('a writer that is killed', () => {
  test.each(filePoints)(
    'at %s leaves the old file or the new one whole, and the next write nothing else',
    async (point) => {
      await writeDurably({ path, content: older, force: false });
      const child = startChild('durable-writer', { args: [path, newer.toString(), point] });
      expect(await child.waitForExit(20_000)).toMatchObject({ signal: 'SIGKILL' });
      expect([older, newer].some((content) => content.equals(readFileSync(path)))).toBe(true);
      expect(statSync(path).mode & 0o777).toBe(0o600);
      await writeDurably({ path, content: newer, force: true });
      expectOneWholeFile();
    },
  );
});
