// What a rotation says of backups.
import { keysWords } from '../control/backup-policy.js';

/** Nothing where every key is in a backup. */
export function unbackedWords(ids: readonly number[]): readonly string[] {
  if (ids.length === 0) return [];
  return [`  backup        not whole: ${keysWords(ids)}; run: keyturn backup create --output FILE`];
}
