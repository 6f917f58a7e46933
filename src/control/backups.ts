// The operator's verbs on backups: create, inspect, restore. Everything is verified before the first byte or row is written:
// data keys open under every root key at hand, and nothing of a backup is believed over what does.
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { bytesOf, encodeBackup, type BackupContents, type KeyTables } from '../keys/backup.js';
import {
  demandRecipient,
  demandStrongPassphrase,
  generatePassphrase,
  lockBackup,
  type BackupLock,
  type BackupOpener,
} from '../keys/backup-lock.js';
import { nodeFileSystem, refuseExisting, writeDurably } from '../keys/durable-file.js';
import { planRestore, type RestorePlan } from '../keys/merge-backup.js';
import { matchRoots, shortFingerprintOf, type HeldRoots } from '../keys/open-keyring.js';
import { planRootFiles, writeRootFiles } from '../keys/root-files.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { findHead, writeAudit } from '../store/audit.js';
import { lockKeyTables, readKeyTables, recordBackup, writeRestore, type BackupRecord } from '../store/backups.js';
import { readOnlySnapshot, type Queryable } from '../store/database.js';
import { listRootUris } from '../store/keys.js';
import { latestMigration, migrate, requireSchema } from '../store/schema.js';
import { sealRecord } from './audit.js';
import { filesOf, type ControlContext } from './context.js';
import {
  ignoreUnavailable,
  knownRootsOf,
  openAtHand,
  openBackupFile,
  openContents,
  rootsOfBackup,
} from './open-backup.js';
import { placeTargets } from './place-targets.js';

export { generatePassphrase, type BackupLock, type BackupOpener };

/** What is in a backup, without anything secret. */
export interface BackupSummary {
  readonly cluster: string;
  readonly taken_at: string;
  readonly has_root_keys: boolean;
  readonly root_keys: readonly { readonly id: number; readonly fingerprint: string; readonly in_file: boolean }[];
  readonly keyrings: readonly {
    readonly keyring: string;
    readonly generation: number;
    readonly keys: readonly {
      readonly id: number;
      readonly version: number;
      readonly state: string;
      readonly compromised: boolean;
      readonly fingerprint: string;
      readonly root_keys: readonly number[];
    }[];
  }[];
  readonly audit_keys: readonly number[];
  readonly targets: readonly string[];
  /** Where the record stood: number and hash, as `audit verify --checkpoint` takes them. */
  readonly audit_checkpoint: string;
}

export interface CreateOptions {
  readonly output: string;
  readonly lock: BackupLock;
  readonly includeRoots: boolean;
  readonly force: boolean;
  readonly reason: string | undefined;
}

export interface CreatedBackup extends BackupSummary {
  readonly file: string;
  /** SHA-256 of the file. */
  readonly file_hash: string;
  readonly bytes: number;
  readonly locked_by: BackupLock['kind'];
  /** Data keys that no root key at hand opened, so that only their commitments vouch for them. */
  readonly unopened_keys: readonly number[];
}

/** Throws BACKUP_REFUSED, BACKUP_DAMAGED, FILE_UNAVAILABLE. The file is whole before anything says that there is one. */
export async function createBackup(context: ControlContext, options: CreateOptions): Promise<CreatedBackup> {
  demandGoodLock(options.lock);
  const files = filesOf(context);
  const place = { path: options.output, force: options.force, otherwise: 'give another name, or --force' };
  await refuseExisting(place, files);
  const { database } = context;
  const tables = await database.transaction(readForBackup, readOnlySnapshot);
  const { roots, exported } = await rootsFor(context, tables, options.includeRoots);
  const contents: BackupContents = { ...tables, rootKeyBytes: exported };
  const held = matchRoots(roots, knownRootsOf(contents));
  const { unopened } = await openContents(contents, held);
  const plain = encodeBackup(contents);
  let locked: Buffer;
  try {
    locked = await lockBackup(plain, options.lock);
  } finally {
    plain.fill(0);
  }
  await writeDurably({ ...place, content: locked }, files);
  const backup = backupRecordOf(contents, options.output, locked, options.lock.kind);
  try {
    await database.transaction(async (client) => {
      await recordBackup(client, backup);
      await writeAudit(client, {
        action: 'backup.create',
        object: `backup ${shortFingerprintOf(backup.fileHash)}`,
        reason: options.reason,
        after: {
          keys: backup.keyIds,
          rootKeys: backup.rootKeyIds,
          hasRootKeys: backup.hasRootKeys,
          lockedBy: backup.lockedBy,
        },
      });
    });
  } catch (error) {
    context.onProgress(`the backup at ${options.output} is whole, and could not be recorded`);
    throw error;
  }
  await sealRecord(context, held);
  return {
    file: options.output,
    file_hash: backup.fileHash.toString('hex'),
    bytes: locked.length,
    locked_by: options.lock.kind,
    unopened_keys: unopened,
    ...summaryOf(contents),
  };
}

function demandGoodLock(lock: BackupLock): void {
  if (lock.kind === 'passphrase') demandStrongPassphrase(lock.passphrase);
  else for (const recipient of lock.recipients) demandRecipient(recipient);
}

async function readForBackup(client: Queryable): Promise<Omit<BackupContents, 'rootKeyBytes'>> {
  const { cluster, ...tables } = await readKeyTables(client);
  if (cluster === null)
    throw new KeyturnError(
      'NOT_INITIALIZED',
      'this database has no keys yet that could be backed up; run: keyturn init',
    );
  const head = await findHead(client);
  if (head === undefined)
    throw new KeyturnError('AUDIT_DAMAGED', 'the audit record has lost its head; see: keyturn audit verify');
  const { rows } = await client.query('SELECT to_jsonb(clock_timestamp())');
  return {
    ...tables,
    cluster,
    takenAt: String(rows[0]?.[0]),
    auditHead: { n: Number(head.n), hash: `\\x${head.hash.toString('hex')}` },
  };
}

/** The root keys of the registry that are at hand; with their bytes where those are asked for, and then all of them. */
async function rootsFor(
  context: ControlContext,
  tables: Pick<KeyTables, 'cluster' | 'keyrings' | 'rootKeys' | 'dataKeys'>,
  includeRoots: boolean,
): Promise<{ roots: readonly RootKey[]; exported: BackupContents['rootKeyBytes'] }> {
  const uris = [...new Set([...(await listRootUris(context.database)).values()].flat())];
  const cluster = tables.cluster?.id ?? '';
  if (!includeRoots) return { roots: await openAtHand(context, uris, cluster), exported: [] };
  const roots: RootKey[] = [];
  const exported: BackupContents['rootKeyBytes'] = [];
  for (const uri of uris) {
    const found = await context.exportRoot(uri, cluster).catch(ignoreUnavailable);
    if (found === undefined) continue;
    const { root, bytes } = found;
    const row = tables.rootKeys.find(({ fingerprint }) => bytesOf(fingerprint).equals(root.fingerprint));
    if (row !== undefined) exported.push({ id: row.id, key: bytes.toString('hex') });
    bytes.fill(0);
    roots.push(root);
  }
  const missing = tables.dataKeys.find(
    (key) => key.wraps.length > 0 && !key.wraps.some((wrap) => exported.some(({ id }) => id === wrap.root_key_id)),
  );
  if (missing !== undefined)
    throw new KeyturnError(
      'ROOT_KEY_UNAVAILABLE',
      `--include-roots takes every root key, and none at hand opens data key ${missing.id}; nothing was written`,
      { keyId: String(missing.id) },
    );
  return { roots, exported };
}

function backupRecordOf(
  contents: BackupContents,
  file: string,
  locked: Buffer,
  lockedBy: BackupLock['kind'],
): BackupRecord {
  return {
    takenAt: contents.takenAt,
    fileName: basename(file),
    fileHash: createHash('sha256').update(locked).digest(),
    lockedBy,
    hasRootKeys: contents.rootKeyBytes.length > 0,
    keyIds: contents.dataKeys.map(({ id }) => id),
    rootKeyIds: contents.rootKeys.map(({ id }) => id),
  };
}

function summaryOf(contents: BackupContents): BackupSummary {
  const { rootKeys, dataKeys, keyrings, targets, rootKeyBytes } = contents;
  return {
    cluster: contents.cluster.id,
    taken_at: new Date(contents.takenAt).toISOString(),
    has_root_keys: rootKeyBytes.length > 0,
    root_keys: rootKeys.map(({ id, fingerprint }) => ({
      id,
      fingerprint: shortFingerprintOf(bytesOf(fingerprint)),
      in_file: rootKeyBytes.some((root) => root.id === id),
    })),
    keyrings: keyrings.map(({ id, name, generation }) => ({
      keyring: name,
      generation,
      keys: dataKeys
        .filter((key) => key.keyring_id === id)
        .map((key) => ({
          id: key.id,
          version: key.version,
          state: key.state,
          compromised: key.compromised,
          fingerprint: shortFingerprintOf(bytesOf(key.commitment)),
          root_keys: key.wraps.map((wrap) => wrap.root_key_id),
        })),
    })),
    audit_keys: dataKeys.filter((key) => key.purpose === 3).map(({ id }) => id),
    targets: targets.map((target) => `${target.schema_name}.${target.table_name}`).toSorted(),
    audit_checkpoint: `${contents.auditHead.n}:${contents.auditHead.hash.slice(2)}`,
  };
}

/** Opens the file, checks its hash and shows what is in it. Touches no database and writes nothing. */
export async function inspectBackup(input: string, opener: BackupOpener): Promise<BackupSummary> {
  return summaryOf((await openBackupFile(input, opener, nodeFileSystem)).contents);
}

export interface RestoreOptions {
  readonly input: string;
  readonly opener: BackupOpener;
  /** Without it nothing is written. */
  readonly apply: boolean;
  /** Where root keys of the backup are written to, one file each. */
  readonly rootsTo: string | undefined;
  readonly reason: string | undefined;
}

export interface RestoreReport {
  readonly applied: boolean;
  readonly backup: BackupSummary;
  /** Whether the database had no cluster, and so takes over that of the backup. */
  readonly creates_cluster: boolean;
  readonly root_keys_added: readonly number[];
  readonly keyrings_added: readonly string[];
  readonly keys_added: readonly number[];
  /** Keys whose state or wraps are newer in the backup. */
  readonly keys_brought_forward: readonly number[];
  readonly targets_added: readonly string[];
  /** Targets whose table is not there yet: `keyturn init` finds it once it is. */
  readonly targets_waiting: readonly string[];
  /** Data keys that no root key at hand opened. */
  readonly unopened_keys: readonly number[];
  /** Keys of a limited algorithm whose encryptions since the backup nobody counted: they decrypt, and encrypt no more. */
  readonly keys_counted_as_spent: readonly number[];
  readonly root_files: readonly string[];
}

/**
 * Merges a backup into this database, or says what merging it would do. One transaction; throws before the first write,
 * BACKUP_REFUSED, BACKUP_DAMAGED or MASTER_KEY_MISMATCH.
 */
export async function restoreBackup(context: ControlContext, options: RestoreOptions): Promise<RestoreReport> {
  if (options.rootsTo !== undefined && !options.apply)
    throw new KeyturnError(
      'USAGE',
      '--roots-to writes the root keys, and without --apply nothing is written; add --apply, or leave --roots-to out',
    );
  const files = filesOf(context);
  const { contents, locked } = await openBackupFile(options.input, options.opener, files);
  await context.reachPoint?.('restore.parse');
  const held = await rootsOfBackup(context, contents);
  const { unopened } = await openContents(contents, held);
  const rootFiles =
    options.rootsTo === undefined ? [] : await planRootFiles(contents.rootKeyBytes, options.rootsTo, files);
  const hasSchema = await isMigrated(context);
  const report = (plan: RestorePlan, waiting: readonly string[], paths: readonly string[]): RestoreReport => ({
    applied: options.apply,
    backup: summaryOf(contents),
    creates_cluster: plan.cluster !== undefined,
    root_keys_added: added(plan.rootKeys).map(({ id }) => id),
    keyrings_added: added(plan.keyrings).map(({ name }) => name),
    keys_added: added(plan.dataKeys).map(({ id }) => id),
    keys_brought_forward: plan.dataKeys.filter(({ before }) => before !== undefined).map(({ after }) => after.id),
    targets_added: added(plan.targets).map((target) => `${target.schema_name}.${target.table_name}`),
    targets_waiting: waiting,
    unopened_keys: unopened,
    keys_counted_as_spent: plan.spentKeys,
    root_files: paths,
  });
  const planIn = async (client: Queryable): Promise<{ plan: RestorePlan; waiting: readonly string[] }> => {
    const plan = planRestore(await readKeyTables(client), contents);
    demandProved(plan, contents, { held, unopened });
    return placeTargets(client, plan);
  };
  if (!options.apply) {
    const { plan, waiting } = hasSchema
      ? await context.database.transaction(planIn, readOnlySnapshot)
      : await placeTargets(context.database, planRestore(emptyTables(), contents));
    return report(plan, waiting, []);
  }
  const { config, database } = context;
  if (!hasSchema && config.databaseUrl !== undefined) await migrate(config.databaseUrl);
  await requireSchema(database);
  const backup = backupRecordOf(
    contents,
    options.input,
    locked,
    options.opener.kind === 'passphrase' ? 'passphrase' : 'recipients',
  );
  const { plan, waiting, paths } = await database.transaction(async (client) => {
    await lockKeyTables(client);
    const planned = await planIn(client);
    await writeRestore(client, planned.plan, options.reason, async () => context.reachPoint?.('restore.row_n'));
    await recordBackup(client, backup);
    await writeAudit(client, {
      action: 'backup.restore',
      object: `backup ${shortFingerprintOf(backup.fileHash)}`,
      reason: options.reason,
      after: {
        takenAt: contents.takenAt,
        auditHead: { n: contents.auditHead.n, hash: contents.auditHead.hash.slice(2) },
        keysAdded: added(planned.plan.dataKeys).map(({ id }) => id),
        unopenedKeys: unopened,
        keysCountedAsSpent: planned.plan.spentKeys,
      },
    });
    // Before the commit: keys that are here without the root key that opens them would be the worse half.
    const written = await writeRootFiles(rootFiles, files);
    await context.reachPoint?.('restore.commit');
    return { ...planned, paths: written };
  });
  await sealRecord(context, held);
  return report(plan, waiting, paths);
}

function added<Row>(changes: readonly { before: Row | undefined; after: Row }[]): readonly Row[] {
  return changes.filter(({ before }) => before === undefined).map(({ after }) => after);
}

/** False for a database that no `init` has seen. Throws SCHEMA_TOO_OLD, SCHEMA_TOO_NEW. */
async function isMigrated({ database }: ControlContext): Promise<boolean> {
  try {
    await requireSchema(database);
    return true;
  } catch (error) {
    if (isKeyturnError(error, 'NOT_INITIALIZED')) return false;
    throw error;
  }
}

function emptyTables(): KeyTables {
  return {
    cluster: null,
    schema: latestMigration,
    rootKeys: [],
    keyrings: [],
    dataKeys: [],
    keyUsage: [],
    targets: [],
    lastIds: { key: 0, auditKey: 0, rootKey: 0 },
  };
}

/** Who writes a file to a public recipient need not be who took the backups: what is here yields only to what opens. */
function demandProved(
  plan: RestorePlan,
  contents: BackupContents,
  { held, unopened }: { held: HeldRoots; unopened: readonly number[] },
): void {
  const isKnown = ({ before }: { readonly before: unknown }): boolean => before !== undefined;
  const root = plan.rootKeys.find((change) => isKnown(change) && !held.has(change.after.id));
  const key = plan.dataKeys.find((change) => isKnown(change) && unopened.includes(change.after.id));
  const usage = plan.keyUsage.find(
    ({ after: { data_key_id: id } }) => unopened.includes(id) && !added(plan.dataKeys).some((row) => row.id === id),
  );
  const keyring = plan.keyrings.find(
    (change) =>
      isKnown(change) &&
      contents.dataKeys.some(({ id, keyring_id }) => keyring_id === change.after.id && unopened.includes(id)),
  );
  const what = [
    root && `root key ${root.after.id}`,
    key && `data key ${key.after.id}`,
    usage && `data key ${usage.after.data_key_id}`,
    keyring && `keyring ${keyring.after.name}`,
  ].find((words) => words !== undefined);
  if (what !== undefined)
    throw new KeyturnError(
      'BACKUP_REFUSED',
      `the backup says something newer of ${what}, which is here, and no root key at hand proves it; give the root key; nothing was written`,
    );
}
