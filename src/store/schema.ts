// Brings the control schema up and tells other commands whether it fits. `init` alone migrates; everything else refuses
// an older or newer schema.
import type { Secret } from '../crypto/secret.js';
import { KeyturnError } from '../errors.js';
import { rebuildError, sqlstateOf, type Queryable } from './database.js';
import { ControlSchema1767225600000, controlSchemaStatements } from './migrations/0001-control-schema.js';

const migrations = [ControlSchema1767225600000];
/** What a database that `init` brought up to date is at. */
export const latestMigration = migrations.length;

/** One transaction under an advisory lock: two inits at once end as one. */
const migrationLock = 0x6b74_696e;

/** Applies what is missing and returns the names of the migrations applied. Idempotent. */
export async function migrate(url: Secret): Promise<readonly string[]> {
  const { DataSource, MigrationExecutor } = await import('typeorm');
  const dataSource = new DataSource({
    type: 'postgres',
    url: url.expose(),
    schema: 'keyturn',
    migrations,
    migrationsTableName: 'migration',
    migrationsTransactionMode: 'none',
    applicationName: 'keyturn init',
    // The default logger prints failed migrations to stdout, where data belongs.
    logger: 'debug',
    extra: { max: 1 },
  });
  try {
    await dataSource.initialize();
    const runner = dataSource.createQueryRunner();
    try {
      await runner.startTransaction();
      await runner.query('SELECT pg_advisory_xact_lock($1)', [migrationLock]);
      // Without IF NOT EXISTS, which asks for the right to create schemas even where there is nothing to create.
      const schemas: unknown[] = await runner.query(`SELECT 1 WHERE to_regnamespace('keyturn') IS NULL`);
      if (schemas.length > 0) await runner.query('CREATE SCHEMA keyturn');
      const executor = new MigrationExecutor(dataSource, runner);
      executor.transaction = 'none';
      const applied = await executor.executePendingMigrations();
      await runner.commitTransaction();
      return applied.map((migration) => migration.name);
    } catch (error) {
      await runner.rollbackTransaction().catch(() => undefined);
      throw error;
    } finally {
      await runner.release();
    }
  } catch (error) {
    throw rebuildError(driverErrorOf(error));
  } finally {
    if (dataSource.isInitialized) await dataSource.destroy();
  }
}

/**
 * Tables of a few rows, which autovacuum leaves out for their size. Without statistics the planner expects hundreds of targets,
 * and a server that compiles expensive queries (jit) spends half a second on a query of a millisecond.
 */
export async function analyzeRegistry(database: Queryable): Promise<void> {
  await database.query(
    'ANALYZE keyturn.keyring, keyturn.data_key, keyturn.data_key_wrap, keyturn.target, keyturn.target_column, keyturn.member',
  );
}

/** Throws FORBIDDEN where a schema that is there belongs to somebody else: migrating and granting are for its owner. */
export async function requireOwnership(database: Queryable, schemas: readonly string[]): Promise<void> {
  const { rows } = await database.query(
    `SELECT nspname, pg_get_userbyid(nspowner), session_user FROM pg_namespace WHERE nspname = ANY($1) AND NOT pg_has_role(nspowner, 'USAGE') ORDER BY nspname DESC`,
    [schemas],
  );
  if (rows[0] === undefined) return;
  const [schema, owner, login] = rows[0].map(String);
  throw new KeyturnError(
    'FORBIDDEN',
    `schema ${schema} belongs to ${owner}, and this database login is ${login}; run keyturn init as its owner`,
    { schema, owner, login },
  );
}

/** TypeORM wraps the driver's error together with the statement and its parameters; only the driver's part is rebuilt. */
function driverErrorOf(error: unknown): unknown {
  return error instanceof Error && 'driverError' in error ? error.driverError : error;
}

/** Throws NOT_INITIALIZED, SCHEMA_TOO_OLD or SCHEMA_TOO_NEW. */
export async function requireSchema(database: Queryable): Promise<void> {
  let applied: number;
  try {
    const { rows } = await database.query('SELECT count(*)::int FROM keyturn.migration');
    applied = Number(rows[0]?.[0]);
  } catch (error) {
    const sqlstate = sqlstateOf(error);
    if (sqlstate === '42P01' || sqlstate === '3F000') {
      throw new KeyturnError('NOT_INITIALIZED', 'this database has no keyturn schema; run: keyturn init');
    }
    throw error;
  }
  if (applied < latestMigration) {
    throw new KeyturnError(
      'SCHEMA_TOO_OLD',
      `the keyturn schema is at migration ${applied}, this version needs ${latestMigration}; run: keyturn init`,
    );
  }
  if (applied > latestMigration) {
    throw new KeyturnError(
      'SCHEMA_TOO_NEW',
      `the keyturn schema is at migration ${applied}, this version knows ${latestMigration}; upgrade this process`,
    );
  }
}

/** Every statement that brings an empty database to this schema, in order, for `init --print-sql`. */
export function schemaStatements(): readonly string[] {
  const names = migrations.map(({ name }) => `(${/\d+$/.exec(name)?.[0] ?? '0'}, '${name}')`);
  return [
    'CREATE SCHEMA IF NOT EXISTS keyturn',
    // As TypeORM would make it.
    'CREATE TABLE keyturn.migration (id serial PRIMARY KEY, "timestamp" bigint NOT NULL, name character varying NOT NULL)',
    ...controlSchemaStatements,
    `INSERT INTO keyturn.migration ("timestamp", name) VALUES ${names.join(', ')}`,
  ];
}
