// Root keys from files, on a real file system: what is accepted, what is refused and with which remedy.
import { execFileSync } from 'node:child_process';
import { chmod, chown, link, mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openRootKey } from '../../../src/keys/roots/open-root-key.js';
import { describeRootKeyContract, exampleCluster, exampleRootBytes } from './root-key-contract.js';

const hexKey = exampleRootBytes.toString('hex');
let directory = '';
let files = 0;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), 'keyturn-root-'));
});

afterAll(async () => {
  await rm(directory, { recursive: true });
});

async function keyFile(content: string | Buffer, mode = 0o600): Promise<string> {
  const path = join(directory, `root-${files++}.key`);
  await writeFile(path, content);
  await chmod(path, mode); // writeFile's mode passes through the umask
  return path;
}

function openPath(path: string, cluster = exampleCluster): Promise<unknown> {
  return openRootKey(`file:${path}`, { cluster, env: {} });
}

function refusal(path: string, reason: string): object {
  return { code: 'ROOT_KEY_REFUSED', message: `the root key at file:${path} is refused: ${reason}` };
}

describeRootKeyContract('file', async (bytes, cluster) =>
  openRootKey(`file:${await keyFile(bytes)}`, { cluster, env: {} }),
);

describe('content of a root key file', () => {
  test('raw bytes, hexadecimal, and hexadecimal with a newline are one key', async () => {
    const keys = [exampleRootBytes, hexKey, `${hexKey}\n`, hexKey.toUpperCase()];
    const opened = await Promise.all(keys.map(async (content) => openPath(await keyFile(content, 0o400))));
    const prints = opened.map((key) => (key as { shortFingerprint: string }).shortFingerprint);
    expect(new Set(prints).size).toBe(1);
  });

  test.each([
    ['an empty file', '', 'got 0 bytes'],
    ['31 bytes', exampleRootBytes.subarray(1), 'got 31 bytes'],
    ['33 bytes', Buffer.concat([exampleRootBytes, Buffer.from('\n')]), 'got 33 bytes'],
    ['63 digits', hexKey.slice(1), 'got 63 bytes'],
    ['63 digits and a newline that is the 64th', `${hexKey.slice(1)}\n`, 'character 64 is none'],
    ['65 digits', `${hexKey}0`, 'got 65 bytes'],
    ['a Windows newline', `${hexKey}\r\n`, 'got more than 65 bytes'],
    ['two newlines', `${hexKey}\n\n`, 'got more than 65 bytes'],
    ['a large file', Buffer.alloc(1_000_000, 7), 'got more than 65 bytes'],
    ['a letter beyond f', `${hexKey.slice(0, 9)}g${hexKey.slice(10)}`, 'character 10 is none'],
  ])('%s is refused with what was seen, never its bytes (I7)', async (_, content, seen) => {
    const error: unknown = await openPath(await keyFile(content)).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'ROOT_KEY_REFUSED' });
    expect(String(error)).toContain(seen);
    expect(String(error)).not.toContain(hexKey.slice(12, 20));
  });

  test('32 printable characters are text and not a key', async () => {
    const path = await keyFile(hexKey.slice(0, 32));
    await expect(openPath(path)).rejects.toMatchObject(
      refusal(path, 'its bytes are printable text, not random bytes; make a new key with: openssl rand -hex 32'),
    );
  });
});

describe('who else could read or replace a root key file', () => {
  test.each([0o640, 0o604, 0o620, 0o602, 0o610, 0o666, 0o777])(
    'mode %o is refused with the command that repairs it',
    async (mode) => {
      const path = await keyFile(hexKey, mode);
      await expect(openPath(path)).rejects.toMatchObject(
        refusal(path, `others have access to it (mode ${mode.toString(8)}); run: chmod 600 '${path}'`),
      );
    },
  );

  test('a symbolic link is refused, also to a good file', async () => {
    const path = join(directory, 'link.key');
    await symlink(await keyFile(hexKey), path);
    await expect(openPath(path)).rejects.toMatchObject(
      refusal(path, 'it is a symbolic link; give the path of the file itself'),
    );
  });

  test('a second hard link is refused', async () => {
    const path = await keyFile(hexKey);
    await link(path, `${path}.again`);
    await expect(openPath(path)).rejects.toMatchObject(
      refusal(path, 'it has 2 links; remove the others, they escape the check of its directory'),
    );
  });

  test('a directory and a pipe are refused without waiting for a writer', async () => {
    const pipe = join(directory, 'pipe');
    execFileSync('mkfifo', ['-m', '600', pipe]);
    for (const path of [directory, pipe]) {
      await expect(openPath(path)).rejects.toMatchObject(refusal(path, 'it is not a regular file'));
    }
  });

  test.each([0o770, 0o707, 0o1777])(
    'a directory of mode %o is refused with the command that repairs it',
    async (mode) => {
      const open = join(directory, `open-${mode}`);
      await mkdir(open);
      await chmod(open, mode);
      const path = join(open, 'root.key');
      await writeFile(path, hexKey, { mode: 0o600 });
      await expect(openPath(path)).rejects.toMatchObject(
        refusal(path, `others can write to its directory; run: chmod go-w '${open}'`),
      );
    },
  );

  // Only root can give a file away.
  test.runIf(process.geteuid?.() === 0)(
    'a file of another user is refused with the command that repairs it',
    async () => {
      const path = await keyFile(hexKey);
      await chown(path, 12_345, 12_345);
      await expect(openPath(path)).rejects.toMatchObject(
        refusal(path, `it belongs to user 12345; run: chown 0 '${path}'`),
      );
    },
  );

  test('a file that is not there is unavailable, not refused', async () => {
    const path = join(directory, 'absent.key');
    await expect(openPath(path)).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
      message: `the root key at file:${path} cannot be read: opening the file failed with ENOENT`,
    });
  });

  test('an empty path is refused', async () => {
    await expect(openPath('')).rejects.toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: 'the root key at file: is refused: expected a path after file:',
    });
  });
});
