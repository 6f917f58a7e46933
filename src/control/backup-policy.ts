// Whether every key is in a backup, before a keyring is turned and after: by the keyring's policy a rotation goes on and says
// so, or is refused. Keys are counted by database alone; whether a file still lies where it was put, only people know.
import { KeyturnError } from '../errors.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { isAuditKeyId } from '../store/audit-keys.js';
import { getBackupPolicy, listUnbackedKeys } from '../store/backups.js';
import type { ControlContext } from './context.js';

/** Throws BACKUP_REQUIRED where the policy of the keyring says so and a key of it is in no backup. */
export async function demandBackups({ database }: ControlContext, keyring: StoredKeyring): Promise<void> {
  if ((await getBackupPolicy(database, keyring.id)) !== 'require') return;
  const unbacked = await listUnbackedKeys(database, keyring.id);
  if (unbacked.length === 0) return;
  throw new KeyturnError(
    'BACKUP_REQUIRED',
    `keyring ${keyring.name} turns only when every key is in a backup (backup: require), and ${keysWords(unbacked)}; run: keyturn backup create --output FILE`,
    { keyring: keyring.name, keys: unbacked.map(String) },
  );
}

/** Data keys of a keyring that no backup covers: what a rotation says when it is done. */
export function findUnbacked(
  { database }: ControlContext,
  keyring: { readonly id: string },
): Promise<readonly number[]> {
  return listUnbackedKeys(database, keyring.id);
}

/** `key 3 is in none`, `keys 1 and 3 are in none`, `key 3 and the audit key are in none` */
export function keysWords(ids: readonly number[]): string {
  const ofValues = ids.filter((id) => !isAuditKeyId(id)).map(String);
  const names = ofValues.length < ids.length ? [...ofValues, 'the audit key'] : ofValues;
  const [last = '', ...others] = names.toReversed();
  const noun = ofValues.length === 0 ? '' : ofValues.length === 1 ? 'key ' : 'keys ';
  return others.length === 0
    ? `${noun}${last} is in none`
    : `${noun}${others.toReversed().join(', ')} and ${last} are in none`;
}
