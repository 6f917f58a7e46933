// The content of a backup (docs/backup.md): everything about keys that a bare machine needs, as canonical JSON with its own
// hash. Encoding and strict decoding; how it is locked is backup-lock.ts, how two are merged merge-backup.ts.
import { createHash, timingSafeEqual } from 'node:crypto';
import { z } from 'zod';
import { algorithmNames, type AlgorithmName } from '../crypto/algorithms.js';
import { KeyturnError } from '../errors.js';

export const backupFormat = 'keyturn-backup';
export const backupVersion = 1;

const id = z.number().int().min(1).max(0xffff_ffff);
const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const uuid = z.string().regex(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/);
const bytes = z.string().regex(/^\\x([0-9a-f]{2})*$/);
const bytes32 = z.string().regex(/^\\x[0-9a-f]{64}$/);
const json: z.ZodType<Json> = z.json();

export type Json = string | number | boolean | null | readonly Json[] | { readonly [name: string]: Json };

// Rows are those of the control schema, column by column; what decides on merging is checked here, the rest is carried.
const wrapRow = z.object({ root_key_id: id, blob: bytes }).catchall(json);
const rootKeyRow = z.object({ id, fingerprint: bytes32, verification_token: bytes }).catchall(json);
const keyringRow = z
  .object({ id: uuid, name: z.string(), root_uris: z.array(z.string()), generation: count })
  .catchall(json);
const dataKeyRow = z
  .object({
    id,
    keyring_id: uuid.nullable(),
    scope_id: uuid,
    version: id,
    algorithm: z.enum(algorithmNames as [AlgorithmName, ...AlgorithmName[]]),
    purpose: z.union([z.literal(1), z.literal(2), z.literal(3), z.literal(4)]),
    state: z.enum(['staged', 'active', 'decrypt_only', 'retired', 'pending_destruction', 'destroyed']),
    compromised: z.boolean(),
    commitment: bytes32,
    wraps: z.array(wrapRow),
  })
  .catchall(json);
const usageRow = z.strictObject({ data_key_id: id, reserved: count });
const columnRow = z.object({ id: uuid, target_id: uuid, name: z.string(), column_name: z.string() }).catchall(json);
const targetRow = z
  .object({
    id: uuid,
    keyring_id: uuid,
    schema_name: z.string(),
    table_name: z.string(),
    columns: z.array(columnRow),
  })
  .catchall(json);

const keyTablesShape = {
  /** Null for a database that no `init` has seen. */
  cluster: z.object({ id: uuid, created_at: z.string() }).nullable(),
  /** The control schema that the rows are of. */
  schema: id,
  rootKeys: z.array(rootKeyRow),
  keyrings: z.array(keyringRow),
  dataKeys: z.array(dataKeyRow),
  /** Encryptions reserved under each key that has encrypted. */
  keyUsage: z.array(usageRow),
  targets: z.array(targetRow),
  /** The highest id ever taken, also by keys that were never stored. */
  lastIds: z.strictObject({ key: count, auditKey: count, rootKey: count }),
};
const keyTables = z.strictObject(keyTablesShape);
const contents = z.strictObject({
  ...keyTablesShape,
  cluster: z.object({ id: uuid, created_at: z.string() }),
  takenAt: z.string(),
  auditHead: z.strictObject({ n: count, hash: bytes32 }),
  /** Root keys in clear, only where they were asked for: 64 hexadecimal characters each. */
  rootKeyBytes: z.array(z.strictObject({ id, key: z.string().regex(/^[0-9a-f]{64}$/) })),
});
const fileShape = z.strictObject({
  format: z.literal(backupFormat),
  version: z.literal(backupVersion),
  hash: z.string().regex(/^[0-9a-f]{64}$/),
  contents,
});

/** The key tables at one moment. Rows under the column names of the control schema; bytes as `\x` and hexadecimal. */
export type KeyTables = z.output<typeof keyTables>;
export type BackupContents = z.output<typeof contents>;
export type RootKeyRow = z.output<typeof rootKeyRow>;
export type KeyringRow = z.output<typeof keyringRow>;
export type DataKeyRow = z.output<typeof dataKeyRow>;
export type UsageRow = z.output<typeof usageRow>;
export type WrapRow = z.output<typeof wrapRow>;
export type TargetRow = z.output<typeof targetRow>;
export type TargetColumnRow = z.output<typeof columnRow>;

/** Rows as the store read them. Throws BACKUP_DAMAGED for tables that hold what no version of the format can. */
export function checkKeyTables(value: unknown): KeyTables {
  const parsed = keyTables.safeParse(value);
  if (parsed.success) return parsed.data;
  throw damaged(`the key tables hold what a backup cannot carry (${placesOf(parsed.error)})`);
}

/** The bytes of a backup before it is locked. The caller zeroes them where they hold root keys. */
export function encodeBackup(body: BackupContents): Buffer {
  const text = canonicalJson({ format: backupFormat, version: backupVersion, hash: hashOf(body), contents: body });
  return Buffer.from(text, 'utf8');
}

/** Throws BACKUP_DAMAGED unless `text` is, byte for byte, what `encodeBackup` makes of its contents. */
export function decodeBackup(text: Buffer): BackupContents {
  let value: unknown;
  try {
    value = JSON.parse(text.toString('utf8'));
  } catch {
    throw damaged('it holds no JSON');
  }
  const version = z.object({ format: z.literal(backupFormat), version: z.number() }).safeParse(value);
  if (!version.success) throw damaged('it holds something else than a backup of Keyturn');
  if (version.data.version !== backupVersion)
    throw new KeyturnError(
      'BACKUP_REFUSED',
      `the backup is of version ${version.data.version}, this program reads version ${backupVersion}; use the program that wrote it`,
    );
  const parsed = fileShape.safeParse(value);
  if (!parsed.success) throw damaged(`it does not fit its format (${placesOf(parsed.error)})`);
  const { hash, contents: body } = parsed.data;
  if (!timingSafeEqual(Buffer.from(hash, 'hex'), Buffer.from(hashOf(body), 'hex')))
    throw damaged('its contents are not those its hash was made of');
  if (!encodeBackup(body).equals(text)) throw damaged('it is not written canonically');
  return body;
}

/** SHA-256 over the contents. Never leaves the locked file: with root keys inside it would be an oracle for them. */
function hashOf(body: BackupContents): string {
  return createHash('sha256').update(canonicalJson(body), 'utf8').digest('hex');
}

/** Names sorted by code unit, no white space, whole numbers only: equal contents have equal bytes. */
export function canonicalJson(value: Json): string {
  if (typeof value === 'number' && !Number.isSafeInteger(value))
    throw new KeyturnError('VALUE_INVALID', 'canonical JSON takes whole numbers only');
  if (value === null || typeof value !== 'object') return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map((part: Json) => canonicalJson(part)).join(',')}]`;
  const parts = Object.entries(value).toSorted(([a], [b]) => (a < b ? -1 : 1));
  return `{${parts.map(([name, part]) => `${JSON.stringify(name)}:${canonicalJson(part as Json)}`).join(',')}}`;
}

/** Of `\x…`. */
export function bytesOf(text: string): Buffer {
  return Buffer.from(text.slice(2), 'hex');
}

/** Where it does not fit; never what stands there. */
function placesOf(error: z.ZodError): string {
  return [...new Set(error.issues.map((issue) => issue.path.join('.') || 'top level'))].slice(0, 3).join(', ');
}

export function damaged(what: string): KeyturnError {
  return new KeyturnError(
    'BACKUP_DAMAGED',
    `the backup cannot be used: ${what}; nothing was written; take another one`,
  );
}
