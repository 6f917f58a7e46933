// The wiring of the library and of the operator's verbs: configuration, database and membership put together. Everything
// else gets what it needs as arguments. Workers and supervisors are wired in app-runners.ts.
import { createRootExporter, createRootOpener, requireDatabaseUrl, startMember, troubleLogger } from './app-member.js';
import { loadConfig, loadConnectionConfig, type ConfigFile, type Environment } from './config.js';
import { noConfigFile, type OpenControlFunction } from './control/context.js';
import { createColumn, type Column } from './engine/column.js';
import { startLazyUpgrades } from './engine/lazy-upgrade.js';
import type { ApplicationParts } from './engine/services.js';
import { KeyturnError } from './errors.js';
import type { RootKeyProvider } from './keys/roots/root-key.js';
import { readEntityTargets } from './entity-modules.js';
import { loadFormatModules } from './format-modules.js';
import { targetTitle } from './rotation/target.js';
import { openDatabase } from './store/database.js';
import { listTargets, listTargetsOfEntities } from './store/registry.js';
import { createLogger } from './telemetry/logging.js';

export { version } from './app-member.js';

/** The operator's verbs, without connecting yet. */
export const openControl: OpenControlFunction = (options) => {
  const config =
    options.file === noConfigFile
      ? loadConnectionConfig(options.environment)
      : loadConfig(options.environment, options.file);
  const database = openDatabase({ url: requireDatabaseUrl(config), maxConnections: 3, applicationName: 'keyturn' });
  const rootOpener = createRootOpener(options.environment);
  return {
    context: {
      database,
      config,
      openRoots: rootOpener.open,
      forgetRoot: rootOpener.forget,
      loadFormats: () => loadFormatModules(options.environment),
      readEntities: readEntityTargets,
      exportRoot: createRootExporter(options.environment),
      onProgress: options.onProgress ?? (() => undefined),
    },
    close: () => database.close(),
  };
};

export interface Keyturn {
  /** Throws TARGET_NOT_FOUND. `column` is the column's name, `column.path` for a jsonb path. */
  column(table: string, column: string): Column;
  /** What an integration with an ORM is built of; applications need `column`. */
  readonly parts: ApplicationParts;
  /** Writes the lazy upgrades that are queued (two seconds at most), leaves the membership and closes the connections. Safe twice. */
  close(): Promise<void>;
}

export interface OpenKeyturnOptions {
  /** Path of keyturn.yaml, or its content. Default: KEYTURN_CONFIG, then ./keyturn.yaml. */
  readonly config?: string | ConfigFile;
  /** Default: process.env. */
  readonly environment?: Environment;
  /** The member's name, as the operator sees it. Default: `application`. */
  readonly name?: string;
  /** Root key providers beside Keyturn's own, for URIs with their scheme; see docs/root-keys.md. */
  readonly rootKeyProviders?: readonly RootKeyProvider[];
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
    connections: config,
    rootsOf: (keyring) => config.keyrings.find((candidate) => candidate.name === keyring)?.roots,
    environment,
    kind: 'application',
    name: options.name ?? 'application',
    keyrings: config.keyrings.map((keyring) => keyring.name),
    maxConnections: 2,
    ...(options.rootKeyProviders === undefined ? {} : { rootKeyProviders: options.rootKeyProviders }),
    onTrouble: troubleLogger(log),
  });
  const [targets, targetsOfEntities] = await Promise.all([
    listTargets(member.database),
    listTargetsOfEntities(member.database),
  ]).catch(async (error: unknown) => {
    await member.close();
    throw error;
  });
  const upgrades = startLazyUpgrades({
    database: member.database,
    keyrings: member.membership,
    memberId: member.membership.id,
    onTrouble: troubleLogger(log),
  });
  let closed: Promise<void> | undefined;
  return {
    parts: { targets, targetsOfEntities, keyrings: member.membership, upgrades },
    column(table, column) {
      const wanted = table.includes('.') ? table : `public.${table}`;
      const target = targets.find((candidate) => targetTitle(candidate) === wanted);
      if (target !== undefined) return createColumn(member.membership, target, column, upgrades);
      throw new KeyturnError(
        'TARGET_NOT_FOUND',
        `there is no target "${table}"; registered: ${targets.map(targetTitle).join(', ') || 'none'}; add it to keyturn.yaml and run: keyturn init`,
        { target: table },
      );
    },
    close() {
      closed ??= upgrades.close().then(() => member.close());
      return closed;
    },
  };
}
