// Root keys and the wraps under them, as rows: what a root change reads, adds and removes. Set-based: a change costs one
// statement of each kind per page of data keys, whatever stands in the application's tables.
import type { DataKeyIdentity, KeyPurpose } from '../crypto/value-key.js';
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';
import { algorithmOf, type RootRecord } from './keys.js';

export interface RootRow extends RootRecord {
  /** Where it was found when it came into use. */
  readonly uri: string;
  /** Set between prepare and finalize: the root key this one is to replace. */
  readonly replaces: number | undefined;
  readonly createdAt: Date;
  /** Others may hold it. */
  readonly isSuspect: boolean;
  /** Data keys wrapped under it, retired ones too. */
  readonly wraps: number;
  /** Keyrings that have data keys under it. */
  readonly keyrings: readonly string[];
}

export async function listRoots(database: Queryable): Promise<readonly RootRow[]> {
  const { rows } = await database.query(
    `SELECT r.id, r.fingerprint, r.verification_token, r.uri, r.replaces, r.created_at, r.suspect_at IS NOT NULL,
       (SELECT count(*) FROM keyturn.data_key_wrap w WHERE w.root_key_id = r.id),
       ARRAY(SELECT n.name FROM keyturn.keyring n WHERE EXISTS (
         SELECT 1 FROM keyturn.data_key k JOIN keyturn.data_key_wrap w ON w.data_key_id = k.id AND w.root_key_id = r.id
         WHERE k.keyring_id = n.id) ORDER BY n.name)
     FROM keyturn.root_key r ORDER BY r.id`,
  );
  return rows.map(([id, fingerprint, token, uri, replaces, createdAt, isSuspect, wraps, keyrings]) => ({
    id: Number(id),
    fingerprint: fingerprint as Buffer,
    verificationToken: token as Buffer,
    uri: String(uri),
    replaces: replaces === null ? undefined : Number(replaces),
    createdAt: createdAt as Date,
    isSuspect: isSuspect === true,
    wraps: Number(wraps),
    keyrings: keyrings as string[],
  }));
}

export async function listKeyringIds(database: Queryable, names: readonly string[]): Promise<readonly string[]> {
  const { rows } = await database.query('SELECT id FROM keyturn.keyring WHERE name = ANY($1) ORDER BY name', [names]);
  return rows.map((row) => String(row[0]));
}

/** "ktro": one root change at a time in this database, whoever asks for it. */
const rootChangeLock = 0x6b74_726f;

/** For the rest of the transaction; waits for a change that is under way. */
export async function lockRootChange(client: Queryable): Promise<void> {
  await client.query('SELECT pg_advisory_xact_lock($1)', [rootChangeLock]);
}

/**
 * Keeps every other key operation out of these keyrings for the rest of the transaction. Not FOR UPDATE: members that
 * join meanwhile refer to the keyring and must not wait.
 */
export async function lockKeyringsUnder(client: Queryable, rootId: number): Promise<readonly string[]> {
  const { rows } = await client.query(
    `SELECT n.name FROM keyturn.keyring n WHERE EXISTS (
       SELECT 1 FROM keyturn.data_key k JOIN keyturn.data_key_wrap w ON w.data_key_id = k.id AND w.root_key_id = $1
       WHERE k.keyring_id = n.id) ORDER BY n.name FOR NO KEY UPDATE`,
    [rootId],
  );
  return rows.map((row) => String(row[0]));
}

/** Two root keys by number. */
export interface RootPair {
  readonly first: number;
  readonly second: number;
}

export interface WrappedKey {
  readonly identity: DataKeyIdentity;
  readonly commitment: Buffer;
  /** Its wrap under each of the two roots asked for; both undefined for a key of another root, or destroyed. */
  readonly first: Buffer | undefined;
  readonly second: Buffer | undefined;
}

/**
 * The next data keys after `afterId`, whatever their state and purpose, locked against every change of theirs. Runs that
 * refer to a key do not wait for the lock. Each wrap is looked up by its primary key: a join could read all wraps once per
 * page, since nothing is known yet of those that this transaction has added.
 */
export async function lockWrappedKeys(
  client: Queryable,
  cluster: string,
  roots: RootPair,
  page: { readonly afterId: number; readonly limit: number },
): Promise<readonly WrappedKey[]> {
  const { rows } = await client.query(
    `SELECT k.id, k.algorithm, k.purpose, k.scope_id, k.commitment,
       (SELECT a.blob FROM keyturn.data_key_wrap a WHERE a.data_key_id = k.id AND a.root_key_id = $1),
       (SELECT b.blob FROM keyturn.data_key_wrap b WHERE b.data_key_id = k.id AND b.root_key_id = $2)
     FROM keyturn.data_key k WHERE k.id > $3 ORDER BY k.id LIMIT $4 FOR NO KEY UPDATE`,
    [roots.first, roots.second, page.afterId, page.limit],
  );
  return rows.map(([id, algorithm, purpose, scope, commitment, first, second]) => ({
    identity: {
      id: Number(id),
      algorithm: algorithmOf(algorithm),
      purpose: Number(purpose) as KeyPurpose,
      cluster,
      scope: String(scope),
    },
    commitment: commitment as Buffer,
    first: (first as Buffer | null) ?? undefined,
    second: (second as Buffer | null) ?? undefined,
  }));
}

/** Any one data key wrapped under this root. */
export async function findWrapped(client: Queryable, cluster: string, rootId: number): Promise<WrappedKey | undefined> {
  const { rows } = await client.query('SELECT min(data_key_id) FROM keyturn.data_key_wrap WHERE root_key_id = $1', [
    rootId,
  ]);
  const roots = { first: rootId, second: rootId };
  const [found] = await lockWrappedKeys(client, cluster, roots, { afterId: Number(rows[0]?.[0]) - 1, limit: 1 });
  return found;
}

/** Data keys, not destroyed, of these keyrings that neither root opens: wraps of different times were mixed. */
export async function listKeysUnderNeither(
  client: Queryable,
  keyrings: readonly string[],
  roots: RootPair,
): Promise<readonly number[]> {
  const { rows } = await client.query(
    `SELECT k.id FROM keyturn.data_key k JOIN keyturn.keyring n ON n.id = k.keyring_id
     WHERE n.name = ANY($1) AND k.state <> 'destroyed' AND NOT EXISTS (
       SELECT 1 FROM keyturn.data_key_wrap w WHERE w.data_key_id = k.id AND w.root_key_id IN ($2, $3))
     ORDER BY k.id LIMIT 10`,
    [keyrings, roots.first, roots.second],
  );
  return rows.map((row) => Number(row[0]));
}

/** Whether every data key under `first` has a wrap under `second` too. */
export async function hasAllWraps(database: Queryable, { first, second }: RootPair): Promise<boolean> {
  const { rows } = await database.query(
    `SELECT NOT EXISTS (
       SELECT 1 FROM keyturn.data_key_wrap a WHERE a.root_key_id = $1 AND NOT EXISTS (
         SELECT 1 FROM keyturn.data_key_wrap b WHERE b.data_key_id = a.data_key_id AND b.root_key_id = $2))`,
    [first, second],
  );
  return rows[0]?.[0] === true;
}

/** Answers the wraps as the database has them now, by data key. */
export async function insertWraps(
  client: Queryable,
  rootId: number,
  wraps: readonly { readonly keyId: number; readonly blob: Buffer }[],
): Promise<ReadonlyMap<number, Buffer>> {
  const { rows } = await client.query(
    `INSERT INTO keyturn.data_key_wrap (data_key_id, root_key_id, blob)
     SELECT w.id, $1, w.blob FROM unnest($2::bigint[], $3::bytea[]) AS w(id, blob) RETURNING data_key_id, blob`,
    [rootId, wraps.map((wrap) => wrap.keyId), wraps.map((wrap) => wrap.blob)],
  );
  return new Map(rows.map(([keyId, blob]) => [Number(keyId), blob as Buffer]));
}

/** The number a root key has had before in this database, or a new one. */
export async function takeRootId(client: Queryable, fingerprint: Buffer): Promise<number> {
  const { rows } = await client.query(
    `SELECT coalesce((SELECT id FROM keyturn.root_key WHERE fingerprint = $1),
       nextval(pg_get_serial_sequence('keyturn.root_key', 'id')))`,
    [fingerprint],
  );
  return Number(rows[0]?.[0]);
}

/** What every step of a root change leaves in its audit record; fingerprints as people see them. */
export interface RootStep {
  readonly keyrings: readonly string[];
  readonly dataKeys: number;
  readonly reason: string | undefined;
}

/** The new root's record, its token, and where it is found; members read their keyrings anew. */
export async function beginRootChange(
  client: Queryable,
  from: RootRecord,
  to: RootRecord & { readonly uri: string },
  step: RootStep,
): Promise<void> {
  await client.query(
    `INSERT INTO keyturn.root_key (id, fingerprint, verification_token, uri, replaces) OVERRIDING SYSTEM VALUE
     VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (id) DO UPDATE SET verification_token = excluded.verification_token, uri = excluded.uri, replaces = excluded.replaces`,
    [to.id, to.fingerprint, to.verificationToken, to.uri, from.id],
  );
  await client.query(
    `UPDATE keyturn.keyring SET generation = generation + 1, root_uris = array_append(array_remove(root_uris, $2), $2)
     WHERE name = ANY($1)`,
    [step.keyrings, to.uri],
  );
  await writeAudit(client, {
    action: 'root.prepare',
    object: `root key ${to.id}`,
    reason: step.reason,
    before: { rootKey: from.id, fingerprint: shortFingerprintOf(from.fingerprint) },
    after: {
      rootKey: to.id,
      fingerprint: shortFingerprintOf(to.fingerprint),
      keyrings: step.keyrings,
      dataKeys: step.dataKeys,
    },
  });
}

/** Removes every wrap under `dropped`; from here on `kept` alone opens these keyrings. */
export async function endRootChange(
  client: Queryable,
  action: 'root.finalize' | 'root.rollback',
  kept: RootRow,
  dropped: RootRow,
  step: RootStep & { readonly without: readonly string[] },
): Promise<void> {
  await client.query('DELETE FROM keyturn.data_key_wrap WHERE root_key_id = $1', [dropped.id]);
  await client.query('UPDATE keyturn.root_key SET replaces = NULL WHERE id IN ($1, $2)', [kept.id, dropped.id]);
  const rest = action === 'root.finalize' ? 'ARRAY[$3::text]' : 'array_remove(root_uris, $2)';
  await client.query(
    `UPDATE keyturn.keyring SET generation = generation + 1,
       root_uris = CASE WHEN array_remove(root_uris, $2) = '{}' THEN ARRAY[$3::text] ELSE ${rest} END
     WHERE name = ANY($1)`,
    [step.keyrings, dropped.uri, kept.uri],
  );
  await writeAudit(client, {
    action,
    object: `root key ${kept.id}`,
    reason: step.reason,
    before: { removed: dropped.id, fingerprint: shortFingerprintOf(dropped.fingerprint) },
    after: {
      rootKey: kept.id,
      fingerprint: shortFingerprintOf(kept.fingerprint),
      keyrings: step.keyrings,
      dataKeys: step.dataKeys,
      ...(step.without.length > 0 ? { without: step.without } : {}),
    },
  });
}

/** Writes record and token anew for a root key that was shown to open every data key under its number. */
export async function repairRoot(client: Queryable, root: RootRecord & { readonly uri: string }): Promise<void> {
  await client.query(
    `INSERT INTO keyturn.root_key (id, fingerprint, verification_token, uri) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4)
     ON CONFLICT (id) DO UPDATE SET fingerprint = excluded.fingerprint, verification_token = excluded.verification_token`,
    [root.id, root.fingerprint, root.verificationToken, root.uri],
  );
  await writeAudit(client, {
    action: 'root.repair',
    object: `root key ${root.id}`,
    after: { fingerprint: shortFingerprintOf(root.fingerprint) },
  });
}

function shortFingerprintOf(fingerprint: Buffer): string {
  return fingerprint.toString('hex', 0, 8);
}
