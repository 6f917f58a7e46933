// The operating system account the embedded server runs under. PostgreSQL refuses uid 0, so a root owner starts it
// under an account that already exists; every other owner runs it under its own.

import { chmodSync, chownSync, readFileSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, resolve } from 'node:path';
import { KeyturnError } from '../errors.js';

export interface Account {
  readonly name: string;
  readonly uid: number;
  readonly gid: number;
}

const preferredNames = ['postgres', '_postgres', 'nobody'];

/** The account to change to, or undefined where the owner's own will do. */
export function findServerAccount(): Account | undefined {
  if (process.getuid?.() !== 0) return undefined;
  const accounts = readFileSync('/etc/passwd', 'utf8').split('\n').map(parseAccount);
  const usable = accounts.filter((account) => account !== undefined);
  for (const name of preferredNames) {
    const account = usable.find((candidate) => candidate.name === name);
    if (account !== undefined) return account;
  }
  const [other] = usable;
  if (other === undefined) {
    throw new KeyturnError(
      'DATABASE_UNAVAILABLE',
      'the embedded PostgreSQL does not run as root and no other account exists here: run as another user or set DATABASE_URL',
    );
  }
  return other;
}

function parseAccount(line: string): Account | undefined {
  const [name, , uid, gid] = line.split(':');
  if (name === undefined || uid === undefined || gid === undefined || Number(uid) === 0) return undefined;
  // Some systems write nobody as -2, which chown and setuid only take as an unsigned number.
  return { name, uid: Number(uid) >>> 0, gid: Number(gid) >>> 0 };
}

/** What a child process needs to run as the account. */
export function identityOf(account: Account | undefined): { uid?: number; gid?: number } {
  return account === undefined ? {} : { uid: account.uid, gid: account.gid };
}

/** Makes a file or folder the account's own and closes it to everybody else. */
export function giveTo(account: Account | undefined, path: string, mode: number): void {
  chmodSync(path, mode);
  if (account !== undefined) chownSync(path, account.uid, account.gid);
}

/** A temporary folder whose every parent the account may cross; root's own is often closed to all others. */
export function findDataParent(account: Account | undefined): string {
  if (account === undefined) return tmpdir();
  return [tmpdir(), '/tmp', '/var/tmp'].find(isOpenToAll) ?? tmpdir();
}

function isOpenToAll(path: string): boolean {
  const mode = statSync(path, { throwIfNoEntry: false })?.mode;
  if (mode === undefined || (mode & 0o001) === 0) return false;
  const parent = dirname(resolve(path));
  return parent === resolve(path) || isOpenToAll(parent);
}
