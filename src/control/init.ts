// init: brings schema, keyrings, first data keys and targets into the database, each only where missing. Refuses a wrong
// root key before the first write. The only writer of the registry besides `target rename`.
import { randomUUID } from 'node:crypto';
import type { ColumnConfig, Config, TargetConfig } from '../config.js';
import { holdsOtherForm } from '../engine/awaiting-adoption.js';
import { examineTarget, type Finding } from '../engine/preflight.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { matchRoots, openKeyringOrRefuse } from '../keys/open-keyring.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { postgresQueueSchema } from '../queue/address.js';
import { migrateQueueSchema } from '../queue/schema.js';
import { healthSources, type HealthSource } from '../rotation/health.js';
import { targetTitle } from '../rotation/target.js';
import { findTable, type CatalogTable } from '../store/catalog.js';
import type { Queryable } from '../store/database.js';
import { convergeFences, listFenceTroubles } from '../engine/fence.js';
import { grantsFor, type GrantedTarget, type TableGrant } from '../store/grants.js';
import {
  activateKey,
  findClusterId,
  getClusterId,
  getKeyring,
  insertClusterIfAbsent,
  insertKeyring,
  insertRootRecord,
  listKeyringNames,
  listRootRecords,
  lockKeyring,
  updateKeyring,
} from '../store/keys.js';
import { setExpectedMembers } from '../store/members.js';
import { writePaceSettings } from '../store/pace-settings.js';
import {
  bindingsLost,
  endAwaiting,
  insertColumn,
  insertTarget,
  keyOfTable,
  listRegistered,
  placeOf,
  renameColumn,
  renameTarget,
  type RegisteredColumn,
  type RegisteredTarget,
  type TargetPlace,
} from '../store/registry.js';
import { analyzeRegistry, migrate, requireOwnership, requireSchema } from '../store/schema.js';
import { ensureAuditKey, sealRecord } from './audit.js';
import { patienceOf, type ControlContext } from './context.js';
import { insertNewKey, proveReadable, stageIn } from './keys.js';
import { repairRoots } from './repair-roots.js';

export interface InitReport {
  readonly migrations: readonly string[];
  /** Root keys whose record or token was lost or older than the wraps, and was written anew. */
  readonly repairedRoots: readonly string[];
  readonly keyrings: readonly { name: string; activeKeyId: number; isNew: boolean }[];
  readonly targets: readonly {
    name: string;
    columns: readonly string[];
    change: 'registered' | 'extended' | 'renamed' | 'unchanged';
  }[];
  readonly warnings: readonly Finding[];
  readonly grants: readonly string[];
}

/** Leaves one active key and one standby in every keyring. Idempotent: a second call changes nothing and says so. */
export async function init(context: ControlContext, reason?: string): Promise<InitReport> {
  const { config, database } = context;
  const url = config.databaseUrl;
  if (url === undefined)
    throw new KeyturnError(
      'CONFIG_INVALID',
      'DATABASE_URL is not set; point it at the database that holds the encrypted columns',
    );
  await requireOwnership(database, ['keyturn', postgresQueueSchema]);
  const paceSettings = paceSettingsOf(config);
  const rootsByKeyring = await openAndCheckRoots(context);
  context.onProgress('migrating the control schema');
  const migrations = await migrate(url);
  await migrateQueueSchema(config.databaseDirectUrl ?? url);
  await requireSchema(database);
  await analyzeRegistry(database);
  const repairedRoots = await repairRoots(context, (name) => rootsByKeyring(name).roots);
  const keyrings = [];
  for (const keyring of config.keyrings)
    keyrings.push(await ensureKeyring(context, keyring.name, rootsByKeyring(keyring.name), reason));
  const registered = await registerTargets(context, reason);
  const roots = config.keyrings.flatMap((keyring) => rootsByKeyring(keyring.name).roots);
  await database.transaction((client) => setExpectedMembers(client, config.expectMembers, reason ?? 'keyturn.yaml'));
  await database.transaction((client) => writePaceSettings(client, paceSettings));
  await ensureAudit(context, roots, reason);
  for (const { name } of keyrings) await stageIn(context, await getKeyring(database, name), reason);
  const { grants, warnings } = await grantRoles(context);
  const fences = await mendFences(context);
  await analyzeRegistry(database);
  return {
    migrations,
    repairedRoots,
    keyrings,
    ...registered,
    warnings: [...registered.warnings, ...warnings, ...fences],
    grants,
  };
}

/** A table that is new here, or whose fence somebody touched, gets the fence that all others have. */
async function mendFences(context: ControlContext): Promise<readonly Finding[]> {
  const { database } = context;
  const before = await listFenceTroubles(database);
  if (before.length === 0) return [];
  try {
    await convergeFences(database, patienceOf(context));
    return [];
  } catch (error) {
    // A table that is another owner's, or busy, is left to a later init; one that was not looked at is no success.
    if (!isKeyturnError(error) || error.kind === 'unavailable') throw error;
    const subject = String(error.details['table'] ?? before[0]?.table);
    return [{ level: 'warn', check: 'fence', subject, reason: error.message, remedy: 'then run keyturn init again' }];
  }
}

/** The audit key, and a seal over everything recorded so far. */
async function ensureAudit(
  context: ControlContext,
  roots: readonly RootKey[],
  reason: string | undefined,
): Promise<void> {
  const { database } = context;
  await database.transaction(async (client) => {
    await client.query('LOCK TABLE keyturn.cluster IN SHARE ROW EXCLUSIVE MODE');
    const cluster = await findClusterId(client);
    if (cluster !== undefined) await ensureAuditKey(client, { cluster, roots }, reason);
  });
  await sealRecord(context, matchRoots(roots, await listRootRecords(database)));
}

/** Throws CONFIG_INVALID for a source of health that does not exist. */
function paceSettingsOf({ pace, source }: Config): Parameters<typeof writePaceSettings>[1] {
  const isKnown = (name: string): name is HealthSource => healthSources.some((known) => known === name);
  const unknown = pace.optional?.filter((name) => !isKnown(name)) ?? [];
  if (unknown.length === 0) return { cpus: pace.cpus, optional: pace.optional?.filter(isKnown) };
  throw new KeyturnError(
    'CONFIG_INVALID',
    `${source}: pace.optional names ${unknown.join(', ')}; known: ${healthSources.join(', ')}`,
    { source },
  );
}

/**
 * Rights on application tables are granted only where they are missing, since the owner of our schemas may not be theirs.
 * What this login may not grant is left to whoever may, with the statements to run.
 */
async function grantRoles({
  config,
  database,
}: ControlContext): Promise<{ grants: readonly string[]; warnings: readonly Finding[] }> {
  const { own, tables } = grantsFor(config.roles, grantedTargets(config.targets));
  const grants = [...own];
  const warnings: Finding[] = [];
  for (const statement of own) await database.query(statement);
  const holds = async ({ isHeld }: TableGrant): Promise<boolean> =>
    (await database.query(isHeld)).rows[0]?.[0] === true;
  for (const right of tables) {
    // A login that may not grant is refused, or, where it holds a right itself, merely warned.
    if (!(await holds(right))) {
      for (const statement of right.statements) await database.query(statement).catch(ignoreForbidden);
    }
    if (await holds(right)) grants.push(...right.statements);
    else
      warnings.push({
        level: 'warn',
        check: 'rights',
        subject: right.table,
        reason: `role ${right.role} lacks them there, and this login may not grant them`,
        remedy: right.statements.map((statement) => `${statement};`).join(' '),
      });
  }
  return { grants, warnings };
}

function ignoreForbidden(error: unknown): void {
  if (!isKeyturnError(error, 'FORBIDDEN')) throw error;
}

export function grantedTargets(targets: readonly TargetConfig[]): readonly GrantedTarget[] {
  return targets.map((target) => ({
    schema: target.schema,
    table: target.table,
    columns: [...new Set(target.columns.map((column) => column.column))],
  }));
}

/**
 * Opens the root keys and, on a database that has keys already, checks that they are the right ones. On a new database
 * the cluster id that the fingerprints depend on is chosen here and stored by the first transaction.
 */
async function openAndCheckRoots(
  context: ControlContext,
): Promise<(keyring: string) => { cluster: string; roots: readonly RootKey[] }> {
  const { config, database } = context;
  const existing = await findClusterIfInitialized(database);
  const cluster = existing ?? randomUUID();
  const opened = new Map<string, readonly RootKey[]>();
  for (const keyring of config.keyrings) opened.set(keyring.name, await context.openRoots(keyring.roots, cluster));
  if (existing !== undefined) {
    const known = await listRootRecords(database);
    for (const name of await listKeyringNames(database)) {
      const roots = opened.get(name);
      if (roots !== undefined) await openKeyringOrRefuse(await getKeyring(database, name), roots, known);
    }
  }
  return (keyring) => ({ cluster, roots: opened.get(keyring) ?? [] });
}

async function findClusterIfInitialized(database: Queryable): Promise<string | undefined> {
  const { rows } = await database.query(`SELECT to_regclass('keyturn.cluster') IS NOT NULL`);
  return rows[0]?.[0] === true ? findClusterId(database) : undefined;
}

const firstKey = 'first key of the keyring';

/** The first keys of a keyring come into being here, under a lock: two inits at once end with one active key. */
async function ensureKeyring(
  context: ControlContext,
  name: string,
  given: { cluster: string; roots: readonly RootKey[] },
  reason: string | undefined,
): Promise<InitReport['keyrings'][number]> {
  const { database, config } = context;
  const settings = config.keyrings.find((keyring) => keyring.name === name);
  if (settings === undefined)
    throw new KeyturnError('KEYRING_NOT_FOUND', `keyring "${name}" is not in ${config.source}`);
  const registered = {
    name,
    algorithm: settings.algorithm,
    rootUris: settings.roots,
    cryptoperiodDays: settings.cryptoperiodDays,
    backupPolicy: settings.backup,
  };
  const isNew = await database.transaction(async (client) => {
    await client.query('LOCK TABLE keyturn.cluster IN SHARE ROW EXCLUSIVE MODE');
    await insertClusterIfAbsent(client, given.cluster);
    if ((await getClusterId(client)) !== given.cluster)
      throw new KeyturnError(
        'KEY_STATE_REFUSED',
        'another init created this cluster a moment ago; run keyturn init again',
      );
    if (!(await listKeyringNames(client)).includes(name)) await insertKeyring(client, randomUUID(), registered, reason);
    else await updateKeyring(client, registered, reason);
    const keyring = await lockKeyring(client, name);
    if (keyring.keys.length > 0) return false;
    const known = await listRootRecords(client);
    const [preferred] = given.roots;
    if (preferred !== undefined && matchRoots([preferred], known).size === 0)
      await insertRootRecord(
        client,
        { fingerprint: preferred.fingerprint, uri: settings.roots[0] ?? '' },
        (rootId) => preferred.createToken(rootId),
        reason,
      );
    await insertNewKey(client, keyring, matchRoots(given.roots, await listRootRecords(client)), {
      reason: reason ?? firstKey,
    });
    return true;
  });
  const keyring = await getKeyring(database, name);
  const staged = keyring.keys.find((key) => key.state === 'staged');
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active === undefined && staged !== undefined) {
    const { roots } = await openKeyringOrRefuse(keyring, given.roots, await listRootRecords(database));
    await proveReadable(context, keyring, staged, roots);
    await database.transaction(async (client) => {
      const locked = await lockKeyring(client, name);
      if (!locked.keys.some((key) => key.state === 'active'))
        await activateKey(client, locked, staged, reason ?? firstKey);
    });
  }
  const after = await getKeyring(database, name);
  return { name, activeKeyId: Number(after.keys.find((key) => key.state === 'active')?.id), isNew };
}

type RegistryReport = Pick<InitReport, 'targets' | 'warnings'>;

/** Every target is examined before the first is written: a refused one leaves the registry as it was. */
async function registerTargets(context: ControlContext, reason: string | undefined): Promise<RegistryReport> {
  const { database, config } = context;
  const warnings: Finding[] = [];
  const refusals: Finding[] = [];
  const examined: { target: TargetConfig; table: CatalogTable }[] = [];
  for (const target of config.targets) {
    const keyring = config.keyrings.find((candidate) => candidate.name === target.keyring);
    const table = await findTable(database, target);
    const findings = examineTarget(target, table, keyring?.algorithm);
    warnings.push(...findings.filter((finding) => finding.level === 'warn'));
    refusals.push(...findings.filter((finding) => finding.level === 'refuse'));
    if (table !== undefined) examined.push({ target, table });
  }
  if (refusals.length > 0) {
    throw new KeyturnError(
      'PREFLIGHT_REFUSED',
      `${refusals.length} ${refusals.length === 1 ? 'reason' : 'reasons'} not to register: ${refusals.map((finding) => `${finding.subject}: ${finding.reason}; ${finding.remedy}`).join(' | ')}`,
      {
        subjects: refusals.map((finding) => finding.subject),
      },
    );
  }
  const targets = await database.transaction(async (client) => {
    await client.query('LOCK TABLE keyturn.target IN SHARE ROW EXCLUSIVE MODE');
    const results: RegistryReport['targets'][number][] = [];
    for (const { target, table } of examined) results.push(await registerTarget(client, target, table, reason));
    return results;
  });
  return { targets, warnings: [...warnings, ...leftOut(config, await listRegistered(database))] };
}

/** What is registered and no longer in the file stays registered: its envelopes are there, and runs go on covering them. */
function leftOut(config: ControlContext['config'], registered: readonly RegisteredTarget[]): readonly Finding[] {
  return config.targets.flatMap((target) => {
    const title = targetTitle(target);
    const columns = registered.find((candidate) => targetTitle(candidate) === title)?.columns ?? [];
    return columns
      .filter(({ name }) => !target.columns.some((column) => column.name === name))
      .map(
        ({ name }): Finding => ({
          level: 'warn',
          check: 'registry',
          subject: `${title}.${name}`,
          reason: `it is registered and not in ${config.source} any more; runs go on covering it`,
          remedy: 'list it again',
        }),
      );
  });
}

/** By name; else by oid (the table was renamed); else new. */
async function registerTarget(
  client: Queryable,
  target: TargetConfig,
  table: CatalogTable,
  reason: string | undefined,
): Promise<RegistryReport['targets'][number]> {
  const registry = await listRegistered(client);
  const keyringId = (await getKeyring(client, target.keyring)).id;
  const byName = registry.find((candidate) => candidate.schema === target.schema && candidate.table === target.table);
  const found = byName ?? registry.find((candidate) => candidate.tableOid === table.oid);
  const place = placeOf(table, target.scopeColumn);
  const name = targetTitle(target);
  if (found === undefined) {
    const columns: RegisteredColumn[] = [];
    for (const column of target.columns) columns.push(await newColumn(client, table, column));
    // The key's kinds are known: the examination refuses every other type.
    const keyTags = keyOfTable(table).keyTags.filter((tag) => tag !== undefined);
    await insertTarget(client, { ...place, id: randomUUID(), keyringId, keyTags, columns }, reason);
    return { name, columns: columns.map((column) => column.name), change: 'registered' };
  }
  if (found.tableOid !== table.oid) await refuseSecondTable(client, name, found);
  const lost = [
    ...(found.keyringId === keyringId ? [] : ['its keyring']),
    ...bindingsLost(found, table, target.scopeColumn),
  ];
  if (lost.length > 0) {
    throw new KeyturnError(
      'TARGET_INVALID',
      `target ${name} is registered and ${lost.join(' and ')} cannot change, because every envelope is bound to it; change it back`,
      { target: name },
    );
  }
  const isMoved = Object.entries(place).some(
    ([part, value]) => JSON.stringify(value) !== JSON.stringify(found[part as keyof TargetPlace]),
  );
  if (isMoved) await renameTarget(client, found, place, reason);
  const extended = await registerColumns(client, found, target, table, reason);
  return {
    name,
    columns: target.columns.map((column) => column.name),
    change: isMoved ? 'renamed' : extended ? 'extended' : 'unchanged',
  };
}

/** A table of the registered name while the registered table lives on under another: only a person knows where the rows are. */
async function refuseSecondTable(client: Queryable, name: string, found: RegisteredTarget): Promise<void> {
  const before = await findTable(client, { oid: found.tableOid });
  if (before === undefined) return;
  throw new KeyturnError(
    'TARGET_INVALID',
    `target ${name} is registered for the table that is now called ${targetTitle(before)}, and ${name} is another table; say where its rows are with: keyturn target rename ${name} ${targetTitle(before)}, or: keyturn target rename ${name} ${name}`,
    { target: name },
  );
}

async function registerColumns(
  client: Queryable,
  found: RegisteredTarget,
  target: TargetConfig,
  table: CatalogTable,
  reason: string | undefined,
): Promise<boolean> {
  let isChanged = false;
  for (const column of target.columns) {
    const wanted = registeredColumn(table, column);
    const known =
      found.columns.find((candidate) => candidate.name === column.name) ??
      found.columns.find(
        (candidate) => sameAddress(candidate, wanted) && !target.columns.some((other) => other.name === candidate.name),
      );
    if (known === undefined) {
      await insertColumn(client, found, await newColumn(client, table, column), reason);
      isChanged = true;
      continue;
    }
    if (known.awaitsAdoption && !(await holdsOtherForm(client, table, known))) await endAwaiting(client, known);
    refuseOtherColumn(found, known, wanted, table);
    if (known.bind !== wanted.bind || known.format !== wanted.format) {
      throw new KeyturnError(
        'TARGET_INVALID',
        `column ${targetTitle(target)}.${column.name} is registered with format ${known.format}, bind ${known.bind}; its envelopes depend on both, so they cannot become ${wanted.format}, ${wanted.bind}`,
        { column: column.name },
      );
    }
    if (known.name !== wanted.name || !sameAddress(known, wanted) || known.columnName !== wanted.columnName) {
      await renameColumn(client, found, known, wanted, reason);
      isChanged = true;
    }
  }
  return isChanged;
}

/** The same name for other values: a path that changed, or a new column while the registered one lives on renamed. */
function refuseOtherColumn(
  found: RegisteredTarget,
  known: RegisteredColumn,
  wanted: RegisteredColumn,
  table: CatalogTable,
): void {
  const title = `${targetTitle(table)}.${known.name}`;
  if (JSON.stringify(known.path) !== JSON.stringify(wanted.path)) {
    throw new KeyturnError(
      'TARGET_INVALID',
      `column ${title} is registered with another path, under which its envelopes lie; give the new path a name of its own`,
      { column: known.name },
    );
  }
  const renamed =
    found.tableOid === table.oid && known.attribute !== wanted.attribute
      ? table.columns.find((column) => column.attribute === known.attribute)
      : undefined;
  if (renamed === undefined) return;
  throw new KeyturnError(
    'TARGET_INVALID',
    `column ${title} is registered for the column that is now called ${renamed.name}, and ${known.columnName} is another column; list ${renamed.name} in its place and run keyturn init, then add ${known.columnName}`,
    { column: known.name },
  );
}

function sameAddress(a: RegisteredColumn, b: RegisteredColumn): boolean {
  return a.attribute === b.attribute && JSON.stringify(a.path) === JSON.stringify(b.path);
}

async function newColumn(client: Queryable, table: CatalogTable, column: ColumnConfig): Promise<RegisteredColumn> {
  const made = registeredColumn(table, column);
  return { ...made, awaitsAdoption: await holdsOtherForm(client, table, made) };
}

function registeredColumn(table: CatalogTable, column: ColumnConfig): RegisteredColumn {
  return {
    id: randomUUID(),
    name: column.name,
    attribute: attributeOf(table, column.column) ?? 0,
    columnName: column.column,
    path: column.path,
    format: column.format,
    bind: column.bind,
    awaitsAdoption: false,
  };
}

function attributeOf(table: CatalogTable, name: string | undefined): number | undefined {
  return name === undefined ? undefined : table.columns.find((column) => column.name === name)?.attribute;
}
