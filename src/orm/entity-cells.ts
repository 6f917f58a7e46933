// One value of an entity at its cell: which row and tenant it belongs to, encrypting it, decrypting it. Errors name entity,
// property, column and key, never bytes (I7).
import { decrypt, encrypt, type Cell } from '../codec.js';
import { keyTextOf, scopeTextOf, type KeyValue } from '../engine/column.js';
import type { KeyringSource } from '../engine/services.js';
import { KeyturnError } from '../errors.js';
import type { Stored } from '../formats/format.js';
import { formatByName } from '../formats/registry.js';
import type { Keyring } from '../keys/keyring.js';
import { targetTitle, type RowKey } from '../rotation/target.js';
import type { EncryptedEntity, EncryptedProperty, RegisteredProperty } from './map-entities.js';
import { Sealed } from './sealed.js';
import { decodeValue, encodeValue } from './value-type.js';

/** Where the values of one row live; undefined where the object at hand does not say. */
export interface RowPlace {
  readonly key: RowKey | undefined;
  readonly scope: string | null | undefined;
}

/** Key and tenant as an entity, or a set of values, has them. */
export function placeOf(entity: EncryptedEntity, values: object): RowPlace {
  const parts = entity.keyColumns.map((column) => column.getEntityValue(values, true) as KeyValue | null | undefined);
  const scope = entity.scopeColumn?.getEntityValue(values, true) as KeyValue | null | undefined;
  return { key: keyOf(entity, parts), scope: scopeOf(entity, scope) };
}

export function keyOf(entity: EncryptedEntity, parts: readonly (KeyValue | null | undefined)[]): RowKey | undefined {
  const known = parts.filter((part) => part !== null && part !== undefined);
  return known.length === parts.length ? keyTextOf(entity.target, known) : undefined;
}

/** Null where there is no tenant column, or it is NULL. */
export function scopeOf(entity: EncryptedEntity, scope: KeyValue | null | undefined): string | null | undefined {
  if (entity.scopeColumn === undefined) return null;
  return scope === undefined ? undefined : scopeTextOf(entity.target, { scope });
}

/** Throws VALUE_INVALID for a value or place that does not fit, KEYRING_STALE and KEY_NOT_HELD as the codec. */
export function encryptAt(
  keyrings: KeyringSource,
  entity: EncryptedEntity,
  property: EncryptedProperty,
  place: RowPlace,
  value: unknown,
): Sealed {
  if (value instanceof Sealed) throw invalid(property, 'was loaded but not decrypted, so it cannot be written');
  const plaintext = encodeValue(property.type, value, property.title);
  return naming(entity, property, () => {
    const keyring = keyrings.forWriting(entity.target.keyringName);
    const cell = cellAt(entity, property, place);
    if (isEnvelope(keyring, cell, value))
      throw invalid(
        property,
        'was given an envelope in place of its plaintext, as raw rows and `result.raw` hold them; encrypted again it would read as an envelope; decrypt it first with decryptRaw() of installKeyturn',
      );
    const stored = encrypt(keyring, cell, plaintext);
    const { maxLength } = property.column;
    if (maxLength !== undefined && stored.length > maxLength)
      throw invalid(
        property,
        `takes ${stored.length} characters as an envelope, and its column holds ${maxLength}; shorten it or ALTER the column to text`,
      );
    return new Sealed(stored, property.title);
  });
}

/** Whether a value is marked as an envelope, whatever key it names. */
export function isMarked({ column }: RegisteredProperty, value: unknown): value is Stored {
  return (
    (typeof value === 'string' || Buffer.isBuffer(value)) && formatByName(column.format)?.nameKey(value) !== undefined
  );
}

/** Whether a value names a key of the keyring, as nothing but an envelope does. */
function isEnvelope(keyring: Keyring, { format }: Cell, value: unknown): boolean {
  if (typeof value !== 'string' && !Buffer.isBuffer(value)) return false;
  const keyId = format.nameKey(value);
  return keyId !== undefined && keyring.lookup(keyId).status !== 'unknown';
}

export interface OpenedValue {
  readonly value: unknown;
  readonly stale: boolean;
}

/** Throws DECRYPT_FAILED, and KEY_NOT_HELD where a refresh of the keyring may help. */
export function decryptAt(
  keyrings: KeyringSource,
  entity: EncryptedEntity,
  property: RegisteredProperty,
  place: RowPlace,
  stored: Stored,
): OpenedValue {
  return naming(entity, property, () => {
    const keyring = keyrings.current(entity.target.keyringName);
    const { plaintext, stale } = decrypt(keyring, cellAt(entity, property, place), stored);
    return { value: decodeValue(property.type, plaintext, property.title), stale };
  });
}

function cellAt(entity: EncryptedEntity, property: RegisteredProperty, place: RowPlace): Cell {
  const { key, scope } = place;
  if (scope === undefined)
    throw invalid(
      property,
      `is bound to its tenant, and ${entity.scopeColumn?.propertyPath ?? 'the tenant'} is not known here; select it, or set it before writing`,
    );
  if (key === undefined && property.column.bind === 'row')
    throw invalid(
      property,
      `is bound to its row, and ${entity.keyColumns.map(({ propertyPath }) => propertyPath).join(', ')} is not known here; select it, set it before writing, or register the column with bind: column`,
    );
  return entity.builder.cellsOf(key ?? [], scope)(property.position);
}

function invalid(property: RegisteredProperty, problem: string): KeyturnError {
  return new KeyturnError('VALUE_INVALID', `${property.title} ${problem}`, { property: property.title });
}

function naming<T>(entity: EncryptedEntity, property: RegisteredProperty, work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof KeyturnError) || error.details['property'] !== undefined) throw error;
    const column = `${targetTitle(entity.target)}.${property.column.name}`;
    throw new KeyturnError(error.code, `${property.title} (${column}): ${error.message}`, {
      ...error.details,
      entity: entity.name,
      property: property.title,
      column,
      keyring: entity.target.keyringName,
    });
  }
}
