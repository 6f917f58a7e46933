// Where the encrypting builders come from: every path of TypeORM asks its data source for a query builder, and turns that
// into an INSERT or UPDATE. The data source is given this one to hand out; no class of TypeORM is changed.
import {
  SelectQueryBuilder,
  type DataSource,
  type EntityTarget,
  type InsertQueryBuilder,
  type ObjectLiteral,
  type QueryDeepPartialEntity,
  type UpdateQueryBuilder,
} from 'typeorm';
import { EncryptingInsertQueryBuilder } from './insert-builder.js';
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
