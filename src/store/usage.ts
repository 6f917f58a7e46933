// Encryptions per key, counted by reservation before use: the stored count is never below the truth.
import type { Reservation } from '../keys/encryption-budget.js';
import type { Queryable } from './database.js';

/** Grants fewer than wanted, down to none, at the limit of the key's algorithm. */
export async function reserveEncryptions(database: Queryable, keyId: number, wanted: number): Promise<Reservation> {
  const { rows } = await database.query('SELECT granted, reserved FROM keyturn.reserve_encryptions($1, $2)', [
    keyId,
    wanted,
  ]);
  return { granted: Number(rows[0]?.[0]), reserved: Number(rows[0]?.[1]) };
}

/** Encryptions reserved under a key so far, by all processes. */
export async function countReserved(database: Queryable, keyId: number): Promise<number> {
  const { rows } = await database.query('SELECT reserved FROM keyturn.key_usage WHERE data_key_id = $1', [keyId]);
  return Number(rows[0]?.[0] ?? 0);
}
