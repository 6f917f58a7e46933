// Decrypts the properties of one loaded entity in place. Synchronous over held keys; where a value names a key that is not
// held yet, the keyring is refreshed once and the rest follows.
import { isKeyturnError } from '../errors.js';
import type { KeyringSource } from '../engine/services.js';
import type { RowKey } from '../rotation/target.js';
import { decryptAt, placeOf, type RowPlace } from './entity-cells.js';
import type { EncryptedEntity, EncryptedProperty } from './map-entities.js';
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
  const sealed = entity.properties.filter(({ metadata }) => metadata.getEntityValue(loaded) instanceof Sealed);
  if (sealed.length === 0) return undefined;
  const place = knownPlace ?? placeOf(entity, loaded);
  const opening: Opening = { keyrings, entity, loaded, place, isStale: false };
  const waiting = sealed.filter((property) => !tryOpen(opening, property));
  const finish = (): void => {
    if (opening.isStale && place.key !== undefined) onStale(place.key);
  };
  if (waiting.length === 0) {
    finish();
    return undefined;
  }
  return keyrings.refresh(entity.target.keyringName).then(() => {
    for (const property of waiting) open(opening, property);
    finish();
  });
}

interface Opening {
  readonly keyrings: KeyringSource;
  readonly entity: EncryptedEntity;
  readonly loaded: object;
  readonly place: RowPlace;
  isStale: boolean;
}

function tryOpen(opening: Opening, property: EncryptedProperty): boolean {
  try {
    open(opening, property);
    return true;
  } catch (error) {
    if (isKeyturnError(error, 'KEY_NOT_HELD')) return false;
    throw error;
  }
}

function open(opening: Opening, property: EncryptedProperty): void {
  const { keyrings, entity, loaded, place } = opening;
  const { stored } = property.metadata.getEntityValue(loaded) as Sealed;
  const { value, stale } = decryptAt(keyrings, entity, property, place, stored);
  property.metadata.setEntityValue(loaded as Record<string, unknown>, value);
  opening.isStale ||= stale;
}
