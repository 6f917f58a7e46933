// The keyturn.yaml that an application's entities ask for: its tables, its encrypted columns, how they are bound.
import type { DataSource } from 'typeorm';
import { configText, type ProposedTarget } from '../rotation/target-text.js';
import { isEncrypted, tableOf } from './map-entities.js';
import type { EncryptedTransformer } from './transformer.js';

export interface DescribeOptions {
  /** Default: `main`. */
  readonly keyring?: string;
  /** The tenant column's name in the database; taken where an entity has it. */
  readonly scope?: string;
}

/** The data source must be initialized; the database is not asked, and Keyturn need not be installed. */
export function describeTargets(dataSource: DataSource, options: DescribeOptions = {}): string {
  return configText(options.keyring ?? 'main', proposeTargets(dataSource, options.scope));
}

export function proposeTargets(dataSource: DataSource, scope?: string): readonly ProposedTarget[] {
  const targets = new Map<string, ProposedTarget>();
  for (const metadata of dataSource.entityMetadatas) {
    const table = tableOf(dataSource, metadata);
    const known = targets.get(table)?.columns ?? [];
    const columns = metadata.columns
      .filter((column) => isEncrypted(column) && known.every(({ name }) => name !== column.databaseName))
      .map((column) => ({
        name: column.databaseName,
        path: undefined,
        bind: (column.transformer as EncryptedTransformer).bind,
        note: undefined,
        isAside: false,
      }));
    if (columns.length === 0) continue;
    const hasScope = metadata.columns.some(({ databaseName }) => databaseName === scope);
    targets.set(table, {
      table,
      scope: hasScope ? scope : undefined,
      note: undefined,
      columns: [...known, ...columns],
    });
  }
  return [...targets.values()];
}
