// doctor: looks at everything a rotation stands on and says, for each, fine, watch out, or not like this, with a reason and
// a remedy. Reads only; needs no root key. Checks that need it say so instead of failing.
import { describeCrypto, nativeAddon } from '../crypto/native-addon.js';
import { listFenceTroubles } from '../engine/fence.js';
import { lookForNonEnvelopes } from '../engine/non-envelopes.js';
import { examineTarget, type Finding } from '../engine/preflight.js';
import { isKeyturnError } from '../errors.js';
import type { StoredKeyring } from '../keys/key-store.js';
import { queueAddressOf } from '../queue/address.js';
import { targetTitle } from '../rotation/target.js';
import { findTable, serverVersion, type CatalogTable } from '../store/catalog.js';
import { listDestructions, listMissingGuards } from '../store/destructions.js';
import { listUnbackedKeys } from '../store/backups.js';
import { findClusterId, getKeyringById } from '../store/keys.js';
import { getTarget, listRegistered, type RegisteredTarget } from '../store/registry.js';
import { readPaceSettings } from '../store/pace-settings.js';
import { requireSchema } from '../store/schema.js';
import { keysWords } from './backup-policy.js';
import type { ControlContext } from './context.js';
import { examineRegistered } from './runs.js';

const oldestServer = 140_000;

export async function examineEverything(context: ControlContext): Promise<readonly Finding[]> {
  const findings = [
    await examineServer(context),
    await examineServerRole(context),
    await examinePooler(context),
    await examineParameterLogging(context),
    await examineQueue(context),
    await examineSchema(context),
    await examineBackups(context),
    await examineGauges(context),
    [examineCrypto(nativeAddon !== undefined, describeCrypto())],
  ];
  return [...findings.flat(), ...(await examineFences(context)), ...(await examineTargets(context))];
}

/** Whether retired keys are kept out of every table, and who waits for a second login. */
async function examineFences({ database }: ControlContext): Promise<readonly Finding[]> {
  const isThere = `SELECT to_regclass('keyturn.destruction') IS NOT NULL`;
  if ((await database.query(isThere)).rows[0]?.[0] !== true) return [];
  const troubles = (await listFenceTroubles(database)).map(
    ({ table, troubles: words }): Finding => ({
      level: 'warn',
      check: 'fence',
      subject: table,
      reason: `does not stand as it was raised: ${words.join('; ')}`,
      remedy: 'keyturn init',
    }),
  );
  const missing = await listMissingGuards(database);
  if (missing.length > 0)
    troubles.push({
      level: 'warn',
      check: 'guards',
      subject: 'keyturn',
      reason: `triggers that hold the states of keys and the second login are off or gone: ${missing.join(', ')}`,
      remedy: 'find out who did it, and ALTER TABLE … ENABLE ALWAYS TRIGGER; see docs/retiring.md',
    });
  const requests = (await listDestructions(database)).map(({ id, keyId, requestedBy, notBefore }) =>
    ok(
      'destruction',
      `key ${keyId}`,
      `waits for the approval of request ${id} by another login than ${requestedBy}, from ${notBefore.toISOString()} on`,
    ),
  );
  return [...troubles, ...requests];
}

function ok(check: string, subject: string, reason: string): Finding {
  return { level: 'ok', check, subject, reason, remedy: '' };
}

async function examineServer(context: ControlContext): Promise<readonly Finding[]> {
  return [examineServerVersion(await serverVersion(context.database))];
}

/** `version`: `server_version_num`. */
export function examineServerVersion(version: number): Finding {
  const name = `PostgreSQL ${Math.floor(version / 10_000)}.${version % 10_000}`;
  if (version >= oldestServer) return ok('server version', name, 'is supported');
  return {
    level: 'refuse',
    check: 'server version',
    subject: name,
    reason: 'is older than PostgreSQL 14',
    remedy: 'upgrade the server',
  };
}

async function examineServerRole(context: ControlContext): Promise<readonly Finding[]> {
  const { rows } = await context.database.query(
    `SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on'`,
  );
  if (rows[0]?.[0] === true)
    return [
      {
        level: 'refuse',
        check: 'server role',
        subject: 'server',
        reason: 'it is a standby',
        remedy: 'point DATABASE_URL at the primary',
      },
    ];
  if (rows[0]?.[1] === true)
    return [
      {
        level: 'refuse',
        check: 'server role',
        subject: 'server',
        reason: 'transactions are read-only here',
        remedy: 'ALTER ROLE … RESET default_transaction_read_only',
      },
    ];
  return [ok('server role', 'server', 'is a writable primary')];
}

/** Behind a pooler in transaction mode LISTEN hears nothing: the PostgreSQL queue then needs a direct URL. */
async function examinePooler(context: ControlContext): Promise<readonly Finding[]> {
  const { config, database } = context;
  if (!(await database.isPooled())) return [ok('pooler', 'DATABASE_URL', 'reaches the server directly')];
  const hasDirect = config.databaseDirectUrl !== undefined && config.databaseDirectUrl !== config.databaseUrl;
  if (hasDirect) return [ok('pooler', 'DATABASE_URL', 'goes through a pooler, DATABASE_DIRECT_URL is set')];
  return [
    {
      level: config.redisUrl === undefined ? 'refuse' : 'warn',
      check: 'pooler',
      subject: 'DATABASE_URL',
      reason: 'goes through a pooler, which in transaction mode lets LISTEN hear nothing',
      remedy: 'set DATABASE_DIRECT_URL to the server itself, or to the same URL where the pooler keeps sessions',
    },
  ];
}

/** With parameters in the server's log, envelopes (not plaintexts) would stand there. */
async function examineParameterLogging(context: ControlContext): Promise<readonly Finding[]> {
  const { rows } = await context.database.query(`SELECT current_setting('log_parameter_max_length_on_error', true)`);
  const length = String(rows[0]?.[0] ?? '0');
  if (length === '0')
    return [
      ok('server log', 'log_parameter_max_length_on_error', 'is 0: failed statements are logged without parameters'),
    ];
  return [
    {
      level: 'warn',
      check: 'server log',
      subject: 'log_parameter_max_length_on_error',
      reason: `is ${length}: a failed statement writes envelopes into the server log`,
      remedy: 'set it to 0',
    },
  ];
}

async function examineQueue(context: ControlContext): Promise<readonly Finding[]> {
  const { config } = context;
  if (config.redisUrl === undefined || config.databaseDirectUrl === undefined)
    return [ok('queue', 'PostgreSQL', 'carries the queue; for many workers set REDIS_URL')];
  try {
    const { readEvictionPolicy } = await import('../queue/eviction-policy.js');
    const policy = await readEvictionPolicy(
      queueAddressOf({ redisUrl: config.redisUrl, databaseDirectUrl: config.databaseDirectUrl }, '00000000'),
    );
    if (policy === undefined || policy === 'noeviction') return [ok('queue', 'Redis', 'answers and evicts nothing')];
    return [
      {
        level: 'refuse',
        check: 'queue',
        subject: 'Redis',
        reason: `maxmemory-policy is ${policy}, so jobs may be evicted`,
        remedy: 'CONFIG SET maxmemory-policy noeviction',
      },
    ];
  } catch (error) {
    if (!isKeyturnError(error)) throw error;
    return [
      {
        level: 'refuse',
        check: 'queue',
        subject: 'Redis',
        reason: error.message,
        remedy: 'start it, or unset REDIS_URL to keep the queue in PostgreSQL',
      },
    ];
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

/** What no backup covers is lost with this database. */
async function examineBackups({ database }: ControlContext): Promise<readonly Finding[]> {
  const { rows } = await database.query(`SELECT to_regclass('keyturn.backup') IS NOT NULL`);
  if (rows[0]?.[0] !== true || (await findClusterId(database)) === undefined) return [];
  const unbacked = await listUnbackedKeys(database);
  if (unbacked.length === 0) return [ok('backup', 'data keys', 'are all in a backup')];
  return [
    {
      level: 'warn',
      check: 'backup',
      subject: 'data keys',
      reason: keysWords(unbacked),
      remedy: 'keyturn backup create --output FILE',
    },
  ];
}

/** What pacing goes by and would not see: a signal that is missing without a word is taken for a calm one. */
async function examineGauges({ config, database }: ControlContext): Promise<readonly Finding[]> {
  if ((await database.query(`SELECT to_regclass('keyturn.cluster') IS NOT NULL`)).rows[0]?.[0] !== true) return [];
  const findings: Finding[] = [];
  if ((await readPaceSettings(database)).cpus === undefined)
    findings.push({
      level: 'warn',
      check: 'pacing',
      subject: 'sessions',
      reason: 'the number of CPUs of the database server is not known, so no run gives way to busy sessions',
      remedy: 'set pace.cpus in keyturn.yaml, then keyturn init',
    });
  // Supervisors log in as the worker role; where none is named, as whoever is connected now.
  const { rows } = await database.query(
    `SELECT quote_ident(rolname), pg_has_role(oid, 'pg_read_all_stats', 'USAGE') FROM pg_roles WHERE rolname = coalesce($1, current_user)`,
    [config.roles.worker ?? null],
  );
  for (const [role, maySeeAll] of rows)
    if (maySeeAll !== true)
      findings.push({
        level: 'warn',
        check: 'pacing',
        subject: String(role),
        reason:
          'cannot see what other sessions do, so no run gives way to busy sessions, vacuums and old transactions, and none moves beside a replica',
        remedy: `GRANT pg_monitor TO ${String(role)}`,
      });
  return findings.length === 0 ? [ok('pacing', 'gauges', 'see every signal that SQL can show')] : findings;
}

/** On this machine; each worker says in its log what it uses. */
export function examineCrypto(isNative: boolean, words: string): Finding {
  const hint = isNative
    ? ''
    : '; where workers are to be faster, build it: npm explore keyturn -- npm run build:native';
  return ok('cryptography', 'OpenSSL', `is called through ${words}${hint}`);
}

/** Registered targets as they are now, then what the file names and `init` has not registered yet. */
async function examineTargets(context: ControlContext): Promise<readonly Finding[]> {
  const { config, database } = context;
  const isInitialized =
    (await database.query(`SELECT to_regclass('keyturn.target') IS NOT NULL`)).rows[0]?.[0] === true &&
    (await findClusterId(database)) !== undefined;
  const registered = isInitialized ? await listRegistered(database) : [];
  const findings: Finding[] = [];
  for (const target of registered) {
    const keyring = await getKeyringById(database, target.keyringId);
    const table = await findTable(database, { oid: target.tableOid });
    const found = await examineRegistered(database, target, keyring.algorithm);
    const canBeRead =
      table !== undefined && !found.some(({ level, check }) => level === 'refuse' && check !== 'adoption');
    const values = canBeRead ? await examineValues(context, keyring, target) : [];
    findings.push(...orOk(targetTitle(table ?? target), table, [...found, ...values]));
  }
  for (const target of config.targets) {
    const algorithm = config.keyrings.find((keyring) => keyring.name === target.keyring)?.algorithm;
    const table = await findTable(database, target);
    const known = registered.find(
      (candidate) => candidate.tableOid === table?.oid || targetTitle(candidate) === targetTitle(target),
    );
    const columns = target.columns.filter(({ name }) => !known?.columns.some((column) => column.name === name));
    if (known === undefined)
      findings.push(...orOk(targetTitle(target), table, examineTarget(target, table, algorithm)));
    else if (columns.length > 0)
      findings.push(
        ...examineTarget(target, table, algorithm).filter((finding) =>
          columns.some(({ name }) => finding.subject === `${targetTitle(target)}.${name}`),
        ),
      );
  }
  return findings;
}

/** Plaintext that came after a column was registered: nothing else sees it before the next run does. */
async function examineValues(
  { database }: ControlContext,
  keyring: StoredKeyring,
  target: RegisteredTarget,
): Promise<readonly Finding[]> {
  try {
    const found = await lookForNonEnvelopes(database, keyring, await getTarget(database, target.id));
    return found.map(({ column, cells, not_envelopes: others, is_exact: isExact }) => ({
      level: 'warn',
      check: 'values',
      subject: column,
      reason: `${others} of ${isExact ? `its ${cells} values` : `${cells} values in a sample of its pages`} are no envelopes: an application that does not encrypt writes them, or they were damaged; a run puts them into quarantine`,
      remedy:
        'end what writes them, then write them anew through the application, or have them moved with keyturn adopt; keyturn target census counts them all',
    }));
  } catch (error) {
    if (!isKeyturnError(error, 'DATABASE_ERROR')) throw error;
    return [
      {
        level: 'warn',
        check: 'values',
        subject: targetTitle(target),
        reason: `whether all its values are envelopes could not be seen: ${error.message}`,
        remedy: 'keyturn target census counts them, however long it takes',
      },
    ];
  }
}

function orOk(title: string, table: CatalogTable | undefined, findings: readonly Finding[]): readonly Finding[] {
  if (table === undefined || findings.some((finding) => finding.level === 'refuse')) return findings;
  return [
    ok(
      'target',
      title,
      `can be rotated: about ${table.estimatedRows} rows by the last ANALYZE, ${Math.ceil(table.totalBytes / 1_048_576)} MiB with its indexes`,
    ),
    ...findings,
  ];
}
