// A keyring whose encryptions are counted: the budget of its active key, reserved in the key tables.
import { createEncryptionBudget, type RefilledBudget } from '../keys/encryption-budget.js';
import { keyTitle, type Keyring } from '../keys/keyring.js';
import type { Database } from '../store/database.js';
import { reserveEncryptions } from '../store/usage.js';

/** Nothing is reserved yet. Undefined where the keyring cannot encrypt. */
export function createBudgetOf(
  database: Database,
  keyring: Keyring,
  onTrouble: (error: unknown) => void,
): RefilledBudget | undefined {
  const key = keyring.keys.find(({ id }) => id === keyring.active?.id);
  if (key === undefined || typeof key.id !== 'number') return undefined;
  const keyId = key.id;
  return createEncryptionBudget({
    title: keyTitle(keyring.name, key),
    keyId,
    algorithm: key.algorithm,
    reserve: (count) => reserveEncryptions(database, keyId, count),
    onTrouble,
  });
}
