// doctor: looks at everything a rotation stands on and says, for each, fine, watch out, or not like this, with a reason and
// a remedy. Reads only; needs no root key. Checks that need it say so instead of failing.
import { examineTarget, type Finding } from '../engine/preflight.js';
import { isKeyturnError } from '../errors.js';
import { queueAddressOf, readEvictionPolicy } from '../queue/connection.js';
import { targetTitle } from '../rotation/target.js';
import { findTable, serverVersion } from '../store/catalog.js';
import { findClusterId } from '../store/keys.js';
import { listRegistered, listTargets } from '../store/registry.js';
import { requireSchema } from '../store/schema.js';
import type { ControlContext } from './context.js';
import { examineRegistered } from './runs.js';

const oldestServer = 140_000;

export async function examineEverything(context: ControlContext): Promise<readonly Finding[]> {
  const findings = [await examineServer(context), await examineServerRole(context), await examinePooler(context), await examineParameterLogging(context), await examineQueue(context), await examineSchema(context)];
  return [...findings.flat(), ...(await examineTargets(context))];
}

function ok(check: string, subject: string, reason: string): Finding {
  return { level: 'ok', check, subject, reason, remedy: '' };
}

async function examineServer(context: ControlContext): Promise<readonly Finding[]> {
  const version = await serverVersion(context.database);
  const name = `PostgreSQL ${Math.floor(version / 10_000)}.${version % 10_000}`;
  if (version >= oldestServer) return [ok('server version', name, 'is supported')];
  return [{ level: 'refuse', check: 'server version', subject: name, reason: 'is older than PostgreSQL 14', remedy: 'upgrade the server' }];
}

async function examineServerRole(context: ControlContext): Promise<readonly Finding[]> {
  const { rows } = await context.database.query(`SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'`);
  if (rows[0]?.[0] === true) return [{ level: 'refuse', check: 'server role', subject: 'server', reason: 'it is a standby', remedy: 'point DATABASE_URL at the primary' }];
  if (rows[0]?.[1] === true) return [{ level: 'refuse', check: 'server role', subject: 'server', reason: 'transactions are read-only here', remedy: 'ALTER ROLE … RESET default_transaction_read_only' }];
  return [ok('server role', 'server', 'is a writable primary')];
}

/** A pooler in transaction mode gives two statements two backends; LISTEN and the PostgreSQL queue then need a direct URL. */
async function examinePooler(context: ControlContext): Promise<readonly Finding[]> {
  const { config, database } = context;
  const backends = await database.session(async (client) => {
    const seen = new Set<string>();
    for (let call = 0; call < 3; call++) seen.add(String((await client.query('SELECT pg_backend_pid()')).rows[0]?.[0]));
    return seen.size;
  });
  const { rows } = await database.query('SELECT inet_server_port()');
  const port = config.databaseUrl === undefined ? '' : portOf(config.databaseUrl.expose());
  const isPooled = backends > 1 || (rows[0]?.[0] !== null && port !== '' && port !== String(rows[0]?.[0]));
  if (!isPooled) return [ok('pooler', 'DATABASE_URL', 'reaches the server directly')];
  const hasDirect = config.databaseDirectUrl !== undefined && config.databaseDirectUrl !== config.databaseUrl;
  if (hasDirect) return [ok('pooler', 'DATABASE_URL', 'goes through a pooler, DATABASE_DIRECT_URL is set')];
  return [
    {
      level: config.redisUrl === undefined ? 'refuse' : 'warn',
      check: 'pooler',
      subject: 'DATABASE_URL',
      reason: 'goes through a pooler, where LISTEN hears nothing',
      remedy: 'set DATABASE_DIRECT_URL to the server itself',
    },
  ];
}

function portOf(url: string): string {
  try {
    return new URL(url).port || '5432';
  } catch {
    return '';
  }
}

/** With parameters in the server's log, envelopes (not plaintexts) would stand there. */
async function examineParameterLogging(context: ControlContext): Promise<readonly Finding[]> {
  const { rows } = await context.database.query(`SELECT current_setting('log_parameter_max_length_on_error', true)`);
  const length = String(rows[0]?.[0] ?? '0');
  if (length === '0') return [ok('server log', 'log_parameter_max_length_on_error', 'is 0: failed statements are logged without parameters')];
  return [{ level: 'warn', check: 'server log', subject: 'log_parameter_max_length_on_error', reason: `is ${length}: a failed statement writes envelopes into the server log`, remedy: 'set it to 0' }];
}

async function examineQueue(context: ControlContext): Promise<readonly Finding[]> {
  const { config } = context;
  if (config.redisUrl === undefined || config.databaseDirectUrl === undefined) return [ok('queue', 'PostgreSQL', 'carries the queue; for many workers set REDIS_URL')];
  try {
    const policy = await readEvictionPolicy(queueAddressOf({ redisUrl: config.redisUrl, databaseDirectUrl: config.databaseDirectUrl }, '00000000'));
    if (policy === undefined || policy === 'noeviction') return [ok('queue', 'Redis', 'answers and evicts nothing')];
    return [{ level: 'refuse', check: 'queue', subject: 'Redis', reason: `maxmemory-policy is ${policy}, so jobs may be evicted`, remedy: 'CONFIG SET maxmemory-policy noeviction' }];
  } catch (error) {
    if (!isKeyturnError(error)) throw error;
    return [{ level: 'refuse', check: 'queue', subject: 'Redis', reason: error.message, remedy: 'start it, or unset REDIS_URL to keep the queue in PostgreSQL' }];
  }
}

async function examineSchema(context: ControlContext): Promise<readonly Finding[]> {
  try {
    await requireSchema(context.database);
    return [ok('schema', 'keyturn', 'is up to date')];
  } catch (error) {
    if (!isKeyturnError(error)) throw error;
    const level = error.code === 'NOT_INITIALIZED' ? 'warn' : 'refuse';
    return [{ level, check: 'schema', subject: 'keyturn', reason: error.message, remedy: 'keyturn init' }];
  }
}

/** Registered targets, and those that the file names and `init` has not registered yet. */
async function examineTargets(context: ControlContext): Promise<readonly Finding[]> {
  const { config, database } = context;
  const findings: Finding[] = [];
  const isInitialized = (await database.query(`SELECT to_regclass('keyturn.target') IS NOT NULL`)).rows[0]?.[0] === true && (await findClusterId(database)) !== undefined;
  const known = new Set<string>();
  if (isInitialized) {
    const present = await listTargets(database);
    for (const target of present) {
      known.add(targetTitle(target));
      findings.push(...orOk(targetTitle(target), await examineRegistered(context, target)));
    }
    for (const gone of (await listRegistered(database)).filter((registered) => !present.some((target) => target.id === registered.id))) {
      known.add(targetTitle(gone));
      findings.push({ level: 'refuse', check: 'table', subject: targetTitle(gone), reason: 'its table is gone or was created anew', remedy: `keyturn target rename ${targetTitle(gone)} NEW, if it lives on under another name` });
    }
  }
  for (const target of config.targets) {
    if (known.has(targetTitle(target))) continue;
    const algorithm = config.keyrings.find((keyring) => keyring.name === target.keyring)?.algorithm;
    findings.push(...orOk(targetTitle(target), examineTarget(target, await findTable(database, target), algorithm)));
  }
  return findings;
}

function orOk(title: string, findings: readonly Finding[]): readonly Finding[] {
  return findings.some((finding) => finding.level === 'refuse') ? findings : [ok('target', title, 'can be rotated'), ...findings];
}
