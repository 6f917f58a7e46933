// INSERT with encrypted values, for every path of TypeORM: save, insert, upsert and the query builder all end in this class.
// The row's key is part of a value's address, so a key that the database would make is fetched first; the values are
// encrypted where TypeORM asks for the parameter of a column, after listeners and subscribers have had their say.
//
// An upsert may hit a row that is there already, under another key or tenant than the proposed one. The key of such a row is
// looked up first, and the UPDATE half is conditional on key and tenant being those the values were encrypted for.
import { randomUUID } from 'node:crypto';
import { InsertQueryBuilder, type InsertResult, type ObjectLiteral, type QueryRunner } from 'typeorm';
import type { ColumnMetadata } from 'typeorm/metadata/ColumnMetadata.js';
import type { KeyValue } from '../engine/column.js';
import { KeyturnError } from '../errors.js';
import { targetTitle } from '../rotation/target.js';
import { encryptAt, keyOf, placeOf, scopeOf, type RowPlace } from './entity-cells.js';
import { installationOn, type Installation } from './installation.js';
import type { EncryptedEntity } from './map-entities.js';
import { openReturned } from './returned-values.js';
import { withTransaction } from './with-transaction.js';

/** From the sequence that the column owns, else from the one that is its whole default; NULL where there is neither. */
const nextKeys = `
  SELECT nextval(coalesce(pg_get_serial_sequence(k.place, $3)::regclass, (
    SELECT d.refobjid::regclass FROM pg_attribute a
    JOIN pg_attrdef e ON e.adrelid = a.attrelid AND e.adnum = a.attnum
    JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = e.oid AND d.refclassid = 'pg_class'::regclass
    JOIN pg_class s ON s.oid = d.refobjid AND s.relkind = 'S'
    WHERE a.attrelid = k.place::regclass AND a.attname = $3 AND pg_get_expr(e.adbin, e.adrelid) ~ '^nextval\\(''[^'']+''::regclass\\)$'
  )))::text AS id
  FROM (SELECT format('%I.%I', $1::text, $2::text) AS place) k, generate_series(1, $4::int)`;

interface Encryption {
  readonly installation: Installation;
  readonly entity: EncryptedEntity;
}

/** Keys that the values of a row do not name, by column. */
type FoundKeys = ReadonlyMap<ColumnMetadata, string>;

/** `row`: of the values; `k0`, `k1`…: its key; `scope`: its tenant. */
type ExistingRow = Readonly<Record<string, string>>;

export class EncryptingInsertQueryBuilder<Entity extends ObjectLiteral> extends InsertQueryBuilder<Entity> {
  /** Per set of values. */
  #foundKeys: readonly FoundKeys[] = [];
  #isGuarded = false;

  override async execute(): Promise<InsertResult> {
    const encryption = this.#encryption();
    if (encryption === undefined) return super.execute();
    const { entity } = encryption;
    if (this.expressionMap.insertFromSelect !== undefined) {
      const copied = super.getInsertedColumns();
      if (!entity.properties.some(({ metadata }) => copied.includes(metadata))) return super.execute();
      throw new KeyturnError(
        'VALUE_INVALID',
        `INSERT … SELECT would copy values of ${entity.name} that are bound to other rows; insert the entities`,
        { entity: entity.name },
      );
    }
    try {
      if (!this.#needsGuard(entity)) {
        this.#foundKeys = await this.#makeKeys(entity, this.queryRunner);
        return await this.#executeAndOpen(encryption);
      }
      const given = this.queryRunner;
      return await withTransaction(this.dataSource, given, async (runner) => {
        this.queryRunner = runner;
        try {
          return await this.#upsert(encryption, runner);
        } finally {
          if (given === undefined) delete this.queryRunner;
        }
      });
    } finally {
      this.#foundKeys = [];
      this.#isGuarded = false;
    }
  }

  async #executeAndOpen({ installation, entity }: Encryption): Promise<InsertResult> {
    const result = await super.execute();
    await openReturned(installation.keyrings, entity, result.generatedMaps, this.getValueSets());
    return result;
  }

  #encryption(): Encryption | undefined {
    const installation = installationOn(this.dataSource);
    const alias = this.expressionMap.mainAlias;
    if (installation === undefined || alias?.hasMetadata !== true) return undefined;
    const entity = installation.entityOf(alias.metadata);
    return entity === undefined ? undefined : { installation, entity };
  }

  // Keys

  /** Keys for the rows that name none, where the column says how one is made. */
  async #makeKeys(
    entity: EncryptedEntity,
    runner: QueryRunner | undefined,
    known: readonly FoundKeys[] = [],
  ): Promise<readonly FoundKeys[]> {
    const rows = this.getValueSets();
    const keys = rows.map((_, row) => new Map(known[row]));
    if (!entity.isRowBound) return keys;
    for (const column of entity.keyColumns) {
      if (!column.isGenerated) continue;
      const nameless = keys.filter(
        (found, row) => !found.has(column) && isMissing(column.getEntityValue(rows[row] ?? {})),
      );
      if (nameless.length === 0) continue;
      const made =
        column.generationStrategy === 'uuid'
          ? nameless.map(() => randomUUID())
          : await this.#nextValues(entity, column, nameless.length, runner);
      for (const [at, found] of nameless.entries()) found.set(column, made[at] ?? '');
    }
    return keys;
  }

  async #nextValues(
    entity: EncryptedEntity,
    column: ColumnMetadata,
    count: number,
    runner: QueryRunner | undefined,
  ): Promise<readonly string[]> {
    const { schema, table } = entity.target;
    const rows = (await this.dataSource.query(nextKeys, [schema, table, column.databaseName, count], runner)) as {
      id: string | null;
    }[];
    const ids = rows.map(({ id }) => id).filter((id) => id !== null);
    if (ids.length === count) return ids;
    throw new KeyturnError(
      'VALUE_INVALID',
      `${entity.name}.${column.propertyPath} has neither a sequence of its own nor nextval('a sequence') as its default, so the key of a row is not known before the insert; set it, or register the columns of ${targetTitle(entity.target)} with bind: column`,
      { entity: entity.name },
    );
  }

  // Values

  /** TypeORM leaves generated numbers out; a row whose values are bound to its number names it. */
  protected override getInsertedColumns(): ColumnMetadata[] {
    const columns = super.getInsertedColumns();
    const entity = this.#encryption()?.entity;
    if (entity?.isRowBound !== true || this.expressionMap.insertFromSelect !== undefined) return columns;
    return [...columns, ...entity.keyColumns.filter((column) => !columns.includes(column))];
  }

  protected override createColumnValueExpression(
    valueSets: ObjectLiteral[],
    valueSetIndex: number,
    column: ColumnMetadata,
  ): string {
    const replaced = this.#valueInstead(valueSets[valueSetIndex] ?? {}, valueSetIndex, column);
    return replaced === undefined
      ? super.createColumnValueExpression(valueSets, valueSetIndex, column)
      : super.createColumnValueExpression([column.createValueMap(replaced)], 0, column);
  }

  /** A found key or an envelope; undefined for everything that TypeORM writes itself. */
  #valueInstead(values: ObjectLiteral, row: number, column: ColumnMetadata): unknown {
    const encryption = this.#encryption();
    if (encryption === undefined) return undefined;
    const { entity, installation } = encryption;
    const foundKey = this.#foundKeys[row]?.get(column);
    if (foundKey !== undefined) return foundKey;
    const property = entity.properties.find(({ metadata }) => metadata === column);
    const value: unknown = property === undefined ? undefined : column.getEntityValue(values);
    if (property === undefined || isMissing(value)) return undefined;
    return encryptAt(installation.keyrings, entity, property, this.#placeOf(entity, values, row), value);
  }

  #placeOf(entity: EncryptedEntity, values: ObjectLiteral, row: number): RowPlace {
    const found = this.#foundKeys[row];
    if (found === undefined || found.size === 0) return placeOf(entity, values);
    const parts = entity.keyColumns.map(
      (column) => found.get(column) ?? (column.getEntityValue(values, true) as KeyValue | null | undefined),
    );
    return {
      key: keyOf(entity, parts),
      scope: scopeOf(entity, entity.scopeColumn?.getEntityValue(values, true) as KeyValue | null | undefined),
    };
  }

  // Upserts

  /** Whether the UPDATE half could hit a row of another key or tenant than the one encrypted for. */
  #needsGuard(entity: EncryptedEntity): boolean {
    const upsert = this.expressionMap.onUpdate as InsertQueryBuilder<Entity>['expressionMap']['onUpdate'] | undefined;
    if (upsert === undefined) return false;
    return entity.scopeColumn !== undefined || (entity.isRowBound && !this.#conflictsByKey(entity));
  }

  #conflictsByKey(entity: EncryptedEntity): boolean {
    const columns = this.#conflictColumns(entity);
    return columns.length === entity.keyColumns.length && columns.every((column) => entity.keyColumns.includes(column));
  }

  #conflictColumns(entity: EncryptedEntity): readonly ColumnMetadata[] {
    const { conflict } = this.expressionMap.onUpdate;
    const columns = Array.isArray(conflict)
      ? conflict.map((name) => entity.metadata.columns.find((column) => column.databaseName === name))
      : [];
    const known = columns.filter((column) => column !== undefined);
    if (known.length > 0 && known.length === columns.length) return known;
    throw new KeyturnError(
      'VALUE_INVALID',
      `an upsert of ${entity.name} must name the columns that may conflict, not a constraint, so that the row's key can be looked up`,
      { entity: entity.name },
    );
  }

  async #upsert(encryption: Encryption, runner: QueryRunner): Promise<InsertResult> {
    const { entity } = encryption;
    const existing = this.#conflictsByKey(entity) ? [] : await this.#findKeys(entity, runner);
    this.#foundKeys = await this.#makeKeys(entity, runner, existing);
    this.#isGuarded = true;
    const result = await this.#executeAndOpen(encryption);
    const wanted = this.getValueSets().length;
    if ((result.raw as unknown[]).length < wanted) await this.#refuseOthers(entity, runner);
    return result;
  }

  /** A row may also be unwritten since the upsert's own condition left it; then it is where its values belong. */
  async #refuseOthers(entity: EncryptedEntity, runner: QueryRunner): Promise<void> {
    const rows = this.getValueSets();
    const others = (await this.#findExisting(entity, runner)).filter((line) => {
      const row = Number(line['row']);
      const place = this.#placeOf(entity, rows[row] ?? {}, row);
      const isOtherKey = entity.isRowBound && place.key?.some((part, at) => part !== line[`k${at}`]) !== false;
      return isOtherKey || scopeOf(entity, line['scope']) !== place.scope;
    });
    if (others.length === 0) return;
    throw new KeyturnError(
      'VALUE_INVALID',
      `${others.length} of ${rows.length} rows of the upsert of ${entity.name} exist under another key or tenant than the values name, or were inserted meanwhile; nothing was written; read them and try again`,
      { entity: entity.name },
    );
  }

  /** The keys of the rows that the values would conflict with, where the values do not name them. */
  async #findKeys(entity: EncryptedEntity, runner: QueryRunner): Promise<readonly FoundKeys[]> {
    const rows = this.getValueSets();
    const existing = rows.map(() => new Map<ColumnMetadata, string>());
    for (const line of await this.#findExisting(entity, runner))
      for (const [part, column] of entity.keyColumns.entries()) {
        const named: unknown = column.getEntityValue(rows[Number(line['row'])] ?? {});
        if (isMissing(named)) existing[Number(line['row'])]?.set(column, line[`k${part}`] ?? '');
      }
    return existing;
  }

  /** The rows that the values would conflict with; one statement for all. */
  async #findExisting(entity: EncryptedEntity, runner: QueryRunner): Promise<readonly ExistingRow[]> {
    const rows = this.getValueSets();
    const conflict = this.#conflictColumns(entity);
    const { indexPredicate } = this.expressionMap.onUpdate;
    const parameters: unknown[] = [];
    const place = [
      ...entity.keyColumns.map((column, part) => `t.${this.escape(column.databaseName)}::text AS k${part}`),
      ...(entity.scopeColumn ? [`t.${this.escape(entity.scopeColumn.databaseName)}::text AS scope`] : []),
    ];
    const selects = rows.flatMap((values, row) => {
      const sought = conflict.map(
        (column) => this.dataSource.driver.preparePersistentValue(column.getEntityValue(values), column) as unknown,
      );
      // NULLs conflict with nothing.
      if (sought.some(isMissing)) return [];
      const conditions = conflict.map(
        (column, at) => `t.${this.escape(column.databaseName)} = $${parameters.push(sought[at])}`,
      );
      if (indexPredicate !== undefined) conditions.push(`(${indexPredicate})`);
      return `SELECT ${row} AS row, ${place.join(', ')} FROM ${this.getTableName(this.getMainTableName())} t WHERE ${conditions.join(' AND ')}`;
    });
    if (selects.length === 0) return [];
    return (await runner.query(selects.join(' UNION ALL '), parameters)) as ExistingRow[];
  }

  protected override createUpsertConditionExpression(mainTableOrAlias: string): string {
    const given = super.createUpsertConditionExpression(mainTableOrAlias);
    const entity = this.#isGuarded ? this.#encryption()?.entity : undefined;
    if (entity === undefined) return given;
    const guarded = [
      ...(entity.isRowBound ? entity.keyColumns : []),
      ...(entity.scopeColumn ? [entity.scopeColumn] : []),
    ];
    const same = guarded.map((column) => {
      const name = this.escape(column.databaseName);
      return `${mainTableOrAlias}.${name} IS NOT DISTINCT FROM EXCLUDED.${name}`;
    });
    return [...(given === '' ? [] : [`(${given})`]), ...same].join(' AND ');
  }

  protected override createInsertExpression(): string {
    // TypeORM asks for the condition of an upsert only where it has one.
    if (this.#isGuarded && (this.expressionMap.onUpdate.overwriteCondition ?? []).length === 0)
      this.expressionMap.onUpdate.overwriteCondition = [{ type: 'simple', condition: 'true' }];
    return super.createInsertExpression();
  }

  /** Rows written are counted by what they return. */
  protected override createReturningExpression(returningType: 'insert' | 'update' | 'delete'): string {
    const given = super.createReturningExpression(returningType);
    const entity = this.#isGuarded ? this.#encryption()?.entity : undefined;
    if (given !== '' || entity === undefined) return given;
    return entity.keyColumns.map((column) => this.escape(column.databaseName)).join(', ');
  }
}

function isMissing(value: unknown): boolean {
  return value === undefined || value === null;
}
