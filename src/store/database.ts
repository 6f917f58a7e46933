// One pool of PostgreSQL connections and the boundary where driver errors are rebuilt: a pg error carries parameters,
// DETAIL and WHERE, which may hold values (I7), so none of it leaves this file. Poolers are respected: no named
// statements, no session state, SET LOCAL only.
import pg from 'pg';
import type { Secret } from '../crypto/secret.js';
import { isKeyturnError, KeyturnError, type ErrorDetails } from '../errors.js';
import { fenceState } from './migrations/retirement-statements.js';

export type Row = readonly unknown[];

export interface QueryResult {
  readonly rows: readonly Row[];
  readonly rowCount: number;
}

/** Runs one statement; rows come as arrays in column order. Throws DATABASE_ERROR, DATABASE_UNAVAILABLE or FORBIDDEN. */
export interface Queryable {
  query(text: string, parameters?: readonly unknown[]): Promise<QueryResult>;
}

export interface Database extends Queryable {
  /** Commits when `work` returns, rolls back when it throws. `begin` is the opening statement list. */
  transaction<T>(work: (client: Queryable) => Promise<T>, begin?: string): Promise<T>;
  /** Whether a pooler answers in the server's place: it announces a process id of its own, since it makes up cancel keys. */
  isPooled(): Promise<boolean>;
  close(): Promise<void>;
}

export const readOnlySnapshot = 'BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY';

const connectTimeoutMs = 10_000;

export interface DatabaseOptions {
  readonly url: Secret;
  readonly maxConnections: number;
  readonly applicationName: string;
  /** Gives a connection up when a statement has had no answer for so long; without it that is the server's matter. */
  readonly answerWithinMs?: number | undefined;
}

/** Opens a pool of at most `maxConnections`; connects on first use. */
export function openDatabase(options: DatabaseOptions): Database {
  const pool = new pg.Pool({
    connectionString: options.url.expose(),
    max: options.maxConnections,
    application_name: options.applicationName,
    connectionTimeoutMillis: connectTimeoutMs,
    ...(options.answerWithinMs === undefined ? {} : { query_timeout: options.answerWithinMs }),
    keepAlive: true,
  });
  // An idle connection that breaks is replaced on next use; without a listener it would end the process.
  pool.on('error', () => undefined);

  async function connect(): Promise<pg.PoolClient> {
    try {
      return await pool.connect();
    } catch (error) {
      throw rebuildError(error);
    }
  }

  async function session<T>(work: (client: Queryable) => Promise<T>): Promise<T> {
    const client = await connect();
    const onError = (): undefined => undefined;
    client.on('error', onError);
    let broken = false;
    try {
      return await work(queryableOf(client));
    } catch (error) {
      broken = !(error instanceof KeyturnError) || error.code === 'DATABASE_UNAVAILABLE';
      throw error;
    } finally {
      client.off('error', onError);
      client.release(broken);
    }
  }

  return {
    query: (text, parameters) => session((client) => client.query(text, parameters)),
    transaction: (work, begin = 'BEGIN') =>
      session(async (client) => {
        await client.query(begin);
        let result;
        try {
          result = await work(client);
        } catch (error) {
          // A connection that is given up is not asked once more; the server rolls back what it loses.
          if (!isKeyturnError(error, 'DATABASE_UNAVAILABLE')) await rollback(client);
          throw error;
        }
        await client.query('COMMIT');
        return result;
      }),
    async isPooled() {
      const client = await connect();
      try {
        const { rows } = await queryableOf(client).query('SELECT pg_backend_pid()');
        return 'processID' in client && client.processID !== rows[0]?.[0];
      } finally {
        client.release();
      }
    },
    close: () => pool.end(),
  };
}

async function rollback(client: Queryable): Promise<void> {
  try {
    await client.query('ROLLBACK');
  } catch {
    // The connection is gone and with it the transaction; the first error is the one to report.
  }
}

function queryableOf(client: pg.PoolClient): Queryable {
  return {
    async query(text, parameters) {
      try {
        const result: pg.QueryArrayResult | pg.QueryArrayResult[] = await client.query({
          text,
          values: parameters as unknown[],
          rowMode: 'array',
        });
        const last = Array.isArray(result) ? result.at(-1) : result;
        return { rows: last?.rows ?? [], rowCount: last?.rowCount ?? 0 };
      } catch (error) {
        throw rebuildError(error);
      }
    },
  };
}

/** SQLSTATE classes whose primary message names objects and settings, never values. */
const speakingClasses = new Set(['08', '0A', '25', '28', '3D', '3F', '40', '42', '53', '55', '57', '58']);
const unavailableClasses = new Set(['08', '28', '3D', '53', '57']);
/** Cancelled by a timeout (57014) or waiting for a lock (55P03) is the statement's own trouble, not an outage. */
const statementOnly = new Set(['57014']);

/** The one way a pg error becomes ours: SQLSTATE and object names, never parameters, DETAIL or WHERE. */
export function rebuildError(error: unknown): KeyturnError {
  if (error instanceof KeyturnError) return error;
  if (error instanceof pg.DatabaseError) {
    const sqlstate = error.code ?? 'unknown';
    const details = {
      sqlstate,
      schema: error.schema,
      table: error.table,
      column: error.column,
      constraint: error.constraint,
    };
    // With a context the words may be those of a function or trigger, which may speak of values under any SQLSTATE.
    const speaks = speakingClasses.has(sqlstate.slice(0, 2)) && error.where === undefined;
    const unavailable = unavailableClasses.has(sqlstate.slice(0, 2)) && !statementOnly.has(sqlstate);
    const where = [error.schema, error.table, error.column, error.constraint]
      .filter((part) => part !== undefined)
      .join('.');
    const what = `(SQLSTATE ${sqlstate}${where === '' ? '' : ` at ${where}`})${speaks ? `: ${error.message}` : ''}`;
    if (sqlstate === '42501')
      return new KeyturnError(
        'FORBIDDEN',
        `this database login may not do that ${what}; docs/roles.md says who may`,
        details,
      );
    if (sqlstate === fenceState) return fenced(error, details);
    const message = `the database refused a statement ${what}`;
    return new KeyturnError(unavailable ? 'DATABASE_UNAVAILABLE' : 'DATABASE_ERROR', message, details);
  }
  const code = networkCode(error);
  return new KeyturnError(
    'DATABASE_UNAVAILABLE',
    `no connection to the database (${code}); check DATABASE_URL and that the server is up`,
    { cause: code },
  );
}

/** The one message that passes: it is of our own function, and no more of it is taken than a number. */
function fenced(error: pg.DatabaseError, details: ErrorDetails): KeyturnError {
  const keyId = /names key (\d+),/.exec(error.message)?.[1];
  return new KeyturnError(
    'KEY_FENCED',
    `${error.schema}.${error.table} takes no value that names key ${keyId ?? 'unknown'}, which is retired or about to be; encrypt with the active key, and update or restart whatever still writes with another`,
    { ...details, ...(keyId === undefined ? {} : { keyId }) },
  );
}

function networkCode(error: unknown): string {
  if (error instanceof AggregateError) return networkCode(error.errors[0]);
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') return error.code;
  if (!(error instanceof Error)) return 'connection lost';
  if (/read timeout/i.test(error.message)) return 'no answer';
  return /timeout/i.test(error.message) ? 'connect timeout' : 'connection lost';
}

/** SQLSTATE of a rebuilt database error. */
export function sqlstateOf(error: unknown): string | undefined {
  const sqlstate = error instanceof KeyturnError ? error.details['sqlstate'] : undefined;
  return typeof sqlstate === 'string' ? sqlstate : undefined;
}

/** Quotes an identifier for SQL text. */
export function quoteIdentifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

/** Quotes a string literal for SQL text; for values of known shape where a parameter cannot stand. */
export function quoteLiteral(value: string): string {
  const escaped = value.replaceAll("'", "''");
  return escaped.includes('\\') ? ` E'${escaped.replaceAll('\\', '\\\\')}'` : `'${escaped}'`;
}
