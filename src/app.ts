// The only wiring: configuration, databases, key stores, root keys, membership, queue and engine put together, once per
// kind of process. Everything else gets what it needs as arguments.
import { existsSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { loadConfig, loadConnectionConfig, type Config, type ConfigFile, type Environment } from './config.js';
import { noConfigFile, type OpenControlFunction } from './control/context.js';
import { Secret } from './crypto/secret.js';
import { claimQueue, joinQueue, requireSameQueue } from './engine/agree-queue.js';
import { createColumn, type Column } from './engine/column.js';
import { startMembership, type Membership } from './engine/membership.js';
import { createInlineCrypto, createThreadCrypto, type SliceCrypto } from './engine/slice-crypto.js';
import { passPoint, type ReachPoint } from './engine/services.js';
import { startSupervisor } from './engine/supervisor.js';
import { workBatch } from './engine/work-batch.js';
import { KeyturnError } from './errors.js';
import { openRootKey } from './keys/roots/open-root-key.js';
import type { RootKey } from './keys/roots/root-key.js';
import { consumeBatches } from './queue/consume.js';
import { queueAddressOf, type QueueAddress } from './queue/connection.js';
import { openBatchQueue } from './queue/jobs.js';
import { targetTitle } from './rotation/target.js';
import { openDatabase, type Database } from './store/database.js';
import { createKeyStore, getClusterId, listRootUris } from './store/keys.js';
import { listTargets } from './store/registry.js';
import { requireSchema } from './store/schema.js';
import type { MemberKind } from './store/members.js';
import { createLogger, type Logger } from './telemetry/logging.js';

export const version: string = readVersion();

function readVersion(): string {
  // dist/src/app.js and src/app.ts are two and one level below package.json.
  for (const up of ['../package.json', '../../package.json']) {
    try {
      const parsed: unknown = JSON.parse(readFileSync(new URL(up, import.meta.url), 'utf8'));
      if (typeof parsed === 'object' && parsed !== null && 'version' in parsed && typeof parsed.version === 'string') return parsed.version;
    } catch {
      // Not this level.
    }
  }
  return 'unknown';
}

/** Opens each URI once per process: reading `env:` removes the variable. */
function createRootOpener(environment: Environment): (uris: readonly string[], cluster: string) => Promise<readonly RootKey[]> {
  const opened = new Map<string, Promise<RootKey>>();
  return (uris, cluster) =>
    Promise.all(
      uris.map((uri) => {
        const name = `${cluster} ${uri}`;
        const root = opened.get(name) ?? openRootKey(fileUriOf(uri, environment), { cluster, env: environment });
        opened.set(name, root);
        return root;
      }),
    );
}

/** `env:NAME` is read from the file that NAME_FILE points at, where NAME itself is not set. */
function fileUriOf(uri: string, environment: Environment): string {
  const name = /^env:(\w+)$/.exec(uri)?.[1];
  if (name === undefined || environment[name] !== undefined) return uri;
  const path = environment[`${name}_FILE`];
  return path === undefined ? uri : `file:${path}`;
}

function requireDatabaseUrl(config: Config): Secret {
  if (config.databaseUrl !== undefined) return config.databaseUrl;
  throw new KeyturnError('CONFIG_INVALID', 'DATABASE_URL is not set; point it at the database that holds the encrypted columns');
}

/** The operator's verbs, without connecting yet. */
export const openControl: OpenControlFunction = (options) => {
  const config = options.file === noConfigFile ? loadConnectionConfig(options.environment) : loadConfig(options.environment, options.file);
  const database = openDatabase({ url: requireDatabaseUrl(config), maxConnections: 3, applicationName: 'keyturn' });
  return {
    context: { database, config, openRoots: createRootOpener(options.environment), onProgress: options.onProgress ?? (() => undefined) },
    close: () => database.close(),
  };
};

interface MemberProcess {
  readonly database: Database;
  readonly membership: Membership;
  readonly cluster: string;
  close(): Promise<void>;
}

/** Connects, checks schema and root keys, and becomes a member. Closes what it opened when it throws. */
async function startMember(options: {
  config: Config;
  environment: Environment;
  kind: MemberKind;
  name: string;
  keyrings: readonly string[] | undefined;
  maxConnections: number;
  onTrouble: (error: unknown) => void;
}): Promise<MemberProcess> {
  const database = openDatabase({ url: requireDatabaseUrl(options.config), maxConnections: options.maxConnections, applicationName: `keyturn ${options.kind}` });
  const openRoots = createRootOpener(options.environment);
  try {
    await requireSchema(database);
    const cluster = await getClusterId(database);
    const membership = await startMembership({
      database,
      store: createKeyStore(database),
      kind: options.kind,
      name: options.name,
      version,
      keyrings: options.keyrings,
      openRoots: async (keyring) => {
        const fromFile = options.config.keyrings.find((candidate) => candidate.name === keyring)?.roots;
        return openRoots(fromFile ?? (await listRootUris(database)).get(keyring) ?? [], cluster);
      },
      onTrouble: options.onTrouble,
    });
    return {
      database,
      membership,
      cluster,
      async close() {
        await membership.close();
        await database.close();
      },
    };
  } catch (error) {
    await database.close();
    throw error;
  }
}

function queueAddress(config: Config, cluster: string): QueueAddress {
  return queueAddressOf({ redisUrl: config.redisUrl, databaseDirectUrl: config.databaseDirectUrl ?? requireDatabaseUrl(config) }, cluster);
}

export interface LongRunning {
  /** Drains and gives everything back. Safe twice. */
  stop(): Promise<void>;
  /** Rejects when the process cannot go on; resolves after `stop`. */
  readonly ended: Promise<void>;
}

export interface ProcessOptions {
  readonly environment: Environment;
  /** Reported to the operator; default host name. */
  readonly name: string;
  /** Ends a start that is still waiting for something; what was started by then has to be stopped as ever. */
  readonly signal?: AbortSignal;
}

const sameQueueCheckMs = 5_000;

/** A worker: a member that takes batches from the queue. Reads the registry, never keyturn.yaml. */
export async function startWorker(options: ProcessOptions & { reachPoint?: ReachPoint }): Promise<LongRunning> {
  const config = loadConnectionConfig(options.environment);
  const log = createLogger({ level: config.logLevel, name: 'keyturn-worker' });
  const member = await startMember({ ...options, config, kind: 'worker', keyrings: undefined, maxConnections: 5, onTrouble: troubleLogger(log) });
  const address = queueAddress(config, member.cluster);
  const queue = openBatchQueue(address);
  try {
    await joinQueue(member.database, queue, address, { signal: options.signal ?? new AbortController().signal, onWait: (words) => log.info(words) });
  } catch (error) {
    await queue.close();
    await member.close();
    throw error;
  }
  await queue.close();
  const crypto = createSliceCrypto();
  const services = { database: member.database, crypto, keyrings: member.membership, memberId: member.membership.id, reachPoint: options.reachPoint ?? passPoint };
  const consumer = consumeBatches(address, {
    async handle(job, signal) {
      const worked = await workBatch(services, job, signal);
      if (worked.end === 'dropped') log.debug({ batch: job.batchId, generation: job.generation }, 'job dropped');
      else log.info({ batch: job.batchId, run: worked.batch.runId, end: worked.end, ...('cause' in worked ? { cause: worked.cause } : {}) }, `batch ${worked.end}`);
    },
    onTrouble: troubleLogger(log),
  });
  log.info({ member: member.membership.id, queue: address.backend, keyrings: member.membership.keyringNames }, 'worker ready');
  const watch = watchQueue(member.database, address, troubleLogger(log));
  return longRunning(watch.lost, async () => {
    watch.stop();
    await consumer.stop();
    await crypto.close();
    await member.close();
    log.info('worker stopped');
  });
}

/** Two keep up with one PostgreSQL backend; on one core more than one would only take turns. */
const cryptoThreads = Math.min(2, availableParallelism());

/** Threads need the compiled module; run from sources, a worker reencrypts on its event loop. */
function createSliceCrypto(): SliceCrypto {
  const entry = new URL('./engine/slice-thread.js', import.meta.url);
  return existsSync(entry) ? createThreadCrypto(entry, cryptoThreads) : createInlineCrypto();
}

/** The supervisor: plans runs, feeds the queue, mends what got lost. Any number may run; one leads. */
export async function startSupervisorProcess(options: ProcessOptions): Promise<LongRunning> {
  const config = loadConnectionConfig(options.environment);
  const log = createLogger({ level: config.logLevel, name: 'keyturn-supervisor' });
  const database = openDatabase({ url: requireDatabaseUrl(config), maxConnections: 4, applicationName: 'keyturn supervisor' });
  let address: QueueAddress;
  let queue;
  let marker;
  try {
    await requireSchema(database);
    address = queueAddress(config, await getClusterId(database));
    queue = openBatchQueue(address);
    marker = await claimQueue(database, queue, address);
  } catch (error) {
    await queue?.close();
    await database.close();
    throw error;
  }
  const openQueue = queue;
  const supervisor = startSupervisor({ database, queue, marker, onTrouble: troubleLogger(log), onEvent: (event, details) => log.info(details, event) });
  log.info({ queue: address.backend, prefix: address.prefix }, 'supervisor ready');
  const watch = watchQueue(database, address, troubleLogger(log));
  return longRunning(watch.lost, async () => {
    watch.stop();
    await supervisor.stop();
    await openQueue.close();
    await database.close();
    log.info('supervisor stopped');
  });
}

function troubleLogger(log: Logger): (error: unknown) => void {
  return (error) => log.warn({ err: error }, 'trouble');
}

/** Ends the process when the cluster has moved to another queue: it would wait for jobs that never come. */
function watchQueue(database: Database, address: QueueAddress, onTrouble: (error: unknown) => void): { lost: Promise<never>; stop(): void } {
  let timer: NodeJS.Timeout | undefined;
  const lost = new Promise<never>((_, reject) => {
    timer = setInterval(() => {
      requireSameQueue(database, address).catch((error: unknown) => {
        if (error instanceof KeyturnError && error.code === 'QUEUE_MISMATCH') reject(error);
        else onTrouble(error);
      });
    }, sameQueueCheckMs);
  });
  return { lost, stop: () => clearInterval(timer) };
}

function longRunning(lost: Promise<never>, stop: () => Promise<void>): LongRunning {
  let stopped: Promise<void> | undefined;
  let resolveStopped: () => void = () => undefined;
  const untilStopped = new Promise<void>((resolve) => {
    resolveStopped = resolve;
  });
  const ended = Promise.race([untilStopped, lost]);
  // Whoever awaits `ended` sees the rejection; nobody awaiting it must not end the process.
  ended.catch(() => undefined);
  return {
    ended,
    stop() {
      stopped ??= stop().finally(resolveStopped);
      return stopped;
    },
  };
}

export interface Keyturn {
  /** Throws TARGET_NOT_FOUND. `column` is the column's name, `column.path` for a jsonb path. */
  column(table: string, column: string): Column;
  /** Leaves the membership and closes the connections. Safe twice. */
  close(): Promise<void>;
}

export interface OpenKeyturnOptions {
  /** Path of keyturn.yaml, or its content. Default: KEYTURN_CONFIG, then ./keyturn.yaml. */
  readonly config?: string | ConfigFile;
  /** Default: process.env. */
  readonly environment?: Environment;
  /** The member's name, as the operator sees it. Default: `application`. */
  readonly name?: string;
}

/**
 * Opens Keyturn in an application: connects, opens the root keys, loads the keyrings that keyturn.yaml names and becomes a
 * member until `close()`. Throws CONFIG_INVALID, NOT_INITIALIZED, MASTER_KEY_MISMATCH, DATABASE_UNAVAILABLE.
 */
export async function openKeyturn(options: OpenKeyturnOptions = {}): Promise<Keyturn> {
  const environment = options.environment ?? process.env;
  const config = loadConfig(environment, options.config);
  const log = createLogger({ level: config.logLevel, name: 'keyturn' });
  const member = await startMember({
    config,
    environment,
    kind: 'application',
    name: options.name ?? 'application',
    keyrings: config.keyrings.map((keyring) => keyring.name),
    maxConnections: 2,
    onTrouble: troubleLogger(log),
  });
  const targets = await listTargets(member.database).catch(async (error: unknown) => {
    await member.close();
    throw error;
  });
  let closed: Promise<void> | undefined;
  return {
    column(table, column) {
      const wanted = table.includes('.') ? table : `public.${table}`;
      const target = targets.find((candidate) => targetTitle(candidate) === wanted);
      if (target !== undefined) return createColumn(member.membership, target, column);
      throw new KeyturnError('TARGET_NOT_FOUND', `there is no target "${table}"; registered: ${targets.map(targetTitle).join(', ') || 'none'}; add it to keyturn.yaml and run: keyturn init`, { target: table });
    },
    close() {
      closed ??= member.close();
      return closed;
    },
  };
}
