// Root keys that others may hold, and what that exposes: every data key that was ever wrapped under one. The database keeps
// the history of wraps and never takes a suspicion back (migrations/retirement-statements.ts); here both are written and read.
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';

/** Records once per root key that others may hold it; answers those that are new. */
export async function markRootsSuspect(
  client: Queryable,
  rootIds: readonly number[],
  reason: string | undefined,
): Promise<readonly number[]> {
  const { rows } = await client.query(
    'UPDATE keyturn.root_key SET suspect_at = clock_timestamp() WHERE id = ANY($1) AND suspect_at IS NULL RETURNING id',
    [rootIds],
  );
  const marked = rows.map(([id]) => Number(id)).toSorted((a, b) => a - b);
  for (const id of marked)
    await writeAudit(client, { action: 'root.suspect', object: `root key ${id}`, reason, after: { suspect: true } });
  return marked;
}

export async function isSuspect(database: Queryable, fingerprint: Buffer): Promise<boolean> {
  const { rows } = await database.query(
    'SELECT 1 FROM keyturn.root_key WHERE fingerprint = $1 AND suspect_at IS NOT NULL',
    [fingerprint],
  );
  return rows.length > 0;
}

/** Root keys in use for a keyring now; the one that is to replace another is left out until it has. */
export async function listPresentRoots(database: Queryable, keyringId: string): Promise<readonly number[]> {
  const { rows } = await database.query(
    `SELECT DISTINCT w.root_key_id FROM keyturn.data_key_wrap w JOIN keyturn.data_key k ON k.id = w.data_key_id
       JOIN keyturn.root_key r ON r.id = w.root_key_id
     WHERE k.keyring_id = $1 AND r.replaces IS NULL ORDER BY w.root_key_id`,
    [keyringId],
  );
  return rows.map(([id]) => Number(id));
}

/** Root keys that wrapped a key of the keyring which still decrypts, and open nothing of this database any more. */
export async function listFormerRoots(database: Queryable, keyringIds: readonly string[]): Promise<readonly number[]> {
  const { rows } = await database.query(
    `SELECT DISTINCT r.id FROM keyturn.root_key r JOIN keyturn.data_key k ON r.id = ANY(k.wrapped_under)
     WHERE k.keyring_id = ANY($1) AND k.state IN ('staged', 'active', 'decrypt_only')
       AND NOT EXISTS (SELECT 1 FROM keyturn.data_key_wrap w WHERE w.root_key_id = r.id) ORDER BY r.id`,
    [keyringIds],
  );
  return rows.map(([id]) => Number(id));
}

export interface ExposedKey {
  readonly id: number;
  /** A key that was made now would be out of reach of whoever holds the suspect root, or was not there when it leaked. */
  readonly isReplaceable: boolean;
}

const exposure = `EXISTS (SELECT 1 FROM keyturn.root_key s WHERE s.suspect_at IS NOT NULL AND s.id = ANY(k.wrapped_under))`;
const replaceable = `EXISTS (SELECT 1 FROM keyturn.root_key s WHERE s.suspect_at IS NOT NULL AND s.id = ANY(k.wrapped_under)
    AND (k.created_at <= s.suspect_at
      OR NOT EXISTS (SELECT 1 FROM keyturn.data_key_wrap w WHERE w.data_key_id = k.id AND w.root_key_id = s.id)))`;

/** Keys of a keyring, not destroyed, that were ever wrapped under a suspect root key. */
export async function listExposedKeys(database: Queryable, keyringId: string): Promise<readonly ExposedKey[]> {
  const { rows } = await database.query(
    `SELECT k.id, ${replaceable} FROM keyturn.data_key k
     WHERE k.keyring_id = $1 AND k.state <> 'destroyed' AND ${exposure} ORDER BY k.id`,
    [keyringId],
  );
  return rows.map(([id, isReplaceable]) => ({ id: Number(id), isReplaceable: isReplaceable === true }));
}

/** Names of the keyrings in which a key that was ever wrapped under a suspect root encrypts or decrypts. */
export async function listExposedKeyrings(database: Queryable): Promise<readonly string[]> {
  const { rows } = await database.query(
    `SELECT n.name FROM keyturn.keyring n WHERE EXISTS (SELECT 1 FROM keyturn.data_key k
       WHERE k.keyring_id = n.id AND k.state IN ('active', 'decrypt_only') AND ${exposure}) ORDER BY n.name`,
  );
  return rows.map(([name]) => String(name));
}

/** Whether values are encrypted, or seals made, with a key that was ever wrapped under a suspect root. */
export async function isExposedKeyInUse(database: Queryable): Promise<boolean> {
  const { rows } = await database.query(
    `SELECT 1 FROM keyturn.data_key k WHERE k.state = 'active' AND ${exposure} LIMIT 1`,
  );
  return rows.length > 0;
}

/** Whether the audit key that makes seals now was ever wrapped under a suspect root key. */
export async function isAuditKeyExposed(database: Queryable): Promise<boolean> {
  const { rows } = await database.query(
    `SELECT 1 FROM keyturn.data_key k WHERE k.purpose = 3 AND k.state = 'active' AND ${exposure}`,
  );
  return rows.length > 0;
}
