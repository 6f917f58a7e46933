// The privileges each database role needs: what `init` grants and what `init --print-sql` prints.
import { quoteIdentifier } from './database.js';

export interface GrantedRoles {
  readonly app?: string | undefined;
  readonly worker?: string | undefined;
  readonly auditor?: string | undefined;
}

/** Columns the worker may rewrite: one entry per registered target. */
export interface GrantedTarget {
  readonly schema: string;
  readonly table: string;
  readonly columns: readonly string[];
}

const keyTables =
  'keyturn.cluster, keyturn.root_key, keyturn.keyring, keyturn.data_key, keyturn.data_key_wrap, keyturn.target, keyturn.target_column, keyturn.migration';

export function grantStatements(
  roles: GrantedRoles,
  targets: readonly GrantedTarget[],
  queueSchemaExists: boolean,
): readonly string[] {
  const statements: string[] = [];
  if (roles.app !== undefined) {
    const app = quoteIdentifier(roles.app);
    statements.push(
      `GRANT USAGE ON SCHEMA keyturn TO ${app}`,
      `GRANT SELECT ON ${keyTables} TO ${app}`,
      `GRANT SELECT, INSERT, UPDATE, DELETE ON keyturn.member, keyturn.member_keyring TO ${app}`,
      `GRANT EXECUTE ON FUNCTION keyturn.count_lazy_upgrade TO ${app}`,
    );
  }
  if (roles.worker !== undefined) {
    const worker = quoteIdentifier(roles.worker);
    statements.push(
      `GRANT USAGE ON SCHEMA keyturn TO ${worker}`,
      `GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO ${worker}`,
      `GRANT INSERT, UPDATE, DELETE ON keyturn.member, keyturn.member_keyring, keyturn.leadership TO ${worker}`,
      `GRANT INSERT, UPDATE ON keyturn.run, keyturn.run_target, keyturn.batch, keyturn.ledger, keyturn.quarantine TO ${worker}`,
      `GRANT INSERT ON keyturn.audit TO ${worker}`,
      `GRANT UPDATE (queue_backend, queue_prefix, queue_marker) ON keyturn.cluster TO ${worker}`,
    );
    if (queueSchemaExists) {
      statements.push(
        `GRANT USAGE, CREATE ON SCHEMA bullmq TO ${worker}`,
        `GRANT ALL ON ALL TABLES IN SCHEMA bullmq TO ${worker}`,
        `GRANT ALL ON ALL SEQUENCES IN SCHEMA bullmq TO ${worker}`,
      );
    }
    for (const target of targets) {
      const table = `${quoteIdentifier(target.schema)}.${quoteIdentifier(target.table)}`;
      statements.push(
        `GRANT USAGE ON SCHEMA ${quoteIdentifier(target.schema)} TO ${worker}`,
        `GRANT SELECT, UPDATE (${target.columns.map(quoteIdentifier).join(', ')}) ON ${table} TO ${worker}`,
      );
    }
  }
  if (roles.auditor !== undefined) {
    const auditor = quoteIdentifier(roles.auditor);
    statements.push(
      `GRANT USAGE ON SCHEMA keyturn TO ${auditor}`,
      `GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO ${auditor}`,
    );
  }
  return statements;
}
