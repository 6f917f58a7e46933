// Decrypts the properties of one loaded entity in place. Synchronous over held keys; where a value names a key that is not
// held yet, the keyring is refreshed once and the rest follows.
import { isKeyturnError } from '../errors.js';
import type { KeyringSource } from '../engine/services.js';
import type { Stored } from '../formats/format.js';
import type { RowKey } from '../rotation/target.js';
import { decryptAt, isMarked, placeOf, type RowPlace } from './entity-cells.js';
import type { EncryptedEntity, RegisteredProperty } from './map-entities.js';
import { Sealed } from './sealed.js';

/**
 * Calls `onStale` once when a value is stale and its row is known: from `knownPlace`, else from the entity. Throws, or rejects with, DECRYPT_FAILED,
 * KEY_NOT_HELD, and VALUE_INVALID where the entity was loaded without its key or tenant.
 */
export function openEntity(
  keyrings: KeyringSource,
  entity: EncryptedEntity,
  loaded: object,
  onStale: (key: RowKey) => void,
  knownPlace?: RowPlace,
): Promise<void> | undefined {
  const closed = closedIn(entity, loaded);
  if (closed.length === 0) return undefined;
  const place = knownPlace ?? placeOf(entity, loaded);
  const opening: Opening = { keyrings, entity, loaded, place, isStale: false };
  const waiting = closed.filter((value) => !tryOpen(opening, value));
  const finish = (): void => {
    if (opening.isStale && place.key !== undefined) onStale(place.key);
  };
  if (waiting.length === 0) {
    finish();
    return undefined;
  }
  return keyrings.refresh(entity.target.keyringName).then(() => {
    for (const value of waiting) open(opening, value);
    finish();
  });
}

interface ClosedValue {
  readonly property: RegisteredProperty;
  readonly stored: Stored;
}

function closedIn(entity: EncryptedEntity, loaded: object): readonly ClosedValue[] {
  const closed: ClosedValue[] = [];
  for (const property of entity.properties) {
    const value: unknown = property.metadata.getEntityValue(loaded);
    if (value instanceof Sealed) closed.push({ property, stored: value.stored });
  }
  for (const property of entity.mixed) {
    const value: unknown = property.metadata.getEntityValue(loaded);
    if (isMarked(property, value)) closed.push({ property, stored: value });
  }
  return closed;
}

interface Opening {
  readonly keyrings: KeyringSource;
  readonly entity: EncryptedEntity;
  readonly loaded: object;
  readonly place: RowPlace;
  isStale: boolean;
}

function tryOpen(opening: Opening, value: ClosedValue): boolean {
  try {
    open(opening, value);
    return true;
  } catch (error) {
    if (isKeyturnError(error, 'KEY_NOT_HELD')) return false;
    throw error;
  }
}

function open(opening: Opening, { property, stored }: ClosedValue): void {
  const { keyrings, entity, loaded, place } = opening;
  const { value, stale } = decryptAt(keyrings, entity, property, place, stored);
  property.metadata.setEntityValue(loaded as Record<string, unknown>, value);
  opening.isStale ||= stale;
}
