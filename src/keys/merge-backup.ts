// Merges the key tables of a backup into those of a database, without I/O. Every change of a key raises its keyring's
// generation, so of two pictures of one keyring the one with the higher generation is the newer, and it says states and
// wraps; the other adds only what the newer lacks. Restoring two backups of one history in either order ends equal.
import { encryptionLimits } from '../crypto/algorithms.js';
import { KeyturnError } from '../errors.js';
import {
  canonicalJson,
  type BackupContents,
  type DataKeyRow,
  type KeyringRow,
  type KeyTables,
  type RootKeyRow,
  type TargetRow,
  type UsageRow,
} from './backup.js';

/** Throws BACKUP_REFUSED for a backup of another cluster, and where equal ids stand for different things. */
export function mergeKeyTables(current: KeyTables, backup: KeyTables): KeyTables {
  refuseOtherCluster(current.cluster?.id, backup.cluster?.id);
  if (current.schema !== backup.schema)
    throw refusedBecause(
      `it was taken of control schema ${backup.schema} and this is ${current.schema}; restore it with the program that wrote it, then upgrade`,
    );
  const isNewer = standOf(backup) > standOf(current);
  return {
    cluster: current.cluster ?? backup.cluster,
    schema: current.schema,
    rootKeys: mergeRows(current.rootKeys, backup.rootKeys, isNewer, refuseOtherRoot),
    keyrings: mergeKeyrings(current, backup),
    dataKeys: mergeDataKeys(current, backup, isNewer),
    keyUsage: mergeUsage(current, backup),
    targets: mergeTargets(current.targets, backup.targets),
    lastIds: {
      key: Math.max(current.lastIds.key, backup.lastIds.key),
      auditKey: Math.max(current.lastIds.auditKey, backup.lastIds.auditKey),
      rootKey: Math.max(current.lastIds.rootKey, backup.lastIds.rootKey),
    },
  };
}

/** Throws BACKUP_REFUSED; `current` is undefined for a database that has no cluster yet. */
export function refuseOtherCluster(current: string | undefined, backup: string | undefined): void {
  if (current === undefined || current === backup) return;
  throw refusedBecause(
    `it is of cluster ${backup ?? 'none'} and this database is cluster ${current}, whose keys are other keys`,
  );
}

/** Goes up with every change of any key of the cluster. */
function standOf({ keyrings }: KeyTables): number {
  return keyrings.reduce((sum, keyring) => sum + keyring.generation, 0);
}

/** By id; where both have a row, `refuse` compares them and the newer is taken. */
function mergeRows<Row extends { readonly id: number | string }>(
  current: readonly Row[],
  backup: readonly Row[],
  isNewer: boolean,
  refuse: (one: Row, other: Row) => void,
): Row[] {
  const merged = new Map(current.map((row) => [row.id, row]));
  for (const row of backup) {
    const known = merged.get(row.id);
    if (known !== undefined) refuse(known, row);
    if (known === undefined || isNewer) merged.set(row.id, row);
  }
  return [...merged.values()].toSorted((a, b) => (a.id < b.id ? -1 : 1));
}

function refuseOtherRoot(one: RootKeyRow, other: RootKeyRow): void {
  if (one.fingerprint !== other.fingerprint)
    throw refusedBecause(`root key ${one.id} is one root key in it and another one here`);
}

function mergeKeyrings(current: KeyTables, backup: KeyTables): KeyringRow[] {
  return [...current.keyrings, ...backup.keyrings]
    .filter(({ id }, at, all) => all.findIndex((other) => other.id === id) === at)
    .map((keyring) => newerKeyring(keyring.id, current, backup) ?? keyring)
    .toSorted((a, b) => (a.id < b.id ? -1 : 1))
    .map((keyring, _, all) => {
      if (all.some((other) => other.id !== keyring.id && other.name === keyring.name))
        throw refusedBecause(`keyring ${keyring.name} is one keyring in it and another one here`);
      return keyring;
    });
}

function newerKeyring(id: string, current: KeyTables, backup: KeyTables): KeyringRow | undefined {
  const [here, there] = [current, backup].map(({ keyrings }) => keyrings.find((keyring) => keyring.id === id));
  return isBackupNewer(here, there) ? there : here;
}

function isBackupNewer(here: KeyringRow | undefined, there: KeyringRow | undefined): boolean {
  return there !== undefined && (here === undefined || there.generation > here.generation);
}

function mergeDataKeys(current: KeyTables, backup: KeyTables, isNewer: boolean): DataKeyRow[] {
  const newerOf = (key: DataKeyRow): KeyTables => {
    const [here, there] = [current, backup].map(({ keyrings }) =>
      keyrings.find((keyring) => keyring.id === key.keyring_id),
    );
    // An audit key belongs to no keyring; the cluster as a whole says.
    const fromBackup = key.keyring_id === null ? isNewer : isBackupNewer(here, there);
    return fromBackup ? backup : current;
  };
  const ids = new Set([...current.dataKeys, ...backup.dataKeys].map((key) => key.id));
  const merged = [...ids]
    .toSorted((a, b) => a - b)
    .flatMap((id) => {
      const here = current.dataKeys.find((key) => key.id === id);
      const there = backup.dataKeys.find((key) => key.id === id);
      if (here !== undefined && there !== undefined) {
        refuseOtherKey(here, there);
        return unspent(newerOf(here) === backup ? sticky(there, here) : sticky(here, there), current, backup);
      }
      const only = here ?? there;
      if (only === undefined) return [];
      return (newerOf(only) === backup) === (here === undefined) ? unspent(only, current, backup) : withoutPlace(only);
    });
  refuseDoubles(merged);
  return merged;
}

function refuseOtherKey(one: DataKeyRow, other: DataKeyRow): void {
  const fixed = ['commitment', 'keyring_id', 'scope_id', 'version', 'algorithm', 'purpose'] as const;
  const differs = fixed.filter((name) => one[name] !== other[name]);
  if (differs.length > 0)
    throw new KeyturnError(
      'BACKUP_REFUSED',
      `the backup is refused: key ${one.id} is one key in it and another one here (${differs.join(', ')}); one of the two histories must not be continued; nothing was written`,
      { keyId: String(one.id) },
    );
}

/** What is never undone, whatever is newer: destroyed stays destroyed, compromised stays compromised, and no key is staged again. */
function sticky(newer: DataKeyRow, older: DataKeyRow): DataKeyRow {
  if (older.state === 'destroyed' && newer.state !== 'destroyed') return older;
  if (newer.state === 'staged' && older.state !== 'staged') return sticky(withoutPlace(newer), older);
  // A compromised key encrypts no more.
  return older.compromised && !newer.compromised ? withoutPlace({ ...newer, compromised: true }) : newer;
}

/** A key that the newer side lost: it decrypts, and takes nobody's place as the active or the staged key. */
function withoutPlace(key: DataKeyRow): DataKeyRow {
  return key.keyring_id !== null && (key.state === 'active' || key.state === 'staged')
    ? { ...key, state: 'decrypt_only' }
    : key;
}

/** A staged key that counts as spent would be activated by the next rotation, and encrypt nothing: it goes without the place. */
function unspent(key: DataKeyRow, current: KeyTables, backup: KeyTables): DataKeyRow {
  return key.state === 'staged' && spentLimit(key, current, backup) !== undefined ? withoutPlace(key) : key;
}

/** The higher count; never too low (docs/backup.md). */
function mergeUsage(current: KeyTables, backup: KeyTables): UsageRow[] {
  const keys = new Map([...current.dataKeys, ...backup.dataKeys].map((key) => [key.id, key]));
  return [...keys.values()]
    .map((key) => ({
      data_key_id: key.id,
      reserved: Math.max(
        reservedIn(current, key.id),
        reservedIn(backup, key.id),
        spentLimit(key, current, backup) ?? 0,
      ),
    }))
    .filter(({ data_key_id: id, reserved }) => reserved > 0 || hasUsage(current, id) || hasUsage(backup, id))
    .toSorted((a, b) => a.data_key_id - b.data_key_id);
}

/**
 * Of a key of a limited algorithm that encrypted, or may have, where nobody counted: the backup knows a key, a change of its
 * keyring or encryptions that this database does not, so what came after the backup is not known to either.
 */
function spentLimit(key: DataKeyRow, current: KeyTables, backup: KeyTables): number | undefined {
  const limit = encryptionLimits[key.algorithm]?.refuse;
  const [here, there] = [current, backup].map(({ dataKeys }) => dataKeys.find(({ id }) => id === key.id));
  if (limit === undefined || there === undefined || there.state === 'destroyed') return undefined;
  const [keyringHere, keyringThere] = [current, backup].map(({ keyrings }) =>
    keyrings.find(({ id }) => id === key.keyring_id),
  );
  const isBehind =
    here === undefined ||
    isBackupNewer(keyringHere, keyringThere) ||
    reservedIn(backup, key.id) > reservedIn(current, key.id);
  return isBehind ? limit : undefined;
}

function reservedIn({ keyUsage }: KeyTables, id: number): number {
  return keyUsage.find(({ data_key_id }) => data_key_id === id)?.reserved ?? 0;
}

function hasUsage({ keyUsage }: KeyTables, id: number): boolean {
  return keyUsage.some(({ data_key_id }) => data_key_id === id);
}

function refuseDoubles(keys: readonly DataKeyRow[]): void {
  for (const [at, key] of keys.entries()) {
    const double = keys
      .slice(0, at)
      .find((other) => key.keyring_id !== null && other.keyring_id === key.keyring_id && other.version === key.version);
    if (double !== undefined)
      throw refusedBecause(
        `keys ${double.id} and ${key.id} are both version ${key.version} of one keyring, so it and this database have gone on separately`,
      );
  }
}

function mergeTargets(current: readonly TargetRow[], backup: readonly TargetRow[]): TargetRow[] {
  const merged = mergeRows(current, backup, false, (one, other) => {
    if (one.keyring_id !== other.keyring_id)
      throw refusedBecause(`target ${one.id} is of one keyring in it and of another one here`);
  });
  return merged.map((target) => {
    const other = merged.find(
      ({ id, schema_name, table_name }) =>
        id !== target.id && schema_name === target.schema_name && table_name === target.table_name,
    );
    if (other !== undefined)
      throw refusedBecause(
        `table ${target.schema_name}.${target.table_name} is target ${target.id} in one and ${other.id} in the other, and values are bound to the id`,
      );
    const more = backup.find(({ id }) => id === target.id)?.columns ?? [];
    const columns = mergeRows(target.columns, more, false, () => undefined);
    const double = columns.find((column, at) => columns.findIndex(({ name }) => name === column.name) < at);
    if (double !== undefined)
      throw refusedBecause(`column ${target.table_name}.${double.name} has two ids, and values are bound to the id`);
    return { ...target, columns };
  });
}

function refusedBecause(why: string): KeyturnError {
  return new KeyturnError('BACKUP_REFUSED', `the backup is refused: ${why}; nothing was written`);
}

/** What has to be written to make `current` what it was merged to. */
export interface RestorePlan {
  readonly cluster: { readonly id: string; readonly created_at: string } | undefined;
  readonly rootKeys: readonly Change<RootKeyRow>[];
  readonly keyrings: readonly Change<KeyringRow>[];
  readonly dataKeys: readonly Change<DataKeyRow>[];
  readonly keyUsage: readonly Change<UsageRow>[];
  /** Keys of a limited algorithm that count as spent from now on. */
  readonly spentKeys: readonly number[];
  readonly targets: readonly Change<TargetRow>[];
  readonly lastIds: KeyTables['lastIds'];
}

export interface Change<Row> {
  /** Undefined for a row that is missing. */
  readonly before: Row | undefined;
  readonly after: Row;
}

export function planRestore(current: KeyTables, backup: BackupContents): RestorePlan {
  const merged = mergeKeyTables(current, {
    cluster: backup.cluster,
    schema: backup.schema,
    rootKeys: backup.rootKeys,
    keyrings: backup.keyrings,
    dataKeys: backup.dataKeys,
    keyUsage: backup.keyUsage,
    targets: backup.targets,
    lastIds: backup.lastIds,
  });
  const dataKeys = changesOf(current.dataKeys, merged.dataKeys);
  const keyUsage = merged.keyUsage
    .map((after) => ({ before: current.keyUsage.find((row) => row.data_key_id === after.data_key_id), after }))
    .filter(({ before, after }) => before?.reserved !== after.reserved);
  return {
    cluster: current.cluster === null ? backup.cluster : undefined,
    rootKeys: changesOf(current.rootKeys, merged.rootKeys),
    keyrings: changesOf(
      current.keyrings,
      merged.keyrings.map((keyring) => noticed(keyring, current, dataKeys)),
    ),
    dataKeys,
    keyUsage,
    spentKeys: merged.dataKeys.filter((key) => becomesSpent(key, keyUsage)).map(({ id }) => id),
    targets: changesOf(current.targets, merged.targets),
    lastIds: merged.lastIds,
  };
}

function becomesSpent({ id, algorithm }: DataKeyRow, changes: readonly Change<UsageRow>[]): boolean {
  const limit = encryptionLimits[algorithm]?.refuse ?? Infinity;
  return changes.some(({ after }) => after.data_key_id === id && after.reserved >= limit);
}

/** Members look at the generation alone: a keyring that got a lost key back takes a step of its own. */
function noticed(keyring: KeyringRow, current: KeyTables, changes: readonly Change<DataKeyRow>[]): KeyringRow {
  const here = current.keyrings.find(({ id }) => id === keyring.id);
  const isChanged = changes.some(({ after }) => after.keyring_id === keyring.id);
  return here !== undefined && isChanged && keyring.generation <= here.generation
    ? { ...keyring, generation: here.generation + 1 }
    : keyring;
}

function changesOf<Row extends RootKeyRow | KeyringRow | DataKeyRow | TargetRow>(
  current: readonly Row[],
  merged: readonly Row[],
): readonly Change<Row>[] {
  return merged
    .map((after) => ({ before: current.find((row) => row.id === after.id), after }))
    .filter(({ before, after }) => before === undefined || canonicalJson(before) !== canonicalJson(after));
}
