// Files that hold keys, written so that a crash or a full disk leaves the old file or the new one, whole, and readable by
// nobody else: temporary file of our own in the same directory, fsync, rename, fsync of the directory, read back. What a
// killed writer leaves under its temporary name is removed by the next.
import { createHash, randomBytes } from 'node:crypto';
import { constants } from 'node:fs';
import { lstat, open, readdir, readFile, rename, unlink, type FileHandle } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { KeyturnError } from '../errors.js';

/** The operating system's part; a test makes each of its calls fail. */
export interface FileSystem {
  /** Undefined where nothing is; follows no link. */
  look(path: string): Promise<Seen | undefined>;
  list(folder: string): Promise<readonly string[]>;
  /** Exclusive, mode 0600, follows no link. */
  create(path: string): Promise<OpenFile>;
  rename(from: string, to: string): Promise<void>;
  /** Makes the names in a folder durable. */
  syncFolder(folder: string): Promise<void>;
  read(path: string): Promise<Buffer>;
  remove(path: string): Promise<void>;
}

export interface Seen {
  readonly kind: 'file' | 'folder' | 'other';
  /** The permission bits. */
  readonly mode: number;
}

export interface OpenFile {
  /** May write less than it was given, as write(2) may; answers how much. */
  write(content: Buffer, from: number): Promise<number>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

export const nodeFileSystem: FileSystem = {
  async look(path) {
    try {
      const seen = await lstat(path);
      return { kind: seen.isFile() ? 'file' : seen.isDirectory() ? 'folder' : 'other', mode: seen.mode & 0o777 };
    } catch (error) {
      if (['ENOENT', 'ENOTDIR'].includes(codeOf(error))) return undefined;
      throw error;
    }
  },
  list: (folder) => readdir(folder),
  async create(path) {
    const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants;
    const file = await open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, 0o600);
    return {
      write: async (content, from) => (await file.write(content, from)).bytesWritten,
      sync: () => file.sync(),
      close: () => file.close(),
    };
  },
  rename,
  async syncFolder(folder) {
    const handle: FileHandle = await open(folder, constants.O_RDONLY);
    try {
      await handle.sync();
    } finally {
      await handle.close();
    }
  },
  read: (path) => readFile(path),
  remove: unlink,
};

export interface DurableWrite {
  readonly path: string;
  readonly content: Buffer;
  /** Replace a file that is there. */
  readonly force: boolean;
  /** What to do about a file that is there and is not replaced; default: give another name. */
  readonly otherwise?: string;
}

/**
 * Resolves when the file is on disk and reads back as it was given. Throws BACKUP_REFUSED for a file that is there already,
 * FILE_UNAVAILABLE where the file could not be written; then the old file, or none, is there, or the new one whole.
 */
export async function writeDurably(
  { content, ...place }: DurableWrite,
  files: FileSystem = nodeFileSystem,
): Promise<void> {
  const target = resolve(place.path);
  const folder = dirname(target);
  const temporary = join(folder, temporaryName(basename(target), process.pid));
  await refuseExisting({ ...place, path: target }, files);
  await during('looking for leftovers beside', target, () => sweep(folder, basename(target), files));
  try {
    await during('writing', target, () => writeTemporary(temporary, content, files));
    await refuseExisting({ ...place, path: target }, files);
    await during('renaming', target, () => files.rename(temporary, target));
  } catch (error) {
    // What is left is swept by the next write; the first error is the one to report.
    await files.remove(temporary).catch(() => undefined);
    throw error;
  }
  await during('making durable', target, () => files.syncFolder(folder));
  const stored = await during('reading back', target, () => files.read(target));
  if (!sha256(stored).equals(sha256(content)))
    throw new KeyturnError(
      'FILE_UNAVAILABLE',
      `the file ${target} does not read back as it was written; do not rely on it, and look at the disk`,
    );
}

/** Throws BACKUP_REFUSED for a file that is there, before work is done that would be in vain. */
export async function refuseExisting(
  { path, force, otherwise = 'give another name' }: Omit<DurableWrite, 'content'>,
  files: FileSystem = nodeFileSystem,
): Promise<void> {
  if (force || (await during('looking at', path, () => files.look(path))) === undefined) return;
  throw new KeyturnError('BACKUP_REFUSED', `there is a file at ${path} already; ${otherwise}`);
}

async function writeTemporary(path: string, content: Buffer, files: FileSystem): Promise<void> {
  const file = await files.create(path);
  try {
    for (let written = 0; written < content.length; ) written += await file.write(content, written);
    await file.sync();
  } catch (error) {
    await file.close().catch(() => undefined);
    throw error;
  }
  await file.close();
}

function temporaryName(name: string, pid: number): string {
  return `.${name}.${pid}-${randomBytes(6).toString('hex')}.tmp`;
}

/** Those of writers that are gone; a live one is writing its own. */
async function sweep(folder: string, name: string, files: FileSystem): Promise<void> {
  for (const entry of await files.list(folder)) {
    const pid = entry.startsWith(`.${name}.`)
      ? /^(\d+)-[0-9a-f]{12}\.tmp$/.exec(entry.slice(name.length + 2))?.[1]
      : undefined;
    if (pid !== undefined && !isAnotherLiveProcess(Number(pid))) await files.remove(join(folder, entry));
  }
}

function isAnotherLiveProcess(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return codeOf(error) === 'EPERM';
  }
}

/** Throws FILE_UNAVAILABLE for what the operating system refuses. */
export async function during<T>(what: string, path: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (error instanceof KeyturnError) throw error;
    throw new KeyturnError('FILE_UNAVAILABLE', `${what} ${path} failed with ${codeOf(error)}`, {
      cause: codeOf(error),
    });
  }
}

function codeOf(error: unknown): string {
  return error instanceof Error && 'code' in error ? String(error.code) : 'an unknown error';
}

function sha256(content: Buffer): Buffer {
  return createHash('sha256').update(content).digest();
}
