// init --print-sql: every statement that brings an empty database to the present schema, for people who run it themselves.
// Where keyturn.yaml names an owner, a superuser runs it and the owner needs no right to create schemas.
import { queueSchemaStatements } from '../queue/schema.js';
import { quoteIdentifier } from '../store/database.js';
import { grantsFor } from '../store/grants.js';
import { schemaStatements } from '../store/schema.js';
import type { ControlContext } from './context.js';
import { grantedTargets } from './init.js';

/** Connects to nothing. */
export async function printSql({ config }: Pick<ControlContext, 'config'>): Promise<string> {
  const { owner, ...others } = config.roles;
  const { own, tables } = grantsFor(config.roles, grantedTargets(config.targets));
  const statements = [
    ...(owner === undefined ? [] : asOwner(owner)),
    ...withoutSchemas(schemaStatements(), owner),
    ...withoutSchemas(await queueSchemaStatements(), owner),
    ...own,
    ...(owner === undefined ? [] : ['RESET ROLE']),
    ...tables.flatMap((table) => table.statements),
  ];
  const named = [owner, ...Object.values(others)].filter((role) => role !== undefined);
  return `${[...preface(owner, named), ...statements.map((statement) => `${statement};`)].join('\n\n')}\n`;
}

/** What is created from here on belongs to the owner, functions that run with its rights included. */
function asOwner(owner: string): readonly string[] {
  const name = quoteIdentifier(owner);
  return [
    `CREATE SCHEMA keyturn AUTHORIZATION ${name}`,
    `CREATE SCHEMA bullmq AUTHORIZATION ${name}`,
    `SET ROLE ${name}`,
  ];
}

function withoutSchemas(statements: readonly string[], owner: string | undefined): readonly string[] {
  return owner === undefined ? statements : statements.filter((statement) => !statement.startsWith('CREATE SCHEMA'));
}

function preface(owner: string | undefined, roles: readonly string[]): readonly string[] {
  const lines = [
    '-- Keyturn: schema and rights for an empty database. Run it once with: psql -v ON_ERROR_STOP=1 -f',
    owner === undefined
      ? '-- Whoever runs it owns the schemas, and is who runs: keyturn init'
      : `-- As a superuser. Then, as ${quoteIdentifier(owner)}: keyturn init`,
    ...roles.map((role) => `-- CREATE ROLE ${quoteIdentifier(role)} LOGIN PASSWORD '...';`),
    ...(owner === undefined
      ? []
      : [
          `-- key retire reads every text, bytea and jsonb column of the database:`,
          `-- GRANT pg_read_all_data TO ${quoteIdentifier(owner)};`,
        ]),
  ];
  return [lines.join('\n')];
}
