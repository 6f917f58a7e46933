// What RETURNING brings back: TypeORM merges it into entities and generated maps as the driver gave it, past transformers and
// subscribers. An envelope becomes a Sealed on that way, so that it never passes for a value (I8), and is opened once the
// statement has run.
import type { DataSource, EntityMetadata, ObjectLiteral } from 'typeorm';
import type { KeyringSource } from '../engine/services.js';
import { KeyturnError } from '../errors.js';
import { placeOf, type RowPlace } from './entity-cells.js';
import type { Installation } from './installation.js';
import type { EncryptedEntity } from './map-entities.js';
import { openEntity } from './open-entity.js';

/** From here on the driver's generated maps hold no envelope. */
export function sealReturnedValues(dataSource: DataSource, installation: Installation): void {
  const { driver } = dataSource;
  type CreateMap = (metadata: EntityMetadata, ...rest: readonly unknown[]) => ObjectLiteral | undefined;
  const createGeneratedMap = driver.createGeneratedMap.bind(driver) as CreateMap;
  Object.defineProperty(driver, 'createGeneratedMap', {
    configurable: true,
    value: (metadata: EntityMetadata, ...rest: readonly unknown[]) => {
      const map = createGeneratedMap(metadata, ...rest);
      for (const { metadata: column, transformer } of installation.entityOf(metadata)?.properties ?? []) {
        const stored: unknown = map === undefined ? undefined : column.getEntityValue(map);
        if (map !== undefined && (typeof stored === 'string' || Buffer.isBuffer(stored)))
          column.setEntityValue(map, transformer.from(stored));
      }
      return map;
    },
  });
}

/** `maps`: what the statement generated, `entities`: what TypeORM merged it into, in the same order. Throws as `openEntity`. */
export async function openReturned(
  keyrings: KeyringSource,
  entity: EncryptedEntity,
  maps: readonly (ObjectLiteral | undefined)[],
  entities: readonly ObjectLiteral[],
): Promise<void> {
  for (const [at, map] of maps.entries()) {
    const loaded = entities[at];
    if (map === undefined || loaded === undefined) continue;
    const place = returnedPlace(entity, map, loaded);
    await openEntity(keyrings, entity, map, () => undefined, place);
    await openEntity(keyrings, entity, loaded, () => undefined, place);
  }
}

/** A row says itself whose it is, where it returned its key and tenant. */
function returnedPlace(entity: EncryptedEntity, map: ObjectLiteral, loaded: ObjectLiteral): RowPlace {
  const [returned, known] = [placeOf(entity, map), placeOf(entity, loaded)];
  return {
    key: returned.key ?? known.key,
    scope: returned.scope === undefined ? known.scope : returned.scope,
  };
}

/** Rows come back in no order, so several of them must say whose they are. Throws VALUE_INVALID. */
export function refuseNameless(
  entity: EncryptedEntity,
  returning: string | readonly string[] | undefined,
  entities: readonly unknown[],
): void {
  if (entities.length < 2 || returning === undefined || typeof returning === 'string') return;
  const returns = (path: string): boolean => returning.includes(path);
  const values = entity.properties.filter(({ metadata }) => returns(metadata.propertyPath));
  if (values.length === 0 || entity.keyColumns.every(({ propertyPath }) => returns(propertyPath))) return;
  throw new KeyturnError(
    'VALUE_INVALID',
    `RETURNING ${values.map(({ title }) => title).join(', ')} of several entities does not say which value is whose; return ${entity.keyColumns.map(({ propertyPath }) => propertyPath).join(', ')} too, or update one entity at a time`,
    { entity: entity.name },
  );
}
