// The audit key of a cluster: a data key of purpose 3 that belongs to no keyring, wrapped like every other. It makes seals
// and nothing else.
import type { DataKeyIdentity } from '../crypto/value-key.js';
import { KeyturnError } from '../errors.js';
import type { StoredWrap } from '../keys/key-store.js';
import { writeAudit, type ChainHead } from './audit.js';
import type { Queryable } from './database.js';
import { getClusterId } from './keys.js';

export interface StoredAuditKey {
  readonly identity: DataKeyIdentity;
  readonly commitment: Buffer;
  readonly wraps: readonly StoredWrap[];
}

/** Audit keys count from here on, keys of values below. */
const firstId = 4_294_963_200;

export function isAuditKeyId(id: number): boolean {
  return id >= firstId;
}

/** The one that makes seals first. None before the first `init`. */
export async function listAuditKeys(database: Queryable): Promise<readonly StoredAuditKey[]> {
  const { rows } = await database.query(
    `SELECT k.id, k.commitment,
       coalesce((SELECT jsonb_agg(jsonb_build_array(w.root_key_id, encode(w.blob, 'hex')) ORDER BY w.root_key_id) FROM keyturn.data_key_wrap w WHERE w.data_key_id = k.id), '[]')
     FROM keyturn.data_key k WHERE k.purpose = 3 ORDER BY k.state = 'active' DESC, k.id DESC`,
  );
  if (rows.length === 0) return [];
  const cluster = await getClusterId(database);
  return rows.map(([id, commitment, wraps]) => ({
    identity: auditIdentity(Number(id), cluster),
    commitment: commitment as Buffer,
    wraps: (wraps as [number, string][]).map(([rootId, blob]) => ({ rootId, blob: Buffer.from(blob, 'hex') })),
  }));
}

/** The algorithm byte says nothing for this purpose and is that of the default (docs/format.md). */
export function auditIdentity(id: number, cluster: string): DataKeyIdentity {
  return { id, algorithm: 'xaes-256-gcm', purpose: 3, cluster, scope: cluster };
}

export async function nextAuditKeyId(client: Queryable): Promise<number> {
  const { rows } = await client.query(`SELECT nextval('keyturn.audit_key_id')`);
  return Number(rows[0]?.[0]);
}

export async function insertAuditKey(
  client: Queryable,
  key: StoredAuditKey,
  reason: string | undefined,
): Promise<void> {
  await insertKey(client, key);
  await writeAudit(client, {
    action: 'audit-key.create',
    object: `audit key ${key.identity.id}`,
    reason,
    after: { roots: key.wraps.map((wrap) => wrap.rootId) },
  });
}

const replaceAction = 'audit-key.replace';

/**
 * `key` makes seals from here on; the one before verifies those it made. The record says how far the chain had come. To be
 * the last step of a transaction: it keeps all others from recording until the commit, so that none comes in between.
 */
export async function replaceAuditKey(
  client: Queryable,
  before: StoredAuditKey,
  key: StoredAuditKey,
  reason: string | undefined,
): Promise<void> {
  await client.query(
    `UPDATE keyturn.data_key SET state = 'decrypt_only', replaced_at = clock_timestamp() WHERE id = $1 AND state = 'active'`,
    [before.identity.id],
  );
  await insertKey(client, key);
  const head = await lockHead(client);
  await writeAudit(client, {
    action: replaceAction,
    object: `audit key ${key.identity.id}`,
    reason,
    before: { auditKey: before.identity.id, n: Number(head.n), head: head.hash.toString('hex') },
    after: { auditKey: key.identity.id, roots: key.wraps.map((wrap) => wrap.rootId) },
  });
}

async function lockHead(client: Queryable): Promise<ChainHead> {
  const { rows } = await client.query('SELECT n, hash FROM keyturn.audit_head FOR UPDATE');
  const [row] = rows;
  if (row === undefined)
    throw new KeyturnError('AUDIT_DAMAGED', 'the audit record has lost its head; see: keyturn audit verify');
  return { n: BigInt(String(row[0])), hash: row[1] as Buffer };
}

/** By id of the audit key that was replaced: the number of the record that says so. */
export async function listAuditKeyEnds(client: Queryable): Promise<ReadonlyMap<number, bigint>> {
  const { rows } = await client.query(
    `SELECT (a.before ->> 'auditKey')::bigint, min(l.n) FROM keyturn.audit a JOIN keyturn.audit_link l ON l.audit_id = a.id
     WHERE a.action = $1 GROUP BY 1`,
    [replaceAction],
  );
  return new Map(rows.map(([id, n]) => [Number(id), BigInt(String(n))]));
}

async function insertKey(client: Queryable, key: StoredAuditKey): Promise<void> {
  const { id, algorithm, purpose, scope } = key.identity;
  await client.query(
    `INSERT INTO keyturn.data_key (id, scope_id, version, algorithm, purpose, state, commitment, activated_at)
     VALUES ($1, $2, 1, $3, $4, 'active', $5, clock_timestamp())`,
    [id, scope, algorithm, purpose, key.commitment],
  );
  for (const wrap of key.wraps) await insertWrap(client, id, wrap);
}

/** For a root key that came later: whoever holds it can seal from then on. */
export async function addAuditKeyWrap(
  client: Queryable,
  id: number,
  wrap: StoredWrap,
  reason: string | undefined,
): Promise<void> {
  await insertWrap(client, id, wrap);
  await writeAudit(client, {
    action: 'audit-key.wrap',
    object: `audit key ${id}`,
    reason,
    after: { root: wrap.rootId },
  });
}

async function insertWrap(client: Queryable, id: number, wrap: StoredWrap): Promise<void> {
  await client.query('INSERT INTO keyturn.data_key_wrap (data_key_id, root_key_id, blob) VALUES ($1, $2, $3)', [
    id,
    wrap.rootId,
    wrap.blob,
  ]);
}
