// Root keys from files: `file:PATH`, 32 raw bytes or 64 hexadecimal characters with an optional newline. The checks are
// made on the opened descriptor, not on the path, so the file that was checked is the file that is read. They refuse
// and name the remedy; a warning would be overlooked.
import { constants, type Stats } from 'node:fs';
import { type FileHandle, open, stat } from 'node:fs/promises';
import { dirname } from 'node:path';
import { createRootKey, rootKeyBytes } from '../../crypto/root-key.js';
import { demandRandomLooking, hexKeyLength, parseHexKey, refused, unavailable } from './key-bytes.js';
import type { RootKeyProvider } from './root-key.js';

const newline = 0x0a;
const maxFileBytes = hexKeyLength + 1;
const groupOrOthers = 0o077;
const groupOrOthersWrite = 0o022;

export const fileRootKeyProvider: RootKeyProvider = {
  scheme: 'file',
  async open(path, { cluster, onBytes }) {
    if (path === '') throw refused('file:', 'expected a path after file:');
    const source = `file:${path}`;
    const file = await openWithoutFollowing(path, source);
    try {
      demandPrivate(await file.stat(), path, source);
      const parent = await stat(dirname(path));
      if ((parent.mode & groupOrOthersWrite) !== 0) {
        throw refused(source, `others can write to its directory; run: chmod go-w '${dirname(path)}'`);
      }
      const bytes = await readKey(file, source);
      demandRandomLooking(bytes, source);
      onBytes?.(bytes);
      return createRootKey(bytes, cluster);
    } finally {
      await file.close();
    }
  },
};

async function openWithoutFollowing(path: string, source: string): Promise<FileHandle> {
  try {
    // Non-blocking, or a pipe at this path would keep us waiting for a writer.
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
    if (code === 'ELOOP') throw refused(source, 'it is a symbolic link; give the path of the file itself');
    throw unavailable(source, `opening the file failed with ${code}`);
  }
}

function demandPrivate(file: Stats, path: string, source: string): void {
  const euid = process.geteuid?.();
  if (euid === undefined)
    throw refused(source, 'this system has no file owners to check; use another kind of root key');
  if (!file.isFile()) throw refused(source, 'it is not a regular file');
  if (file.uid !== euid && file.uid !== 0) {
    throw refused(source, `it belongs to user ${file.uid}; run: chown ${euid} '${path}'`);
  }
  if ((file.mode & groupOrOthers) !== 0) {
    const mode = (file.mode & 0o777).toString(8).padStart(3, '0');
    throw refused(source, `others have access to it (mode ${mode}); run: chmod 600 '${path}'`);
  }
  if (file.nlink !== 1) {
    throw refused(source, `it has ${file.nlink} links; remove the others, they escape the check of its directory`);
  }
}

async function readKey(file: FileHandle, source: string): Promise<Buffer> {
  // One byte more than any valid key, so that a longer file shows.
  const content = Buffer.alloc(maxFileBytes + 1);
  try {
    let length = 0;
    let read: number;
    do {
      ({ bytesRead: read } = await file.read(content, length, content.length - length));
      length += read;
    } while (read > 0 && length < content.length);
    if (length === rootKeyBytes) {
      const bytes = Buffer.alloc(rootKeyBytes);
      content.copy(bytes);
      return bytes;
    }
    const endsWithNewline = length === maxFileBytes && content[hexKeyLength] === newline;
    if (length !== hexKeyLength && !endsWithNewline) {
      const seen = length > maxFileBytes ? `more than ${maxFileBytes}` : String(length);
      throw refused(
        source,
        `expected ${rootKeyBytes} raw bytes, or ${hexKeyLength} hexadecimal characters and at most one newline; got ${seen} bytes`,
      );
    }
    return parseHexKey(content.subarray(0, hexKeyLength), source);
  } finally {
    content.fill(0);
  }
}
