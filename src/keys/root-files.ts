// Root keys of a backup as files, each as `file:` wants it. What can be refused is refused before the first is written; a
// file that holds the same key already is left as it is, so that a restore that was cut short can be repeated.
import { KeyturnError } from '../errors.js';
import type { BackupContents } from './backup.js';
import { during, writeDurably, type FileSystem } from './durable-file.js';

export interface RootFile {
  readonly path: string;
  readonly content: Buffer;
  readonly isThere: boolean;
}

const groupOrOthers = 0o077;
const groupOrOthersWrite = 0o022;

/** Throws BACKUP_REFUSED, FILE_UNAVAILABLE. */
export async function planRootFiles(
  rootKeys: BackupContents['rootKeyBytes'],
  folder: string,
  files: FileSystem,
): Promise<readonly RootFile[]> {
  if (rootKeys.length === 0)
    throw refused('it holds no root keys; take one with --include-roots, or leave --roots-to out');
  // With the dot a link to a folder is the folder.
  const seen = await during('looking at', folder, () => files.look(`${folder}/.`));
  if (seen === undefined) throw refused(`there is no folder ${folder}; make it: mkdir -m 700 '${folder}'`);
  if ((seen.mode & groupOrOthersWrite) !== 0)
    throw refused(`others can write to ${folder}, and file: takes no root key from there; run: chmod go-w '${folder}'`);
  const planned: RootFile[] = [];
  for (const { id, key } of rootKeys) {
    const path = `${folder}/root-${id}.key`;
    const content = Buffer.from(`${key}\n`, 'latin1');
    planned.push({ path, content, isThere: await isThere(path, content, files) });
  }
  return planned;
}

async function isThere(path: string, content: Buffer, files: FileSystem): Promise<boolean> {
  const seen = await during('looking at', path, () => files.look(path));
  if (seen === undefined) return false;
  if (seen.kind !== 'file') throw refused(`${path} is there and no regular file; ${otherwise}`);
  const stored = await during('reading', path, () => files.read(path));
  const isSame = stored.equals(content);
  stored.fill(0);
  if (!isSame) throw refused(`${path} is there and holds something else; ${otherwise}`);
  if ((seen.mode & groupOrOthers) !== 0)
    throw refused(`${path} holds the root key already and others can read it; run: chmod 600 '${path}'`);
  return true;
}

const otherwise = 'give another folder, or move it away';

/** Answers all paths; zeroes the contents. */
export async function writeRootFiles(planned: readonly RootFile[], files: FileSystem): Promise<readonly string[]> {
  try {
    for (const { path, content, isThere } of planned)
      if (!isThere) await writeDurably({ path, content, force: false, otherwise }, files);
  } finally {
    for (const { content } of planned) content.fill(0);
  }
  return planned.map(({ path }) => path);
}

function refused(why: string): KeyturnError {
  return new KeyturnError(
    'BACKUP_REFUSED',
    `the root keys of the backup cannot be written: ${why}; nothing was written`,
  );
}
