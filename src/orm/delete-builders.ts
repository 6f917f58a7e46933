// DELETE and soft delete: no value is written, but a condition on an encrypted column would quietly delete nothing.
import { DeleteQueryBuilder, type DataSource, type ObjectLiteral } from 'typeorm';
import type { Alias } from 'typeorm/query-builder/Alias.js';
import { SoftDeleteQueryBuilder } from 'typeorm/query-builder/SoftDeleteQueryBuilder.js';
import { refuseCiphertextConditions } from './ciphertext-conditions.js';
import { installationOn } from './installation.js';

export class GuardedDeleteQueryBuilder<Entity extends ObjectLiteral> extends DeleteQueryBuilder<Entity> {
  protected override createWhereExpression(): string {
    return comparingNone(this.dataSource, this.expressionMap.aliases, super.createWhereExpression());
  }
}

export class GuardedSoftDeleteQueryBuilder<Entity extends ObjectLiteral> extends SoftDeleteQueryBuilder<Entity> {
  protected override createWhereExpression(): string {
    return comparingNone(this.dataSource, this.expressionMap.aliases, super.createWhereExpression());
  }
}

function comparingNone(dataSource: DataSource, aliases: readonly Alias[], sql: string): string {
  const installation = installationOn(dataSource);
  if (installation !== undefined) refuseCiphertextConditions(installation, aliases, sql);
  return sql;
}
