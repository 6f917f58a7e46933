// The audit record: one per state change of a key or run, written in the same transaction (I10). Holds ids, states and
// reasons, never key bytes or values. The database stamps, links and keeps it (docs/audit.md); here it is written and read.
import type { ChainedRecord } from '../crypto/audit-chain.js';
import type { Queryable, Row } from './database.js';

export interface AuditRecord {
  readonly action: string;
  /** `key 17`, `run 4`, `keyring customers`. */
  readonly object: string;
  readonly reason?: string | undefined;
  readonly before?: Readonly<Record<string, unknown>> | undefined;
  readonly after?: Readonly<Record<string, unknown>> | undefined;
}

/** The actor is the database login; the time is the database's. */
export async function writeAudit(client: Queryable, record: AuditRecord): Promise<void> {
  await client.query('INSERT INTO keyturn.audit (action, object, reason, before, after) VALUES ($1, $2, $3, $4, $5)', [
    record.action,
    record.object,
    record.reason ?? null,
    record.before === undefined ? null : JSON.stringify(record.before),
    record.after === undefined ? null : JSON.stringify(record.after),
  ]);
}

const recordColumns = `a.id, (extract(epoch FROM a.at) * 1000000)::bigint, a.actor, a.action, a.object, a.reason, a.before::text, a.after::text`;

function recordOf(row: Row): ChainedRecord {
  const [id, atMicros, actor, action, object, reason, before, after] = row;
  return {
    id: BigInt(String(id)),
    atMicros: BigInt(String(atMicros)),
    actor: String(actor),
    action: String(action),
    object: String(object),
    reason: reason === null ? undefined : String(reason),
    before: before === null ? undefined : String(before),
    after: after === null ? undefined : String(after),
  };
}

export interface ListedRecord extends ChainedRecord {
  readonly n: bigint;
  readonly at: Date;
}

export interface AuditFilter {
  /** A moment, or an age by the database clock. */
  readonly since: { readonly at: Date } | { readonly ageMs: number } | undefined;
  readonly object: string | undefined;
  readonly action: string | undefined;
  readonly limit: number;
}

/** Newest first, in the order of the chain. */
export async function listAudit(database: Queryable, filter: AuditFilter): Promise<readonly ListedRecord[]> {
  const { since } = filter;
  const { rows } = await database.query(
    `SELECT l.n, a.at, ${recordColumns} FROM keyturn.audit_link l JOIN keyturn.audit a ON a.id = l.audit_id
     WHERE ($1::timestamptz IS NULL OR a.at >= $1) AND ($2::float8 IS NULL OR a.at >= clock_timestamp() - make_interval(secs => $2))
       AND ($3::text IS NULL OR a.object = $3) AND ($4::text IS NULL OR a.action = $4)
     ORDER BY l.n DESC LIMIT $5`,
    [
      since !== undefined && 'at' in since ? since.at : null,
      since !== undefined && 'ageMs' in since ? since.ageMs / 1_000 : null,
      filter.object ?? null,
      filter.action ?? null,
      filter.limit,
    ],
  );
  return rows.map(([n, at, ...record]) => ({ n: BigInt(String(n)), at: at as Date, ...recordOf(record) }));
}

export interface StoredLink {
  readonly n: bigint;
  readonly hash: Buffer;
  /** Undefined where the record that was linked is gone. */
  readonly record: ChainedRecord | undefined;
}

const linksPerRead = 1_000;

/** Every link after number `after`, in order, with its record. */
export async function* readLinks(client: Queryable, after: bigint): AsyncGenerator<StoredLink> {
  for (let last = after; ; ) {
    const { rows } = await client.query(
      `SELECT l.n, l.hash, ${recordColumns} FROM keyturn.audit_link l LEFT JOIN keyturn.audit a ON a.id = l.audit_id
       WHERE l.n > $1 ORDER BY l.n LIMIT ${linksPerRead}`,
      [last],
    );
    for (const [n, hash, ...record] of rows) {
      last = BigInt(String(n));
      yield { n: last, hash: hash as Buffer, record: record[0] === null ? undefined : recordOf(record) };
    }
    if (rows.length < linksPerRead) return;
  }
}

/** Records that no link names: the oldest of them. */
export async function findUnlinked(client: Queryable): Promise<bigint | undefined> {
  const { rows } = await client.query(
    `SELECT min(a.id) FROM keyturn.audit a WHERE NOT EXISTS (SELECT 1 FROM keyturn.audit_link l WHERE l.audit_id = a.id)`,
  );
  return rows[0]?.[0] === null || rows[0] === undefined ? undefined : BigInt(String(rows[0][0]));
}

export interface ChainHead {
  readonly n: bigint;
  readonly hash: Buffer;
}

/** Undefined where somebody removed it; then nothing can be recorded any more, and so nothing done. */
export async function findHead(client: Queryable): Promise<ChainHead | undefined> {
  const { rows } = await client.query('SELECT n, hash FROM keyturn.audit_head');
  return rows[0] === undefined ? undefined : { n: BigInt(String(rows[0][0])), hash: rows[0][1] as Buffer };
}

export interface StoredSeal extends ChainHead {
  readonly keyId: number;
  readonly sealedAt: Date;
  readonly sealedAtMicros: bigint;
  readonly mac: Buffer;
}

const sealSelect =
  'SELECT n, hash, data_key_id, sealed_at, (extract(epoch FROM sealed_at) * 1000000)::bigint, mac FROM keyturn.audit_seal';

function sealFrom(row: Row): StoredSeal {
  const [n, hash, keyId, sealedAt, sealedAtMicros, mac] = row;
  return {
    n: BigInt(String(n)),
    hash: hash as Buffer,
    keyId: Number(keyId),
    sealedAt: sealedAt as Date,
    sealedAtMicros: BigInt(String(sealedAtMicros)),
    mac: mac as Buffer,
  };
}

export async function listSeals(client: Queryable): Promise<readonly StoredSeal[]> {
  return (await client.query(`${sealSelect} ORDER BY n, data_key_id`)).rows.map(sealFrom);
}

export async function findLastSeal(client: Queryable, keyId: number): Promise<StoredSeal | undefined> {
  const { rows } = await client.query(`${sealSelect} WHERE data_key_id = $1 ORDER BY n DESC LIMIT 1`, [keyId]);
  return rows[0] === undefined ? undefined : sealFrom(rows[0]);
}

/** Two processes that seal the same head at once leave one seal. */
export async function insertSeal(
  client: Queryable,
  seal: { n: bigint; hash: Buffer; keyId: number; sealedAtMicros: bigint; mac: Buffer },
): Promise<void> {
  await client.query(
    `INSERT INTO keyturn.audit_seal (n, data_key_id, hash, sealed_at, mac)
     VALUES ($1, $2, $3, to_timestamp(0) + $4::bigint * interval '1 microsecond', $5) ON CONFLICT DO NOTHING`,
    [seal.n, seal.keyId, seal.hash, seal.sealedAtMicros, seal.mac],
  );
}

export async function databaseMicros(client: Queryable): Promise<bigint> {
  const { rows } = await client.query('SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint');
  return BigInt(String(rows[0]?.[0]));
}
