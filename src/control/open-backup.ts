// Opening a backup: the file, the root keys in it or at hand, and every data key that they open. Nothing in it is believed
// before its commitment was compared.
import { createRootKey } from '../crypto/root-key.js';
import type { KeyId, ValueKey } from '../crypto/value-key.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import {
  bytesOf,
  damaged,
  decodeBackup,
  type BackupContents,
  type DataKeyRow,
  type KeyTables,
} from '../keys/backup.js';
import { unlockBackup, type BackupOpener } from '../keys/backup-lock.js';
import { during, type FileSystem } from '../keys/durable-file.js';
import { matchRoots, shortFingerprintOf, type HeldRoots, type KnownRoot } from '../keys/open-keyring.js';
import type { RootKey } from '../keys/roots/root-key.js';
import type { ControlContext } from './context.js';

/** Throws FILE_UNAVAILABLE, BACKUP_REFUSED, BACKUP_DAMAGED. */
export async function openBackupFile(
  input: string,
  opener: BackupOpener,
  files: FileSystem,
): Promise<{ contents: BackupContents; locked: Buffer }> {
  const locked = await during('reading', input, () => files.read(input));
  const plain = await unlockBackup(locked, opener);
  try {
    return { contents: decodeBackup(plain), locked };
  } finally {
    plain.fill(0);
  }
}

/** Root keys of other machines are left out. */
export async function openAtHand(
  context: ControlContext,
  uris: readonly string[],
  cluster: string,
): Promise<readonly RootKey[]> {
  const opened: RootKey[] = [];
  for (const uri of new Set(uris)) {
    opened.push(...((await context.openRoots([uri], cluster).catch(ignoreUnavailable)) ?? []));
  }
  return opened;
}

export function ignoreUnavailable(error: unknown): undefined {
  if (!isKeyturnError(error, 'ROOT_KEY_UNAVAILABLE')) throw error;
}

export function knownRootsOf({ rootKeys }: Pick<KeyTables, 'rootKeys'>): readonly KnownRoot[] {
  return rootKeys.map((row) => ({
    id: row.id,
    fingerprint: bytesOf(row.fingerprint),
    verificationToken: bytesOf(row.verification_token),
  }));
}

/** Those that the file carries. */
export function rootsInFile({ cluster, rootKeyBytes }: BackupContents): readonly RootKey[] {
  return rootKeyBytes.map(({ key }) => createRootKey(Buffer.from(key, 'hex'), cluster.id));
}

/** Those in the file, and those at hand that keyturn.yaml or the backup name. Throws MASTER_KEY_MISMATCH. */
export async function rootsOfBackup(context: ControlContext, contents: BackupContents): Promise<HeldRoots> {
  const uris = [
    ...context.config.keyrings.flatMap((keyring) => keyring.roots),
    ...contents.keyrings.flatMap((keyring) => keyring.root_uris),
  ];
  const given = await openAtHand(context, uris, contents.cluster.id);
  const known = knownRootsOf(contents);
  if (given.length > 0 && matchRoots(given, known).size === 0)
    throw new KeyturnError(
      'MASTER_KEY_MISMATCH',
      `MasterKeyMismatch: the keys of the backup are wrapped under root key ${known.map(({ fingerprint }) => shortFingerprintOf(fingerprint)).join(', ')}, the given root key is ${given.map((root) => root.shortFingerprint).join(', ')}; nothing was written; give the right root key, or none`,
    );
  return matchRoots([...given, ...rootsInFile(contents)], known);
}

export interface OpenedContents {
  readonly keys: ReadonlyMap<KeyId, ValueKey>;
  /** Data keys that no root key could be tried on. */
  readonly unopened: readonly number[];
}

/**
 * Opens every wrap that a held root key should open; the unwrapping compares commitments. Throws BACKUP_DAMAGED,
 * MASTER_KEY_MISMATCH.
 */
export async function openContents(contents: BackupContents, held: HeldRoots): Promise<OpenedContents> {
  for (const { id, verificationToken } of knownRootsOf(contents)) {
    if ((await held.get(id)?.opensToken(id, verificationToken)) === false)
      throw damaged(`root key ${id} does not open its verification token`);
  }
  const keys = new Map<KeyId, ValueKey>();
  const unopened: number[] = [];
  for (const key of contents.dataKeys) {
    for (const wrap of key.wraps) {
      const opened = await unwrap(key, wrap, { cluster: contents.cluster.id, root: held.get(wrap.root_key_id) });
      if (opened !== undefined) keys.set(key.id, opened);
    }
    if (!keys.has(key.id) && key.state !== 'destroyed') unopened.push(key.id);
  }
  return { keys, unopened };
}

async function unwrap(
  key: DataKeyRow,
  { root_key_id: rootId, blob }: DataKeyRow['wraps'][number],
  { cluster, root }: { cluster: string; root: RootKey | undefined },
): Promise<ValueKey | undefined> {
  const { id, algorithm, purpose, scope_id: scope } = key;
  try {
    return await root?.unwrap(
      rootId,
      { id, algorithm, purpose, cluster, scope },
      bytesOf(key.commitment),
      bytesOf(blob),
    );
  } catch (error) {
    if (!isKeyturnError(error, 'UNWRAP_FAILED')) throw error;
    throw damaged(`data key ${id} does not open under root key ${rootId}`);
  }
}
