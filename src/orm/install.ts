// The one line that an application needs: installs Keyturn on a TypeORM data source.
import type { DataSource, EntityTarget, ObjectLiteral } from 'typeorm';
import type { ApplicationParts } from '../engine/services.js';
import { KeyturnError } from '../errors.js';
import type { Stored } from '../formats/format.js';
import { decryptAt, keyOf, scopeOf } from './entity-cells.js';
import { installationOn, setInstallation, type Installation } from './installation.js';
import { mapEntities, type EncryptedEntity } from './map-entities.js';
import { openEntity } from './open-entity.js';
import { sealReturnedValues } from './returned-values.js';
import { handOutEncryptingBuilders } from './select-builder.js';
import { KeyturnSubscriber, type TitlesByTransformer } from './subscriber.js';
import type { KeyValue } from '../engine/column.js';

export interface InstalledKeyturn {
  /** Decrypts, in place, entities that TypeORM loaded without telling subscribers: mapped joins, `callListeners(false)`. */
  open<Entity extends ObjectLiteral>(entity: EntityTarget<Entity>, loaded: Entity | readonly Entity[]): Promise<void>;
  /**
   * Decrypts rows of `getRawMany`, `query` or a stream: answers copies with plaintexts in place of envelopes. A property is
   * looked for under its column's name, behind the alias where one is given, as TypeORM names it.
   */
  readonly decryptRaw: DecryptRaw;
}

type RawRow = Readonly<Record<string, unknown>>;
type OpenedRow = Record<string, unknown>;

export interface DecryptRaw {
  (
    entity: EntityTarget<ObjectLiteral>,
    rows: readonly RawRow[],
    options?: { readonly alias?: string },
  ): Promise<OpenedRow[]>;
  /** Row by row, as they come: what `stream()` answers is one. */
  (
    entity: EntityTarget<ObjectLiteral>,
    rows: AsyncIterable<unknown>,
    options?: { readonly alias?: string },
  ): AsyncIterable<OpenedRow>;
}

/**
 * Call it once, after `dataSource.initialize()` and before the first query. Throws CONFIG_INVALID for a data source that is
 * not PostgreSQL or not initialized, TARGET_NOT_FOUND and TARGET_INVALID where entities and registry disagree.
 */
export async function installKeyturn(
  dataSource: DataSource,
  keyturn: { readonly parts: ApplicationParts },
): Promise<InstalledKeyturn> {
  refuseUnfit(dataSource);
  const entities = mapEntities(dataSource, keyturn.parts.targetsOfEntities, (name) =>
    keyturn.parts.keyrings.current(name),
  );
  const installation: Installation = {
    ...keyturn.parts,
    entityOf(metadata) {
      const entity = entities.get(metadata);
      return entity === undefined || entity.properties.length === 0 ? undefined : entity;
    },
    readEntityOf: (metadata) => entities.get(metadata),
  };
  const isReadOnly = await isReadOnlyConnection(dataSource);
  setInstallation(dataSource, installation);
  handOutEncryptingBuilders(dataSource);
  sealReturnedValues(dataSource, installation);
  dataSource.subscribers.push(new KeyturnSubscriber(installation, titlesOf(entities.values()), isReadOnly));
  return installed(dataSource, installation);
}

function titlesOf(entities: Iterable<EncryptedEntity>): TitlesByTransformer {
  const titles = new Map<number, { entity: string; title: string }[]>();
  for (const { name, properties } of entities)
    for (const { transformer, title } of properties)
      titles.set(transformer.id, [...(titles.get(transformer.id) ?? []), { entity: name, title }]);
  return titles;
}

function refuseUnfit(dataSource: DataSource): void {
  if (dataSource.options.type !== 'postgres')
    throw new KeyturnError(
      'CONFIG_INVALID',
      `Keyturn encrypts columns of PostgreSQL, and this data source is ${dataSource.options.type}`,
    );
  if (!dataSource.isInitialized)
    throw new KeyturnError(
      'CONFIG_INVALID',
      'the data source is not initialized yet; await dataSource.initialize() first',
    );
  if (installationOn(dataSource) !== undefined)
    throw new KeyturnError(
      'CONFIG_INVALID',
      'Keyturn is installed on this data source already; call installKeyturn once',
    );
}

async function isReadOnlyConnection(dataSource: DataSource): Promise<boolean> {
  const rows = (await dataSource.query(
    `SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::boolean AS refuses`,
  )) as { refuses: boolean }[];
  return rows[0]?.refuses === true;
}

function installed(dataSource: DataSource, installation: Installation): InstalledKeyturn {
  function entityFor(target: EntityTarget<ObjectLiteral>): EncryptedEntity {
    const metadata = dataSource.getMetadata(target);
    const entity = installation.entityOf(metadata);
    if (entity !== undefined) return entity;
    throw new KeyturnError('TARGET_NOT_FOUND', `${metadata.name} has no encrypted property`, { entity: metadata.name });
  }
  return {
    async open(target, loaded) {
      const entity = entityFor(target);
      const several: readonly object[] = Array.isArray(loaded) ? (loaded as readonly object[]) : [loaded as object];
      for (const one of several) await openEntity(installation.keyrings, entity, one, () => undefined);
    },
    decryptRaw: ((target, rows, { alias } = {}) => {
      const entity = entityFor(target);
      return Symbol.asyncIterator in rows
        ? openStream(installation, entity, rows, alias)
        : openRows(installation, entity, rows, alias);
    }) as DecryptRaw,
  };
}

async function openRows(
  installation: Installation,
  entity: EncryptedEntity,
  rows: readonly RawRow[],
  alias: string | undefined,
): Promise<OpenedRow[]> {
  const opened: OpenedRow[] = [];
  for (const row of rows) opened.push(await openRow(installation, entity, row, alias));
  return opened;
}

async function* openStream(
  installation: Installation,
  entity: EncryptedEntity,
  rows: AsyncIterable<unknown>,
  alias: string | undefined,
): AsyncGenerator<OpenedRow> {
  for await (const row of rows) yield openRow(installation, entity, row as RawRow, alias);
}

async function openRow(
  { keyrings }: Installation,
  entity: EncryptedEntity,
  row: RawRow,
  alias: string | undefined,
): Promise<OpenedRow> {
  const nameOf = (column: { readonly databaseName: string }): string =>
    alias === undefined ? column.databaseName : `${alias}_${column.databaseName}`;
  const valueOf = (column: { readonly databaseName: string }): KeyValue | null | undefined =>
    row[nameOf(column)] as KeyValue | null | undefined;
  const place = {
    key: keyOf(entity, entity.keyColumns.map(valueOf)),
    scope: scopeOf(entity, entity.scopeColumn === undefined ? undefined : valueOf(entity.scopeColumn)),
  };
  const opened = { ...row };
  for (const property of entity.properties) {
    const stored = row[nameOf(property.metadata)] as Stored | null | undefined;
    if (stored === null || stored === undefined) continue;
    const decrypt = (): unknown => decryptAt(keyrings, entity, property, place, stored).value;
    try {
      opened[nameOf(property.metadata)] = decrypt();
    } catch (error) {
      if (!(error instanceof KeyturnError) || error.code !== 'KEY_NOT_HELD') throw error;
      await keyrings.refresh(entity.target.keyringName);
      opened[nameOf(property.metadata)] = decrypt();
    }
  }
  return opened;
}
