// The part of the wiring that every process shares: connections, root keys, membership. Loads neither the queue nor what
// keyturn.yaml needs.
import { readFileSync } from 'node:fs';
import type { Secret } from './crypto/secret.js';
import { createForeignOpener } from './engine/foreign-keys.js';
import { startMembership, type Membership } from './engine/membership.js';
import type { Connections, Environment } from './environment.js';
import { isKeyturnError, KeyturnError } from './errors.js';
import { loadFormatModules } from './format-modules.js';
import { matchRoots, type HeldRoots, type OpenForeignKey } from './keys/open-keyring.js';
import { refuseDebugging } from './keys/roots/debugging.js';
import { openRootKey } from './keys/roots/open-root-key.js';
import type { RootKey, RootKeyProvider } from './keys/roots/root-key.js';
import { openDatabase, type Database } from './store/database.js';
import { createKeyStore, getClusterId, listRootRecords, listRootUris } from './store/keys.js';
import type { MemberKind } from './store/members.js';
import { requireSchema } from './store/schema.js';
import type { Logger } from './telemetry/logging.js';

export const version: string = readVersion();

function readVersion(): string {
  // dist/src/app.js and src/app.ts are two and one level below package.json.
  for (const up of ['../package.json', '../../package.json']) {
    try {
      const parsed: unknown = JSON.parse(readFileSync(new URL(up, import.meta.url), 'utf8'));
      if (typeof parsed === 'object' && parsed !== null && 'version' in parsed && typeof parsed.version === 'string')
        return parsed.version;
    } catch {
      // Not this level.
    }
  }
  return 'unknown';
}

export interface RootOpener {
  /**
   * Of several URIs those whose key is there, as long as one is: during a root change a process may start with either.
   * Throws ROOT_KEY_UNAVAILABLE when none is, ROOT_KEY_REFUSED for any key that must not be used.
   */
  open(uris: readonly string[], cluster: string): Promise<readonly RootKey[]>;
  forget(fingerprint: Buffer): void;
}

/** Opens each URI once per process: reading `env:` removes the variable. One that was not there is tried again. */
export function createRootOpener(environment: Environment, providers: readonly RootKeyProvider[] = []): RootOpener {
  const opened = new Map<string, RootKey | Promise<RootKey>>();

  async function openOnce(uri: string, cluster: string): Promise<RootKey> {
    const name = `${cluster} ${uri}`;
    const opening =
      opened.get(name) ?? openRootKey(fileUriOf(uri, environment), { cluster, env: environment }, providers);
    opened.set(name, opening);
    try {
      const root = await opening;
      opened.set(name, root);
      return root;
    } catch (error) {
      opened.delete(name);
      throw error;
    }
  }

  return {
    async open(uris, cluster) {
      if (uris.length > 0) refuseDebugging(process);
      const settled = await Promise.allSettled(uris.map((uri) => openOnce(uri, cluster)));
      const roots = settled.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []));
      const failures = settled.flatMap((one) => (one.status === 'rejected' ? [one.reason as unknown] : []));
      const grave = failures.find((error) => !isKeyturnError(error, 'ROOT_KEY_UNAVAILABLE'));
      if (grave !== undefined) throw grave;
      if (roots.length === 0 && failures.length > 0) throw failures[0];
      return roots;
    },
    forget(fingerprint) {
      for (const [name, held] of opened)
        if ('fingerprint' in held && held.fingerprint.equals(fingerprint)) opened.delete(name);
    },
  };
}

/** For a backup that is to hold root keys. Reads each from where it is, so it comes before any opening of `env:`. */
export function createRootExporter(
  environment: Environment,
): (uri: string, cluster: string) => Promise<{ root: RootKey; bytes: Buffer }> {
  return async (uri, cluster) => {
    refuseDebugging(process);
    let kept: Buffer | undefined;
    const root = await openRootKey(fileUriOf(uri, environment), {
      cluster,
      env: environment,
      onBytes: (bytes) => {
        kept = Buffer.alloc(bytes.length);
        bytes.copy(kept);
      },
    });
    if (kept !== undefined) return { root, bytes: kept };
    throw new KeyturnError(
      'ROOT_KEY_REFUSED',
      `the root key ${root.shortFingerprint} does not leave the place where it is kept, so no backup can hold it; leave out --include-roots`,
    );
  };
}

/** `env:NAME` is read from the file that NAME_FILE points at, where NAME itself is not set. */
function fileUriOf(uri: string, environment: Environment): string {
  const name = /^env:(\w+)$/.exec(uri)?.[1];
  if (name === undefined || environment[name] !== undefined) return uri;
  const path = environment[`${name}_FILE`];
  return path === undefined ? uri : `file:${path}`;
}

export function requireDatabaseUrl(connections: Connections): Secret {
  if (connections.databaseUrl !== undefined) return connections.databaseUrl;
  throw new KeyturnError(
    'CONFIG_INVALID',
    'DATABASE_URL is not set; point it at the database that holds the encrypted columns',
  );
}

export interface MemberProcess {
  readonly database: Database;
  readonly membership: Membership;
  readonly cluster: string;
  /** Every root key of the keyrings it holds, by its number in the control schema. */
  heldRoots(): Promise<HeldRoots>;
  close(): Promise<void>;
}

/** Connects, checks schema and root keys, and becomes a member. Closes what it opened when it throws. */
export async function startMember(options: {
  connections: Connections;
  /** Root key URIs of a keyring; undefined for what `init` registered. */
  rootsOf: (keyring: string) => readonly string[] | undefined;
  environment: Environment;
  kind: MemberKind;
  name: string;
  keyrings: readonly string[] | undefined;
  maxConnections: number;
  answerWithinMs?: number;
  /** Where the process answers health and metrics, if it does. */
  healthUrl?: string;
  /** Beside Keyturn's own. */
  rootKeyProviders?: readonly RootKeyProvider[];
  onTrouble: (error: unknown) => void;
}): Promise<MemberProcess> {
  const database = openDatabase({
    url: requireDatabaseUrl(options.connections),
    maxConnections: options.maxConnections,
    applicationName: `keyturn ${options.kind}`,
    answerWithinMs: options.answerWithinMs,
  });
  const rootOpener = createRootOpener(options.environment, options.rootKeyProviders);
  const openRoots = async (keyring: string, cluster: string): Promise<readonly RootKey[]> =>
    rootOpener.open(options.rootsOf(keyring) ?? (await listRootUris(database)).get(keyring) ?? [], cluster);
  try {
    await loadFormatModules(options.environment);
    await requireSchema(database);
    const cluster = await getClusterId(database);
    const membership = await startMembership({
      database,
      store: createKeyStore(database),
      kind: options.kind,
      name: options.name,
      version,
      healthUrl: options.healthUrl,
      keyrings: options.keyrings,
      openRoots: (keyring) => openRoots(keyring, cluster),
      openForeign: reportingTrouble(createForeignOpener(options.environment), options.onTrouble),
      onTrouble: options.onTrouble,
    });
    return {
      database,
      membership,
      cluster,
      async heldRoots() {
        const roots = await Promise.all(membership.keyringNames.map((keyring) => openRoots(keyring, cluster)));
        return matchRoots(roots.flat(), await listRootRecords(database));
      },
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

/** The member goes on without the key and is a laggard; its own log says why. */
function reportingTrouble(open: OpenForeignKey, onTrouble: (error: unknown) => void): OpenForeignKey {
  return async (column) => {
    try {
      return await open(column);
    } catch (error) {
      onTrouble(error);
      throw error;
    }
  };
}

export function troubleLogger(log: Logger): (error: unknown) => void {
  return (error) => log.warn({ err: error }, 'trouble');
}
