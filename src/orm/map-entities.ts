// Which properties of an application's entities are encrypted, and where they are registered. Entities and registry must
// agree before anything is read or written: every disagreement is an error that names both sides.
import type { DataSource, EntityMetadata } from 'typeorm';
import type { ColumnMetadata } from 'typeorm/metadata/ColumnMetadata.js';
import { createCellBuilder, type CellBuilder } from '../engine/cells-of-target.js';
import { KeyturnError } from '../errors.js';
import { targetTitle, type Target, type TargetColumn } from '../rotation/target.js';
import { plaintextFormat } from '../formats/plaintext.js';
import type { Keyring } from '../keys/keyring.js';
import { EncryptedTransformer } from './transformer.js';
import type { ValueType } from './value-type.js';

/** A property whose column is registered. */
export interface RegisteredProperty {
  /** `Customer.address.street` */
  readonly title: string;
  readonly metadata: ColumnMetadata;
  readonly type: ValueType;
  readonly column: TargetColumn;
  /** Of the column in its target. */
  readonly position: number;
}

export interface EncryptedProperty extends RegisteredProperty {
  readonly transformer: EncryptedTransformer;
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
  /** Plain columns on their way from or to plaintext: others write envelopes into them, which are opened when read (I8). */
  readonly mixed: readonly RegisteredProperty[];
  /** Whether a value's address needs the row's key. */
  readonly isRowBound: boolean;
}

/**
 * Throws TARGET_NOT_FOUND for what `init` has not registered, TARGET_INVALID for what it registered otherwise. `targets`:
 * with the columns that were left.
 */
export function mapEntities(
  dataSource: DataSource,
  targets: readonly Target[],
  keyringOf: (name: string) => Pick<Keyring, 'cluster' | 'foreign'>,
): ReadonlyMap<EntityMetadata, EncryptedEntity> {
  const mapped = new Map<EntityMetadata, EncryptedEntity>();
  for (const metadata of dataSource.entityMetadatas) {
    const table = tableOf(dataSource, metadata);
    const target = targets.find((candidate) => targetTitle(candidate) === table);
    const encrypted = metadata.columns.filter(isEncrypted);
    if (target === undefined) {
      if (encrypted.length > 0) throw notRegistered(metadata, encrypted, table, targets);
      continue;
    }
    const keyring = keyringOf(target.keyringName);
    const mixed = mixedOf(metadata, target, keyring);
    if (encrypted.length === 0 && mixed.length === 0) continue;
    const properties = encrypted.map((column) => propertyOf(metadata, column, target));
    mapped.set(metadata, {
      name: metadata.name,
      metadata,
      target,
      builder: createCellBuilder(target, keyring.cluster),
      keyColumns: keyColumnsOf(metadata, target),
      scopeColumn: scopeColumnOf(metadata, target),
      properties,
      mixed,
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
  return { title, metadata: column, type: transformer.type, transformer, column: registered, position };
}

/**
 * Plain columns over registered ones: a column that is encrypted would take plaintext and is refused. One that is on its way
 * in or out is mapped by versions of the application that know it so, and by those that do not, side by side.
 */
function mixedOf(
  metadata: EntityMetadata,
  target: Target,
  { foreign }: Pick<Keyring, 'foreign'>,
): readonly RegisteredProperty[] {
  return metadata.columns.flatMap((column): RegisteredProperty[] => {
    const position = target.columns.findIndex(
      (candidate) => candidate.columnName === column.databaseName && candidate.path === undefined,
    );
    const registered = target.columns[position];
    if (registered === undefined || isEncrypted(column) || registered.isLeft === true) return [];
    const move = foreign.get(registered.id.replaceAll('-', ''));
    if (move === undefined && registered.awaitsAdoption !== true)
      throw disagreement(metadata, column, target, 'is a plain @Column()', 'an encrypted column; use @Encrypted()');
    // What another library's transformer makes of a value is its own affair.
    if (column.transformer !== undefined || (move !== undefined && move.format !== plaintextFormat.name)) return [];
    const type = registered.sqlType === 'bytea' ? 'buffer' : 'string';
    return [{ title: propertyTitle(metadata, column), metadata: column, type, column: registered, position }];
  });
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
