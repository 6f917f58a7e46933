// Where the encrypting builders come from: every path of TypeORM asks its data source for a query builder, and turns that
// into an INSERT, UPDATE or DELETE. The data source is given this one to hand out; no class of TypeORM is changed.
import {
  RelationQueryBuilder,
  SelectQueryBuilder,
  type DataSource,
  type DeleteQueryBuilder,
  type EntityTarget,
  type InsertQueryBuilder,
  type ObjectLiteral,
  type QueryDeepPartialEntity,
  type QueryRunner,
  type UpdateQueryBuilder,
} from 'typeorm';
import type { SoftDeleteQueryBuilder } from 'typeorm/query-builder/SoftDeleteQueryBuilder.js';
import { refuseCiphertextConditions } from './ciphertext-conditions.js';
import { GuardedDeleteQueryBuilder, GuardedSoftDeleteQueryBuilder } from './delete-builders.js';
import { EncryptingInsertQueryBuilder } from './insert-builder.js';
import { installationOn } from './installation.js';
import { EncryptingUpdateQueryBuilder } from './update-builder.js';

class EncryptingSelectQueryBuilder<Entity extends ObjectLiteral> extends SelectQueryBuilder<Entity> {
  override insert(): InsertQueryBuilder<Entity> {
    return new EncryptingInsertQueryBuilder(super.insert());
  }

  override update(): UpdateQueryBuilder<Entity>;
  override update(updateSet: QueryDeepPartialEntity<Entity>): UpdateQueryBuilder<Entity>;
  override update<Updated extends ObjectLiteral>(
    entity: EntityTarget<Updated>,
    updateSet?: QueryDeepPartialEntity<Updated>,
  ): UpdateQueryBuilder<Updated>;
  override update(tableName: string, updateSet?: QueryDeepPartialEntity<Entity>): UpdateQueryBuilder<Entity>;
  override update(...given: unknown[]): UpdateQueryBuilder<ObjectLiteral> {
    const made = super.update(...(given as [EntityTarget<ObjectLiteral>, QueryDeepPartialEntity<ObjectLiteral>]));
    return new EncryptingUpdateQueryBuilder(made);
  }

  override delete(): DeleteQueryBuilder<Entity> {
    return new GuardedDeleteQueryBuilder(super.delete());
  }

  override softDelete(): SoftDeleteQueryBuilder<Entity> {
    return new GuardedSoftDeleteQueryBuilder(super.softDelete());
  }

  override restore(): SoftDeleteQueryBuilder<Entity> {
    return new GuardedSoftDeleteQueryBuilder(super.restore());
  }

  override relation(propertyPath: string): RelationQueryBuilder<Entity>;
  override relation<Related extends ObjectLiteral>(
    entityTarget: EntityTarget<Related>,
    propertyPath: string,
  ): RelationQueryBuilder<Related>;
  override relation(...given: unknown[]): RelationQueryBuilder<ObjectLiteral> {
    return new EncryptingRelationQueryBuilder(super.relation(...(given as [EntityTarget<ObjectLiteral>, string])));
  }

  protected override createWhereExpression(): string {
    return this.#comparingNone(super.createWhereExpression());
  }

  protected override createJoinExpression(): string {
    return this.#comparingNone(super.createJoinExpression());
  }

  #comparingNone(sql: string): string {
    const installation = installationOn(this.dataSource);
    if (installation !== undefined) refuseCiphertextConditions(installation, this.expressionMap.aliases, sql);
    return sql;
  }
}

/** The statement behind `set`, `add` and `remove` may change the tenant that values are bound to. */
class EncryptingRelationQueryBuilder<Entity extends ObjectLiteral> extends RelationQueryBuilder<Entity> {
  override createQueryBuilder(queryRunner?: QueryRunner): this {
    return this.dataSource.createQueryBuilder(queryRunner ?? this.queryRunner) as unknown as this;
  }
}

/** From here on the data source's query builders encrypt. */
export function handOutEncryptingBuilders(dataSource: DataSource): void {
  const createQueryBuilder = dataSource.createQueryBuilder.bind(dataSource) as (
    ...given: readonly unknown[]
  ) => SelectQueryBuilder<ObjectLiteral>;
  Object.defineProperty(dataSource, 'createQueryBuilder', {
    configurable: true,
    value: (...given: readonly unknown[]) => new EncryptingSelectQueryBuilder(createQueryBuilder(...given)),
  });
}
