// Compromised keys that only wait for their retirement, and the evidence that a retired one left.
import type { Queryable } from './database.js';

export interface RetirableKey {
  readonly id: number;
  readonly keyring: string;
  readonly runId: number;
}

/**
 * Compromised keys whose keyring a run has moved to its active key and verified, after that became active. Ended for so long
 * that a command which waited for the run has had its turn. One that somebody restored since is left alone.
 */
export async function listRetirable(database: Queryable, endedForSeconds: number): Promise<readonly RetirableKey[]> {
  const { rows } = await database.query(
    `SELECT k.id, n.name, max(r.id) FROM keyturn.data_key k JOIN keyturn.keyring n ON n.id = k.keyring_id
       JOIN keyturn.data_key a ON a.keyring_id = n.id AND a.state = 'active'
       JOIN keyturn.run r ON r.keyring_id = n.id AND r.target_key_id = a.id
     WHERE k.compromised AND k.state = 'decrypt_only' AND r.kind = 'reencrypt' AND r.state = 'succeeded' AND NOT r.only_cells
       AND r.target_id IS NULL AND r.scope IS NULL AND r.verified_at > a.activated_at
       AND NOT EXISTS (SELECT 1 FROM keyturn.retirement t WHERE t.data_key_id = k.id AND t.scanned_at > r.verified_at)
       AND r.finished_at < clock_timestamp() - make_interval(secs => $1)
     GROUP BY k.id, n.name ORDER BY k.id`,
    [endedForSeconds],
  );
  return rows.map(([id, keyring, runId]) => ({ id: Number(id), keyring: String(keyring), runId: Number(runId) }));
}

/** What proved the key unused when it was last retired. */
export async function findRetirementEvidence(database: Queryable, keyId: number): Promise<unknown> {
  const { rows } = await database.query(
    'SELECT evidence FROM keyturn.retirement WHERE data_key_id = $1 ORDER BY id DESC LIMIT 1',
    [keyId],
  );
  return rows[0]?.[0];
}
