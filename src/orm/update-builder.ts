// UPDATE with encrypted values, for save, update and the query builder. A value is bound to its row and tenant, so one
// statement that sets one value in many rows needs an envelope per row: the rows are found and locked first, in the same
// transaction, and each gets its own.
//
// A change of tenant or key moves a row away from the address of its values. It is refused unless the same statement sets
// every value that would be lost.
import { UpdateQueryBuilder, type ObjectLiteral, type QueryRunner, type UpdateResult } from 'typeorm';
import type { ColumnMetadata } from 'typeorm/metadata/ColumnMetadata.js';
import type { KeyValue } from '../engine/column.js';
import { KeyturnError } from '../errors.js';
import { refuseCiphertextConditions } from './ciphertext-conditions.js';
import { encryptAt, keyOf, placeOf, scopeOf, type RowPlace } from './entity-cells.js';
import { installationOn, type Installation } from './installation.js';
import type { EncryptedEntity, EncryptedProperty } from './map-entities.js';
import { openReturned, refuseNameless } from './returned-values.js';
import { withTransaction } from './with-transaction.js';

/** Rows that one statement may give values of their own. */
const maxRows = 1_000;

interface FoundRow {
  /** As the row is before the statement. */
  readonly key: readonly string[];
  /** Where its values live after it. */
  readonly place: RowPlace;
}

interface Encryption {
  readonly installation: Installation;
  readonly entity: EncryptedEntity;
}

export class EncryptingUpdateQueryBuilder<Entity extends ObjectLiteral> extends UpdateQueryBuilder<Entity> {
  #isFinding = false;
  /** Undefined until it is known which rows the statement means; `any` where the address needs neither row nor tenant. */
  #rows: readonly FoundRow[] | 'any' | undefined;

  override async execute(): Promise<UpdateResult> {
    const encryption = this.#encryption();
    if (encryption === undefined) return super.execute();
    const { entity, installation } = encryption;
    const { returning, whereEntities } = this.expressionMap;
    refuseNameless(entity, returning, whereEntities);
    const result = await this.#execute(entity);
    await openReturned(installation.keyrings, entity, result.generatedMaps, whereEntities);
    return result;
  }

  async #execute(entity: EncryptedEntity): Promise<UpdateResult> {
    const values = super.getValueSet();
    const isSet = (column: ColumnMetadata | undefined): boolean => column?.getEntityValue(values) !== undefined;
    const isMoving = isSet(entity.scopeColumn) || (entity.isRowBound && entity.keyColumns.some(isSet));
    const touches = entity.properties.some(({ metadata }) => isSet(metadata));
    if (!touches && !isMoving) return super.execute();
    // A value that does not fit is told whether rows match or not.
    for (const { metadata, transformer } of entity.properties) transformer.to(metadata.getEntityValue(values));
    try {
      if (!entity.isRowBound && entity.scopeColumn === undefined) {
        this.#rows = 'any';
        return await super.execute();
      }
      const only = isMoving ? undefined : this.#onlyRow(entity);
      if (only !== undefined) {
        this.#rows = [only];
        return await super.execute();
      }
      return await this.#executeFound(entity, values);
    } finally {
      this.#rows = undefined;
    }
  }

  #encryption(): Encryption | undefined {
    const installation = installationOn(this.dataSource);
    const alias = this.expressionMap.mainAlias;
    if (installation === undefined || alias?.hasMetadata !== true) return undefined;
    const entity = installation.entityOf(alias.metadata);
    return entity === undefined ? undefined : { installation, entity };
  }

  /** What `save` updates: one entity, whose key alone is the address. */
  #onlyRow(entity: EncryptedEntity): FoundRow | undefined {
    const [values, ...others] = this.expressionMap.whereEntities;
    if (values === undefined || others.length > 0 || entity.scopeColumn !== undefined) return undefined;
    const place = placeOf(entity, values);
    return place.key === undefined ? undefined : { key: place.key, place };
  }

  // Rows

  async #executeFound(entity: EncryptedEntity, values: ObjectLiteral): Promise<UpdateResult> {
    const given = this.queryRunner;
    const { wheres } = this.expressionMap;
    return withTransaction(this.dataSource, given, async (runner) => {
      this.queryRunner = runner;
      try {
        const rows = await this.#find(entity, values, runner);
        this.#rows = rows;
        // Rows that match only now have no envelope of theirs; they are left as if they had come later.
        const meant = rows.map((row, at) => this.#isRow(entity, row, at)).join(' OR ');
        this.expressionMap.wheres = [
          ...(wheres.length === 0 ? [] : [{ type: 'simple' as const, condition: wheres }]),
          { type: 'and', condition: meant === '' ? 'false' : `(${meant})` },
        ];
        return await super.execute();
      } finally {
        this.expressionMap.wheres = wheres;
        if (given === undefined) delete this.queryRunner;
      }
    });
  }

  /** Finds and locks the rows that the statement means. Throws VALUE_INVALID for too many, and for a move that would lose values. */
  async #find(entity: EncryptedEntity, values: ObjectLiteral, runner: QueryRunner): Promise<readonly FoundRow[]> {
    this.#isFinding = true;
    let statement: [string, unknown[]];
    try {
      statement = this.getQueryAndParameters();
    } finally {
      this.#isFinding = false;
    }
    const found = (await runner.query(...statement)) as Record<string, string | boolean | null>[];
    if (found.length > maxRows)
      throw new KeyturnError(
        'VALUE_INVALID',
        `the UPDATE of ${entity.name} sets encrypted values in more than ${maxRows} rows, and each row needs an envelope of its own; update them in parts`,
        { entity: entity.name },
      );
    return found.map((row) => this.#foundRow(entity, values, row));
  }

  #foundRow(entity: EncryptedEntity, values: ObjectLiteral, row: Record<string, string | boolean | null>): FoundRow {
    const key = entity.keyColumns.map((_, part) => String(row[`k${part}`]));
    const parts = entity.keyColumns.map(
      (column, part) => (column.getEntityValue(values, true) as KeyValue | undefined) ?? key[part],
    );
    const setScope = entity.scopeColumn?.getEntityValue(values, true) as KeyValue | null | undefined;
    const oldScope = scopeOf(entity, row['scope'] as string | null);
    const place: RowPlace = {
      key: keyOf(entity, parts),
      scope: setScope === undefined ? oldScope : scopeOf(entity, setScope),
    };
    const isMoved = { scope: place.scope !== oldScope, key: place.key?.some((part, at) => part !== key[at]) ?? false };
    const lost = entity.properties.filter(
      ({ metadata, column }, at) =>
        (isMoved.scope || (isMoved.key && column.bind === 'row')) &&
        metadata.getEntityValue(values) === undefined &&
        row[`v${at}`] === true,
    );
    if (lost.length === 0) return { key, place };
    throw new KeyturnError(
      'VALUE_INVALID',
      `changing ${isMoved.scope ? (entity.scopeColumn?.propertyPath ?? 'the tenant') : 'the primary key'} of ${entity.name} would make ${lost.map(({ title }) => title).join(', ')} unreadable, for they are bound to it; set them in the same update`,
      { entity: entity.name },
    );
  }

  #isRow(entity: EncryptedEntity, row: FoundRow, at: number): string {
    const parts = entity.keyColumns.map((column, part) => {
      const name = `keyturn_key_${at}_${part}`;
      this.setParameter(name, row.key[part]);
      return `${this.escape(column.databaseName)} = :${name}`;
    });
    return `(${parts.join(' AND ')})`;
  }

  // The statement

  protected override createWhereExpression(): string {
    const sql = super.createWhereExpression();
    const installation = installationOn(this.dataSource);
    if (installation !== undefined) refuseCiphertextConditions(installation, this.expressionMap.aliases, sql);
    return sql;
  }

  protected override createUpdateExpression(): string {
    const entity = this.#encryption()?.entity;
    if (!this.#isFinding || entity === undefined) return super.createUpdateExpression();
    const columns = [
      ...entity.keyColumns.map((column, part) => `CAST(${this.escape(column.databaseName)} AS text) AS k${part}`),
      ...(entity.scopeColumn === undefined
        ? []
        : [`CAST(${this.escape(entity.scopeColumn.databaseName)} AS text) AS scope`]),
      ...entity.properties.map(({ metadata }, at) => `${this.escape(metadata.databaseName)} IS NOT NULL AS v${at}`),
    ];
    return `SELECT ${columns.join(', ')} FROM ${this.getTableName(this.getMainTableName())}${this.createWhereExpression()} LIMIT ${maxRows + 1} FOR NO KEY UPDATE`;
  }

  protected override getValueSet(): ObjectLiteral {
    const values = super.getValueSet();
    const encryption = this.#encryption();
    const rows = this.#rows;
    if (encryption === undefined || rows === undefined) return values;
    const { entity, installation } = encryption;
    let replaced = values;
    for (const property of entity.properties) {
      const value: unknown = property.metadata.getEntityValue(values);
      if (value === undefined || value === null) continue;
      const encryptFor = (place: RowPlace): unknown => encryptAt(installation.keyrings, entity, property, place, value);
      replaced = withValue(
        replaced,
        property.metadata.propertyPath.split('.'),
        rows === 'any'
          ? encryptFor({ key: undefined, scope: null })
          : rows.length === 1 && rows[0] !== undefined
            ? encryptFor(rows[0].place)
            : this.#valuePerRow(entity, property, rows, encryptFor),
      );
    }
    return replaced;
  }

  #valuePerRow(
    entity: EncryptedEntity,
    property: EncryptedProperty,
    rows: readonly FoundRow[],
    encryptFor: (place: RowPlace) => unknown,
  ): () => string {
    const column = this.escape(property.metadata.databaseName);
    const type = property.column.sqlType === 'bytea' ? 'bytea' : 'text';
    const cases = rows.map((row, at) => {
      const name = `keyturn_value_${property.position}_${at}`;
      this.setParameter(name, property.transformer.to(encryptFor(row.place)));
      return `WHEN ${this.#isRow(entity, row, at)} THEN CAST(:${name} AS ${type})`;
    });
    return () => (cases.length === 0 ? column : `CASE ${cases.join(' ')} ELSE ${column} END`);
  }
}

/** A copy of `values` with one value replaced; the objects on the way are copied too, the entity is left as it is. */
function withValue(values: ObjectLiteral, path: readonly string[], value: unknown): ObjectLiteral {
  const [name, ...rest] = path;
  if (name === undefined) return values;
  const copy = Object.assign(Object.create(Object.getPrototypeOf(values) as object) as ObjectLiteral, values);
  copy[name] = rest.length === 0 ? value : withValue(copy[name] as ObjectLiteral, rest, value);
  return copy;
}
