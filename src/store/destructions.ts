// Requests to destroy a data key. Who asked, when, how long it waits and the hash an approval is bound to are filled in by
// the database, which also refuses what is not allowed (migrations/retirement-statements.ts); here they are sent and read.
import { KeyturnError } from '../errors.js';
import type { StoredKey, StoredKeyring } from '../keys/key-store.js';
import { writeAudit } from './audit.js';
import { sqlstateOf, type Queryable, type Row } from './database.js';
import { bumpGeneration, moveKeyIfState, refuseUnlessLegal } from './keys.js';
import { guards, guardState } from './migrations/retirement-statements.js';

export interface Destruction {
  readonly id: number;
  readonly keyId: number;
  readonly reason: string;
  readonly notBefore: Date;
  readonly requestedBy: string;
  readonly requestedAt: Date;
  /** SHA-256 of the canonical request, 64 hexadecimal digits. */
  readonly hash: string;
  /** The exact text that the hash is of. */
  readonly request: string;
  readonly approvedBy: string | undefined;
  readonly approvedAt: Date | undefined;
  /** An approval by another login that is not yet an hour old. */
  readonly isApproved: boolean;
  readonly isDue: boolean;
  readonly login: string;
}

const select = `SELECT id, data_key_id, reason, not_before, requested_by, requested_at, encode(hash, 'hex'), request, approved_by, approved_at,
    coalesce(approved_at > clock_timestamp() - interval '1 hour', false), not_before <= clock_timestamp(), session_user
  FROM keyturn.destruction WHERE outcome IS NULL`;

function destructionOf(row: Row): Destruction {
  const [id, keyId, reason, notBefore, by, at, hash, request, approvedBy, approvedAt, isApproved, isDue, login] = row;
  return {
    id: Number(id),
    keyId: Number(keyId),
    reason: String(reason),
    notBefore: notBefore as Date,
    requestedBy: String(by),
    requestedAt: at as Date,
    hash: String(hash),
    request: String(request),
    approvedBy: approvedBy === null ? undefined : String(approvedBy),
    approvedAt: (approvedAt as Date | null) ?? undefined,
    isApproved: isApproved === true,
    isDue: isDue === true,
    login: String(login),
  };
}

/** Open requests, the oldest first. */
export async function listDestructions(database: Queryable): Promise<readonly Destruction[]> {
  return (await database.query(`${select} ORDER BY id`)).rows.map(destructionOf);
}

/** Throws DESTRUCTION_NOT_FOUND. `isLocked`: nobody else ends it before the transaction does. */
export async function getDestruction(client: Queryable, keyId: number, isLocked = false): Promise<Destruction> {
  const { rows } = await client.query(`${select} AND data_key_id = $1${isLocked ? ' FOR UPDATE' : ''}`, [keyId]);
  if (rows[0] !== undefined) return destructionOf(rows[0]);
  throw new KeyturnError(
    'DESTRUCTION_NOT_FOUND',
    `nobody has asked for the destruction of key ${keyId}, or the request has ended; its state and what happened to it: keyturn key list, keyturn audit list`,
    { keyId: String(keyId) },
  );
}

/** Moves the retired key to pending_destruction together with the request. */
export async function requestDestruction(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  { reason, waitDays }: { reason: string; waitDays: number },
): Promise<void> {
  refuseUnlessLegal(keyring, key, 'pending_destruction');
  await client.query('INSERT INTO keyturn.destruction (data_key_id, wait_days, reason) VALUES ($1, $2, $3)', [
    key.id,
    waitDays,
    reason,
  ]);
  await moveKeyIfState(client, key, 'pending_destruction');
  await bumpGeneration(client, keyring);
  const { id, hash, notBefore } = await getDestruction(client, Number(key.id));
  await writeAudit(client, {
    action: 'key.destroy.request',
    object: `key ${key.id}`,
    reason,
    before: { state: 'retired' },
    after: { state: 'pending_destruction', request: id, hash, notBefore: notBefore.toISOString() },
  });
}

/** Throws APPROVAL_REFUSED where the database refuses: the same login, too early, or the request is not what it was. */
export async function approveDestruction(
  client: Queryable,
  destruction: Destruction,
  reason: string | undefined,
): Promise<void> {
  try {
    await client.query('UPDATE keyturn.destruction SET approved_by = session_user WHERE id = $1', [destruction.id]);
  } catch (error) {
    if (sqlstateOf(error) !== guardState) throw error;
    throw new KeyturnError(
      'APPROVAL_REFUSED',
      `request ${destruction.id} was made by ${destruction.requestedBy} for ${destruction.notBefore.toISOString()} or later, and ${destruction.login} cannot approve it now: it takes another database login, the waiting time to be over, and the request to be as it was made`,
      { request: String(destruction.id) },
    );
  }
  await writeAudit(client, {
    action: 'key.destroy.approve',
    object: `key ${destruction.keyId}`,
    reason,
    after: { request: destruction.id, hash: destruction.hash, requestedBy: destruction.requestedBy },
  });
}

export async function cancelDestruction(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  reason: string | undefined,
): Promise<void> {
  refuseUnlessLegal(keyring, key, 'retired');
  const { id } = await getDestruction(client, Number(key.id), true);
  await moveKeyIfState(client, key, 'retired');
  await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: 'key.destroy.cancel',
    object: `key ${key.id}`,
    reason,
    before: { state: 'pending_destruction', request: id },
    after: { state: 'retired' },
  });
}

/** The last step, under the locked request: the wraps go and the row stays. */
export async function destroyKey(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  destruction: Destruction,
  proof: { snapshot: string; scannedAt: Date; evidence: unknown },
  afterWraps: () => Promise<void>,
): Promise<void> {
  refuseUnlessLegal(keyring, key, 'destroyed');
  const { rowCount } = await client.query('DELETE FROM keyturn.data_key_wrap WHERE data_key_id = $1', [key.id]);
  await moveKeyIfState(client, key, 'destroyed');
  await client.query(
    'INSERT INTO keyturn.retirement (data_key_id, snapshot, scanned_at, evidence) VALUES ($1, $2, $3, $4)',
    [key.id, proof.snapshot, proof.scannedAt, JSON.stringify(proof.evidence)],
  );
  await bumpGeneration(client, keyring);
  await afterWraps();
  await writeAudit(client, {
    action: 'key.destroy',
    object: `key ${key.id}`,
    reason: destruction.reason,
    before: { state: 'pending_destruction', wraps: rowCount },
    after: {
      state: 'destroyed',
      request: destruction.id,
      hash: destruction.hash,
      requestedBy: destruction.requestedBy,
      approvedBy: destruction.approvedBy,
      snapshot: proof.snapshot,
    },
  });
}

/** Guards of the schema that somebody dropped or switched off. */
export async function listMissingGuards(database: Queryable): Promise<readonly string[]> {
  const { rows } = await database.query(
    `SELECT g.name FROM unnest($1::text[], $2::text[]) AS g(relation, name)
     WHERE NOT EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = to_regclass('keyturn.' || g.relation) AND t.tgname = g.name AND t.tgenabled = 'A')`,
    [guards.map(([table]) => table), guards.map(([, trigger]) => trigger)],
  );
  return rows.map((row) => String(row[0]));
}
