// The privileges each database role needs: what `init` grants and what `init --print-sql` prints. docs/roles.md says the
// same in words. A table that is named in no list here is readable by worker and auditor and closed to the application.
import { quoteIdentifier, quoteLiteral } from './database.js';

export interface GrantedRoles {
  readonly owner?: string | undefined;
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

export interface Grants {
  /** On our schemas: their owner may run them. */
  readonly own: readonly string[];
  /** On application tables: their owner, or a superuser, may. `isHeld` is a query that answers whether they are needed. */
  readonly tables: readonly TableGrant[];
}

export interface TableGrant {
  /** `schema.table` */
  readonly table: string;
  readonly role: string;
  readonly statements: readonly string[];
  readonly isHeld: string;
}

const keyTables =
  'keyturn.cluster, keyturn.root_key, keyturn.keyring, keyturn.data_key, keyturn.data_key_wrap, keyturn.target, keyturn.target_column, keyturn.migration';
const memberFunctions =
  'FUNCTION keyturn.beat(jsonb, jsonb), keyturn.leave(uuid), keyturn.reserve_encryptions(bigint, bigint)';
const lazyUpgradeFunction = 'FUNCTION keyturn.count_lazy_upgrade';

export function grantsFor(roles: GrantedRoles, targets: readonly GrantedTarget[]): Grants {
  return {
    own: [...appGrants(roles.app), ...workerGrants(roles.worker), ...auditorGrants(roles.auditor)],
    tables: targets.flatMap((target) => [
      ...(roles.owner === undefined ? [] : [readGrant(roles.owner, target)]),
      ...(roles.worker === undefined ? [] : [rewriteGrant(roles.worker, target)]),
    ]),
  };
}

function appGrants(role: string | undefined): readonly string[] {
  if (role === undefined) return [];
  const app = quoteIdentifier(role);
  return [
    `GRANT USAGE ON SCHEMA keyturn TO ${app}`,
    `GRANT SELECT ON ${keyTables} TO ${app}`,
    `GRANT EXECUTE ON ${memberFunctions} TO ${app}`,
    `GRANT EXECUTE ON ${lazyUpgradeFunction} TO ${app}`,
  ];
}

function workerGrants(role: string | undefined): readonly string[] {
  if (role === undefined) return [];
  const worker = quoteIdentifier(role);
  return [
    `GRANT USAGE ON SCHEMA keyturn TO ${worker}`,
    `GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO ${worker}`,
    `GRANT EXECUTE ON ${memberFunctions} TO ${worker}`,
    `GRANT DELETE ON keyturn.member TO ${worker}`,
    `GRANT UPDATE (next_at) ON keyturn.schedule TO ${worker}`,
    `GRANT INSERT, UPDATE ON keyturn.leadership, keyturn.occurrence, keyturn.run, keyturn.run_target, keyturn.batch, keyturn.quarantine, keyturn.pace TO ${worker}`,
    `GRANT INSERT ON keyturn.ledger, keyturn.audit, keyturn.audit_seal TO ${worker}`,
    `GRANT UPDATE (queue_backend, queue_prefix, queue_marker) ON keyturn.cluster TO ${worker}`,
    `GRANT USAGE, CREATE ON SCHEMA bullmq TO ${worker}`,
    `GRANT ALL ON ALL TABLES IN SCHEMA bullmq TO ${worker}`,
    `GRANT ALL ON ALL SEQUENCES IN SCHEMA bullmq TO ${worker}`,
  ];
}

function auditorGrants(role: string | undefined): readonly string[] {
  if (role === undefined) return [];
  const auditor = quoteIdentifier(role);
  return [`GRANT USAGE ON SCHEMA keyturn TO ${auditor}`, `GRANT SELECT ON ALL TABLES IN SCHEMA keyturn TO ${auditor}`];
}

function readGrant(role: string, { schema, table }: GrantedTarget): TableGrant {
  const [name, place] = namesOf(schema, table);
  return {
    table: `${schema}.${table}`,
    role,
    statements: [
      `GRANT USAGE ON SCHEMA ${name} TO ${quoteIdentifier(role)}`,
      `GRANT SELECT ON ${place} TO ${quoteIdentifier(role)}`,
    ],
    isHeld: `SELECT has_schema_privilege(${quoteLiteral(role)}, ${quoteLiteral(schema)}, 'USAGE') AND has_table_privilege(${quoteLiteral(role)}, ${quoteLiteral(place)}, 'SELECT')`,
  };
}

function rewriteGrant(role: string, { schema, table, columns }: GrantedTarget): TableGrant {
  const [name, place] = namesOf(schema, table);
  const held = columns.map(
    (column) =>
      `has_column_privilege(${quoteLiteral(role)}, ${quoteLiteral(place)}, ${quoteLiteral(column)}, 'UPDATE')`,
  );
  return {
    table: `${schema}.${table}`,
    role,
    statements: [
      `GRANT USAGE ON SCHEMA ${name} TO ${quoteIdentifier(role)}`,
      `GRANT SELECT, UPDATE (${columns.map(quoteIdentifier).join(', ')}) ON ${place} TO ${quoteIdentifier(role)}`,
    ],
    isHeld: `SELECT has_schema_privilege(${quoteLiteral(role)}, ${quoteLiteral(schema)}, 'USAGE') AND has_table_privilege(${quoteLiteral(role)}, ${quoteLiteral(place)}, 'SELECT') AND ${held.join(' AND ')}`,
  };
}

function namesOf(schema: string, table: string): readonly [string, string] {
  return [quoteIdentifier(schema), `${quoteIdentifier(schema)}.${quoteIdentifier(table)}`];
}
