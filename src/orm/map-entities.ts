// Which properties of an application's entities are encrypted, and where they are registered. Entities and registry must
// agree before anything is read or written: every disagreement is an error that names both sides.
import type { DataSource, EntityMetadata } from 'typeorm';
import type { ColumnMetadata } from 'typeorm/metadata/ColumnMetadata.js';
import { createCellBuilder, type CellBuilder } from '../engine/cells-of-target.js';
import { KeyturnError } from '../errors.js';
import { targetTitle, type Target, type TargetColumn } from '../rotation/target.js';
import { EncryptedTransformer } from './transformer.js';

export interface EncryptedProperty {
  /** `Customer.address.street` */
  readonly title: string;
  readonly metadata: ColumnMetadata;
  readonly transformer: EncryptedTransformer;
  readonly column: TargetColumn;
  /** Of the column in its target. */
  readonly position: number;
}

export interface EncryptedEntity {
  readonly name: string;
  readonly metadata: EntityMetadata;
  readonly target: Target;
  readonly builder: CellBuilder;
  /** In the target's key order. */
  readonly keyColumns: readonly ColumnMetadata[];
  readonly scopeColumn: ColumnMetadata | undefined;
  readonly properties: readonly EncryptedProperty[];
  /** Whether a value's address needs the row's key. */
  readonly isRowBound: boolean;
}

/** Throws TARGET_NOT_FOUND for what `init` has not registered, TARGET_INVALID for what it registered otherwise. */
export function mapEntities(
  dataSource: DataSource,
  targets: readonly Target[],
  clusterOf: (keyring: string) => string,
): ReadonlyMap<EntityMetadata, EncryptedEntity> {
  const mapped = new Map<EntityMetadata, EncryptedEntity>();
  for (const metadata of dataSource.entityMetadatas) {
    const table = tableOf(dataSource, metadata);
    const target = targets.find((candidate) => targetTitle(candidate) === table);
    const encrypted = metadata.columns.filter(isEncrypted);
    if (target !== undefined) refusePlain(metadata, target);
    if (encrypted.length === 0) continue;
    if (target === undefined) throw notRegistered(metadata, encrypted, table, targets);
    const properties = encrypted.map((column) => propertyOf(metadata, column, target));
    mapped.set(metadata, {
      name: metadata.name,
      metadata,
      target,
      builder: createCellBuilder(target, clusterOf(target.keyringName)),
      keyColumns: keyColumnsOf(metadata, target),
      scopeColumn: scopeColumnOf(metadata, target),
      properties,
      isRowBound: properties.some(({ column }) => column.bind === 'row'),
    });
  }
  return mapped;
}

export function isEncrypted(column: ColumnMetadata): boolean {
  return column.transformer instanceof EncryptedTransformer;
}

/** `schema.table`, as PostgreSQL finds it for this data source. */
export function tableOf(dataSource: DataSource, metadata: EntityMetadata): string {
  const { schema } = dataSource.driver;
  return `${metadata.schema ?? schema ?? 'public'}.${metadata.tableName}`;
}

export function propertyTitle(metadata: EntityMetadata, column: ColumnMetadata): string {
  return `${metadata.name}.${column.propertyPath}`;
}

function propertyOf(metadata: EntityMetadata, column: ColumnMetadata, target: Target): EncryptedProperty {
  const title = propertyTitle(metadata, column);
  const transformer = column.transformer as EncryptedTransformer;
  const position = target.columns.findIndex(
    (candidate) => candidate.columnName === column.databaseName && candidate.path === undefined,
  );
  const registered = target.columns[position];
  if (registered === undefined) {
    throw new KeyturnError(
      'TARGET_NOT_FOUND',
      `${title} is @Encrypted() in column ${targetTitle(target)}.${column.databaseName}, and keyturn init registered only ${target.columns.map(({ name }) => name).join(', ')}; add it to keyturn.yaml and run: keyturn init`,
      { entity: metadata.name, property: column.propertyPath, target: targetTitle(target) },
    );
  }
  if (transformer.bind !== undefined && transformer.bind !== registered.bind)
    throw disagreement(metadata, column, target, `is bound to the ${transformer.bind}`, `bind: ${registered.bind}`);
  const isBytes = column.type === 'bytea';
  if (isBytes !== (registered.sqlType === 'bytea'))
    throw disagreement(metadata, column, target, `has column type ${String(column.type)}`, registered.sqlType);
  return { title, metadata: column, transformer, column: registered, position };
}

/** A registered column that an entity maps as a plain one would take plaintext. */
function refusePlain(metadata: EntityMetadata, target: Target): void {
  for (const column of metadata.columns) {
    const isRegistered = target.columns.some(
      (candidate) => candidate.columnName === column.databaseName && candidate.path === undefined,
    );
    if (isRegistered && !isEncrypted(column))
      throw disagreement(metadata, column, target, 'is a plain @Column()', 'an encrypted column; use @Encrypted()');
  }
}

function keyColumnsOf(metadata: EntityMetadata, target: Target): readonly ColumnMetadata[] {
  const names = metadata.primaryColumns.map((column) => column.databaseName);
  const columns = target.key.map(({ name }) => metadata.primaryColumns.find((column) => column.databaseName === name));
  if (names.length !== target.key.length || columns.includes(undefined)) {
    throw new KeyturnError(
      'TARGET_INVALID',
      `${metadata.name} has the primary key (${names.join(', ')}), and keyturn init registered ${targetTitle(target)} with (${target.key.map(({ name }) => name).join(', ')}); make them agree`,
      { entity: metadata.name, target: targetTitle(target) },
    );
  }
  const always = columns.find((column) => column?.generatedIdentity === 'ALWAYS');
  if (always !== undefined && target.columns.some(({ bind }) => bind === 'row'))
    throw new KeyturnError(
      'TARGET_INVALID',
      `${metadata.name}.${always.propertyPath} is GENERATED ALWAYS, so the row's key cannot be known before the insert; make it BY DEFAULT, or register its columns with bind: column`,
      { entity: metadata.name, property: always.propertyPath },
    );
  return columns.filter((column) => column !== undefined);
}

function scopeColumnOf(metadata: EntityMetadata, target: Target): ColumnMetadata | undefined {
  const { scope } = target;
  if (scope === undefined) return undefined;
  const column = metadata.columns.find((candidate) => candidate.databaseName === scope.name && !candidate.isVirtual);
  if (column !== undefined) return column;
  throw new KeyturnError(
    'TARGET_INVALID',
    `values of ${targetTitle(target)} are bound to their tenant, and ${metadata.name} has no property for column ${scope.name}; add one with @Column()`,
    { entity: metadata.name, target: targetTitle(target) },
  );
}

function disagreement(
  metadata: EntityMetadata,
  column: ColumnMetadata,
  target: Target,
  says: string,
  registered: string,
): KeyturnError {
  return new KeyturnError(
    'TARGET_INVALID',
    `${propertyTitle(metadata, column)} ${says}, and keyturn init registered ${targetTitle(target)}.${column.databaseName} as ${registered}; change one of them`,
    { entity: metadata.name, property: column.propertyPath, target: targetTitle(target) },
  );
}

function notRegistered(
  metadata: EntityMetadata,
  columns: readonly ColumnMetadata[],
  table: string,
  targets: readonly Target[],
): KeyturnError {
  return new KeyturnError(
    'TARGET_NOT_FOUND',
    `${columns.map((column) => propertyTitle(metadata, column)).join(', ')} is @Encrypted(), and ${table} is no target; registered: ${targets.map(targetTitle).join(', ') || 'none'}; add it to keyturn.yaml and run: keyturn init`,
    { entity: metadata.name, target: table },
  );
}
