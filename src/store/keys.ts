// Keyturn's own key store: cluster, root keys, keyrings, data keys and their wraps. Every move of a key is a conditional
// update on its old state, bumps the keyring's generation and writes its audit record in one transaction (I5, I10).
import { algorithmNames, type AlgorithmName } from '../crypto/algorithms.js';
import type { DataKeyIdentity } from '../crypto/value-key.js';
import { KeyturnError } from '../errors.js';
import type { ForeignColumn, KeyStore, StoredKey, StoredKeyring, StoredWrap } from '../keys/key-store.js';
import { mayMove, type KeyState } from '../keys/states.js';
import { writeAudit } from './audit.js';
import { markFenced } from './fences.js';
import type { BackupPolicy } from './backups.js';
import type { Queryable, Row } from './database.js';

export interface RootRecord {
  readonly id: number;
  readonly fingerprint: Buffer;
  readonly verificationToken: Buffer;
}

export function createKeyStore(database: Queryable): KeyStore {
  return {
    async generations() {
      const { rows } = await database.query('SELECT name, generation FROM keyturn.keyring');
      return new Map(rows.map((row) => [String(row[0]), Number(row[1])]));
    },
    findKeyring: (name) => findKeyring(database, name),
  };
}

/** Undefined before the first `init`. */
export async function findClusterId(database: Queryable): Promise<string | undefined> {
  const { rows } = await database.query('SELECT id FROM keyturn.cluster');
  return rows[0] === undefined ? undefined : String(rows[0][0]);
}

export async function getClusterId(database: Queryable): Promise<string> {
  const id = await findClusterId(database);
  if (id === undefined)
    throw new KeyturnError('NOT_INITIALIZED', 'this database has no cluster id yet; run: keyturn init');
  return id;
}

export async function insertClusterIfAbsent(client: Queryable, id: string): Promise<void> {
  await client.query('INSERT INTO keyturn.cluster (id) VALUES ($1) ON CONFLICT DO NOTHING', [id]);
}

export async function listRootRecords(database: Queryable): Promise<readonly RootRecord[]> {
  const { rows } = await database.query('SELECT id, fingerprint, verification_token FROM keyturn.root_key ORDER BY id');
  return rows.map(([id, fingerprint, token]) => ({
    id: Number(id),
    fingerprint: fingerprint as Buffer,
    verificationToken: token as Buffer,
  }));
}

/** The id is needed before the token can be made, so the row is inserted with one that `createToken` then makes. */
export async function insertRootRecord(
  client: Queryable,
  { fingerprint, uri }: { readonly fingerprint: Buffer; readonly uri: string },
  createToken: (rootId: number) => Promise<Buffer>,
  reason: string | undefined,
): Promise<RootRecord> {
  const { rows } = await client.query(`SELECT nextval(pg_get_serial_sequence('keyturn.root_key', 'id'))`);
  const id = Number(rows[0]?.[0]);
  const verificationToken = await createToken(id);
  await client.query(
    'INSERT INTO keyturn.root_key (id, fingerprint, verification_token, uri) OVERRIDING SYSTEM VALUE VALUES ($1, $2, $3, $4)',
    [id, fingerprint, verificationToken, uri],
  );
  await writeAudit(client, {
    action: 'root.register',
    object: `root ${id}`,
    reason,
    after: { fingerprint: fingerprint.toString('hex', 0, 8) },
  });
  return { id, fingerprint, verificationToken };
}

export interface KeyringSettings {
  readonly name: string;
  /** For data keys made from now on. */
  readonly algorithm: AlgorithmName;
  /** Where the root key is found, the preferred first. A URI names a place, never a key. */
  readonly rootUris: readonly string[];
  readonly cryptoperiodDays: number;
  readonly backupPolicy: BackupPolicy;
}

export async function insertKeyring(
  client: Queryable,
  id: string,
  settings: KeyringSettings,
  reason: string | undefined,
): Promise<void> {
  await client.query(
    'INSERT INTO keyturn.keyring (id, name, algorithm, root_uris, cryptoperiod_days, backup_policy) VALUES ($1, $2, $3, $4, $5, $6)',
    [id, settings.name, settings.algorithm, settings.rootUris, settings.cryptoperiodDays, settings.backupPolicy],
  );
  await writeAudit(client, {
    action: 'keyring.create',
    object: `keyring ${settings.name}`,
    reason,
    after: settingsOf(settings),
  });
}

function settingsOf({ algorithm, rootUris, cryptoperiodDays, backupPolicy }: KeyringSettings): Record<string, unknown> {
  return { algorithm, rootUris, cryptoperiodDays, backupPolicy };
}

/** Writes, and records, only what differs. */
export async function updateKeyring(
  client: Queryable,
  settings: KeyringSettings,
  reason: string | undefined,
): Promise<void> {
  const { rows } = await client.query(
    'SELECT algorithm, root_uris, cryptoperiod_days, backup_policy FROM keyturn.keyring WHERE name = $1 FOR UPDATE',
    [settings.name],
  );
  const before = {
    algorithm: rows[0]?.[0],
    rootUris: rows[0]?.[1],
    cryptoperiodDays: rows[0]?.[2],
    backupPolicy: rows[0]?.[3],
  };
  const after = settingsOf(settings);
  if (JSON.stringify(before) === JSON.stringify(after)) return;
  await client.query(
    'UPDATE keyturn.keyring SET algorithm = $2, root_uris = $3, cryptoperiod_days = $4, backup_policy = $5 WHERE name = $1',
    [settings.name, settings.algorithm, settings.rootUris, settings.cryptoperiodDays, settings.backupPolicy],
  );
  await writeAudit(client, { action: 'keyring.update', object: `keyring ${settings.name}`, reason, before, after });
}

/** Root key URIs per keyring as `init` registered them: workers read these, never keyturn.yaml. */
export async function listRootUris(database: Queryable): Promise<ReadonlyMap<string, readonly string[]>> {
  const { rows } = await database.query('SELECT name, root_uris FROM keyturn.keyring ORDER BY name');
  return new Map(rows.map((row) => [String(row[0]), row[1] as string[]]));
}

/** Locks the keyring row for the rest of the transaction: one key operation per keyring at a time. */
export async function lockKeyring(client: Queryable, name: string): Promise<StoredKeyring> {
  await client.query('SELECT 1 FROM keyturn.keyring WHERE name = $1 FOR UPDATE', [name]);
  return getKeyring(client, name);
}

export async function getKeyring(database: Queryable, name: string): Promise<StoredKeyring> {
  const keyring = await findKeyring(database, name);
  if (keyring !== undefined) return keyring;
  const names = await listKeyringNames(database);
  throw new KeyturnError(
    'KEYRING_NOT_FOUND',
    `there is no keyring "${name}"; known: ${names.join(', ') || 'none, run keyturn init'}`,
    { keyring: name },
  );
}

/** As of now, whatever the transaction has seen. */
export async function readGeneration(client: Queryable, id: string): Promise<number> {
  const { rows } = await client.query('SELECT generation FROM keyturn.keyring WHERE id = $1', [id]);
  return Number(rows[0]?.[0]);
}

/** For ids that the registry refers to: the keyring is there. */
export async function getKeyringById(database: Queryable, id: string): Promise<StoredKeyring> {
  const { rows } = await database.query('SELECT name FROM keyturn.keyring WHERE id = $1', [id]);
  return getKeyring(database, String(rows[0]?.[0]));
}

export async function listKeyringNames(database: Queryable): Promise<readonly string[]> {
  const { rows } = await database.query('SELECT name FROM keyturn.keyring ORDER BY name');
  return rows.map((row) => String(row[0]));
}

async function findKeyring(database: Queryable, name: string): Promise<StoredKeyring | undefined> {
  const { rows } = await database.query(
    `SELECT r.id, r.name, r.algorithm, r.generation, (SELECT id FROM keyturn.cluster),
       (SELECT jsonb_agg(jsonb_build_object('columnId', e.id, 'format', e.foreign_format, 'secretUri', e.foreign_secret_uri, 'move', e.move) ORDER BY e.id)
         FROM keyturn.target t JOIN keyturn.target_column e ON e.target_id = t.id
         WHERE t.keyring_id = r.id AND e.move IS NOT NULL),
       k.id, k.version, k.state, k.compromised, k.algorithm, k.commitment, k.created_at, k.activated_at, k.activated_generation, k.retired_at,
       w.root_key_id, w.blob
     FROM keyturn.keyring r
     LEFT JOIN keyturn.data_key k ON k.keyring_id = r.id
     LEFT JOIN keyturn.data_key_wrap w ON w.data_key_id = k.id
     WHERE r.name = $1
     ORDER BY k.version, w.root_key_id`,
    [name],
  );
  const first = rows[0];
  if (first === undefined) return undefined;
  return {
    id: String(first[0]),
    name: String(first[1]),
    algorithm: algorithmOf(first[2]),
    generation: Number(first[3]),
    cluster: String(first[4]),
    foreign: foreignOf(first[5]),
    keys: keysOf(rows.map((row) => row.slice(6))),
  };
}

function foreignOf(columns: unknown): readonly ForeignColumn[] {
  const listed = (columns ?? []) as (Omit<ForeignColumn, 'secretUri'> & { secretUri: string | null })[];
  return listed.map((column) => ({ ...column, secretUri: column.secretUri ?? undefined }));
}

function keysOf(rows: readonly Row[]): readonly StoredKey[] {
  const keys = new Map<number, StoredKey & { wraps: StoredWrap[] }>();
  for (const [
    id,
    version,
    state,
    compromised,
    algorithm,
    commitment,
    created,
    activated,
    activatedGeneration,
    retired,
    rootId,
    blob,
  ] of rows) {
    if (id === null) continue;
    const key = keys.get(Number(id)) ?? {
      id: Number(id),
      version: Number(version),
      state: String(state) as KeyState,
      isCompromised: compromised === true,
      algorithm: algorithmOf(algorithm),
      commitment: commitment as Buffer,
      createdAt: created as Date,
      activatedAt: (activated as Date | null) ?? undefined,
      activatedGeneration: activatedGeneration === null ? undefined : Number(activatedGeneration),
      retiredAt: (retired as Date | null) ?? undefined,
      wraps: [],
    };
    if (rootId !== null) key.wraps.push({ rootId: Number(rootId), blob: blob as Buffer });
    keys.set(Number(id), key);
  }
  return [...keys.values()];
}

export function algorithmOf(value: unknown): AlgorithmName {
  const name = algorithmNames.find((known) => known === value);
  if (name === undefined)
    throw new KeyturnError(
      'SCHEMA_TOO_NEW',
      `the key tables name an algorithm this version does not know; upgrade this process`,
    );
  return name;
}

/** Takes a key id that no row ever had, even if the transaction rolls back. */
export async function nextKeyId(client: Queryable): Promise<number> {
  const { rows } = await client.query(`SELECT nextval('keyturn.key_id')`);
  return Number(rows[0]?.[0]);
}

/** Inserts a staged key with its wraps under a locked keyring. */
export async function insertStagedKey(
  client: Queryable,
  keyring: StoredKeyring,
  key: {
    identity: DataKeyIdentity;
    commitment: Buffer;
    wraps: readonly StoredWrap[];
    insteadOf?: number | undefined;
    reason: string | undefined;
  },
): Promise<void> {
  const version = Math.max(0, ...keyring.keys.map((existing) => existing.version)) + 1;
  const { id, algorithm, purpose, scope } = key.identity;
  await client.query(
    `INSERT INTO keyturn.data_key (id, keyring_id, scope_id, version, algorithm, purpose, state, commitment, instead_of)
     VALUES ($1, $2, $3, $4, $5, $6, 'staged', $7, $8)`,
    [id, keyring.id, scope, version, algorithm, purpose, key.commitment, key.insteadOf ?? null],
  );
  for (const wrap of key.wraps) {
    await client.query('INSERT INTO keyturn.data_key_wrap (data_key_id, root_key_id, blob) VALUES ($1, $2, $3)', [
      id,
      wrap.rootId,
      wrap.blob,
    ]);
  }
  await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: 'key.stage',
    object: `key ${id}`,
    reason: key.reason,
    after: { keyring: keyring.name, version, algorithm, state: 'staged' },
  });
}

/** Members hold the change once they report this generation. */
export async function bumpGeneration(client: Queryable, keyring: { readonly id: string }): Promise<number> {
  const { rows } = await client.query(
    'UPDATE keyturn.keyring SET generation = generation + 1 WHERE id = $1 RETURNING generation',
    [keyring.id],
  );
  return Number(rows[0]?.[0]);
}

export interface StagedOrder {
  /** A rotation has taken the staged key up and not activated it yet; a standby waits for one. */
  readonly isOrdered: boolean;
  /** Id of the compromised key in whose stead the staged one was made. */
  readonly insteadOf: number | undefined;
}

/** Undefined where no key is staged. */
export async function findStagedOrder(database: Queryable, keyringId: string): Promise<StagedOrder | undefined> {
  const { rows } = await database.query(
    `SELECT ordered_at IS NOT NULL, instead_of FROM keyturn.data_key WHERE keyring_id = $1 AND state = 'staged'`,
    [keyringId],
  );
  const [row] = rows;
  if (row === undefined) return undefined;
  return { isOrdered: row[0] === true, insteadOf: row[1] === null ? undefined : Number(row[1]) };
}

/** The staged key is a rotation's from here on: a repeated command goes on with it whatever the active key's age. */
export async function orderStagedKey(
  client: Queryable,
  keyring: StoredKeyring,
  reason: string | undefined,
): Promise<void> {
  const { rows } = await client.query(
    `UPDATE keyturn.data_key SET ordered_at = clock_timestamp()
     WHERE keyring_id = $1 AND state = 'staged' AND ordered_at IS NULL RETURNING id`,
    [keyring.id],
  );
  for (const [id] of rows) await writeAudit(client, { action: 'key.order', object: `key ${Number(id)}`, reason });
}

/** A staged key has never encrypted: it goes at once, its wraps with it. */
export async function discardStagedKey(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  reason: string | undefined,
): Promise<void> {
  if (key.state !== 'staged') refuseMove(keyring, key, 'destroyed');
  await client.query('DELETE FROM keyturn.data_key_wrap WHERE data_key_id = $1', [key.id]);
  await moveKeyIfState(client, key, 'destroyed', 'ordered_at = NULL');
  await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: 'key.discard',
    object: `key ${key.id}`,
    reason,
    before: { state: 'staged' },
    after: { state: 'destroyed' },
  });
}

/** A flag beside the state; an active or staged key must have been replaced or discarded before. */
export async function markCompromised(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  reason: string | undefined,
): Promise<void> {
  await client.query('UPDATE keyturn.data_key SET compromised = true WHERE id = $1', [key.id]);
  await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: 'key.compromise',
    object: `key ${key.id}`,
    reason,
    before: { state: key.state, compromised: false },
    after: { compromised: true },
  });
}

/** Makes `key` the one active key; the key it replaces becomes decrypt_only in the same transaction. */
export async function activateKey(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  reason: string | undefined,
  after: Record<string, unknown> = {},
): Promise<void> {
  refuseUnlessLegal(keyring, key, 'active');
  const previous = keyring.keys.find((candidate) => candidate.state === 'active');
  const generation = await bumpGeneration(client, keyring);
  if (previous !== undefined) {
    await moveKeyIfState(client, previous, 'decrypt_only', 'replaced_at = clock_timestamp()');
    await writeAudit(client, {
      action: 'key.replace',
      object: `key ${previous.id}`,
      reason,
      before: { state: 'active' },
      after: { state: 'decrypt_only', successor: key.id },
    });
  }
  await moveKeyIfState(client, key, 'active', `activated_at = clock_timestamp(), activated_generation = ${generation}`);
  await writeAudit(client, {
    action: 'key.activate',
    object: `key ${key.id}`,
    reason,
    before: { state: key.state },
    after: { state: 'active', generation, ...after },
  });
}

export async function retireKey(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  proof: { snapshot: string; scannedAt: Date; evidence: unknown },
  reason: string | undefined,
): Promise<void> {
  refuseUnlessLegal(keyring, key, 'retired');
  await moveKeyIfState(client, key, 'retired', 'retired_at = clock_timestamp()');
  await client.query(
    'INSERT INTO keyturn.retirement (data_key_id, snapshot, scanned_at, evidence) VALUES ($1, $2, $3, $4)',
    [key.id, proof.snapshot, proof.scannedAt, JSON.stringify(proof.evidence)],
  );
  await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: 'key.retire',
    object: `key ${key.id}`,
    reason,
    before: { state: key.state },
    after: { state: 'retired', snapshot: proof.snapshot },
  });
}

export async function restoreKey(
  client: Queryable,
  keyring: StoredKeyring,
  key: StoredKey,
  reason: string | undefined,
): Promise<void> {
  if (key.state !== 'retired') refuseMove(keyring, key, 'decrypt_only');
  await moveKeyIfState(client, key, 'decrypt_only', 'retired_at = NULL');
  await markFenced(client, Number(key.id), false, reason);
  await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: 'key.restore',
    object: `key ${key.id}`,
    reason,
    before: { state: 'retired' },
    after: { state: 'decrypt_only' },
  });
}

export function refuseUnlessLegal(keyring: StoredKeyring, key: StoredKey, to: KeyState): void {
  if (!mayMove(key.state, to) || (to === 'active' && key.isCompromised)) refuseMove(keyring, key, to);
}

function refuseMove(keyring: StoredKeyring, key: StoredKey, to: KeyState): never {
  const why = key.isCompromised ? ' and compromised' : '';
  const next =
    key.state === 'pending_destruction'
      ? `the request is shown by: keyturn status; take it back with: keyturn key destroy ${key.id} --keyring ${keyring.name} --cancel`
      : 'see: keyturn key list';
  throw new KeyturnError(
    'KEY_STATE_REFUSED',
    `${keyring.name} v${key.version} (id ${key.id}) is ${key.state}${why} and cannot become ${to}; ${next}`,
    { keyId: String(key.id), state: key.state, wanted: to },
  );
}

export async function moveKeyIfState(client: Queryable, key: StoredKey, to: KeyState, also?: string): Promise<void> {
  const { rowCount } = await client.query(
    `UPDATE keyturn.data_key SET state = $3${also === undefined ? '' : `, ${also}`} WHERE id = $1 AND state = $2`,
    [key.id, key.state, to],
  );
  if (rowCount !== 1) {
    throw new KeyturnError(
      'KEY_STATE_REFUSED',
      `key ${key.id} was ${key.state} a moment ago and has changed since; look again with: keyturn key list`,
      { keyId: String(key.id), wanted: to },
    );
  }
}
