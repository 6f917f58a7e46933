// What is installed on a data source: the encrypted entities and what encrypts them. Query builders find it by their data
// source, so a data source without Keyturn behaves as TypeORM made it.
import type { DataSource, EntityMetadata } from 'typeorm';
import type { ApplicationParts } from '../engine/services.js';
import type { EncryptedEntity } from './map-entities.js';

export interface Installation extends ApplicationParts {
  /** Undefined for an entity without encrypted properties. */
  entityOf(metadata: EntityMetadata): EncryptedEntity | undefined;
  /** Also one that has plain columns alone which may hold envelopes. */
  readEntityOf(metadata: EntityMetadata): EncryptedEntity | undefined;
}

const installations = new WeakMap<DataSource, Installation>();

export function installationOn(dataSource: DataSource): Installation | undefined {
  return installations.get(dataSource);
}

export function setInstallation(dataSource: DataSource, installation: Installation): void {
  installations.set(dataSource, installation);
}
