// The operator's verbs on targets: list, census, rename.
import { formatIn } from '../engine/cells-of-target.js';
import { convergeFences } from '../engine/fence.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { ForeignColumn } from '../keys/key-store.js';
import { targetTitle } from '../rotation/target.js';
import { findTable, type CatalogTable } from '../store/catalog.js';
import { countByKey } from '../store/census.js';
import type { Database, Queryable } from '../store/database.js';
import { getKeyring } from '../store/keys.js';
import {
  bindingsLost,
  findFormerTable,
  listRegistered,
  listTargets,
  placeOf,
  renameColumn,
  renameTarget,
  type RegisteredTarget,
} from '../store/registry.js';
import { patienceOf, type ControlContext } from './context.js';
import { findTarget } from './runs.js';

export interface TargetListing {
  readonly id: string;
  readonly table: string;
  readonly keyring: string;
  readonly primary_key: readonly string[];
  readonly scope: string | null;
  readonly columns: readonly {
    id: string;
    name: string;
    type: string;
    format: string;
    bind: string;
    /** `adopting from plaintext`, `leaving to plaintext`; null for most. */
    move: string | null;
  }[];
}

export async function listTargetListings(context: ControlContext): Promise<readonly TargetListing[]> {
  const { database } = context;
  const listings: TargetListing[] = [];
  for (const target of await listTargets(database)) {
    const { foreign } = await getKeyring(database, target.keyringName);
    listings.push({
      id: target.id,
      table: targetTitle(target),
      keyring: target.keyringName,
      primary_key: target.key.map(({ name, type }) => `${name} ${type}`),
      scope: target.scope?.name ?? null,
      columns: target.columns.map((column) => ({
        id: column.id,
        name: column.name,
        type: column.sqlType,
        format: column.format,
        bind: column.bind,
        move: describeMove(foreign?.find(({ columnId }) => columnId === column.id)),
      })),
    });
  }
  return listings;
}

function describeMove(column: ForeignColumn | undefined): string | null {
  if (column === undefined) return null;
  return column.move === 'adopting' ? `adopting from ${column.format}` : `leaving to ${column.format}`;
}

export interface CensusLine {
  readonly target: string;
  readonly column: string;
  readonly key_id: number | string | null;
  /** `customers v3 (id 17)`, `unknown key 99`, `not an envelope`, or in a column that is adopted or left `none of ours: plaintext`. */
  readonly key: string;
  readonly state: string | null;
  readonly cells: number;
}

/** Counts every registered column by the key its values name. Reads whole tables; needs no root key. */
export async function takeCensus(context: ControlContext, name: string | undefined): Promise<readonly CensusLine[]> {
  const { database } = context;
  await context.loadFormats();
  const targets = name === undefined ? await listTargets(database) : [await findTarget(context, name)];
  const lines: CensusLine[] = [];
  for (const target of targets) {
    context.onProgress(`counting ${targetTitle(target)}`);
    const keyring = await getKeyring(database, target.keyringName);
    // Row security off: where it would hide rows the statement fails instead of counting too few.
    const counts = await database.transaction(
      (client) => countByKey(client, target, (counted, column) => formatIn(keyring, counted, column)),
      'BEGIN READ ONLY; SET LOCAL row_security = off',
    );
    for (const count of counts) {
      const key = keyring.keys.find((candidate) => candidate.id === count.keyId);
      lines.push({
        target: count.target,
        column: count.column,
        key_id: count.keyId ?? null,
        key:
          count.keyId === undefined
            ? 'not an envelope'
            : key === undefined
              ? typeof count.keyId === 'string'
                ? `none of ours: ${count.keyId}`
                : `unknown key ${count.keyId}`
              : keyTitle(keyring.name, key),
        state: key?.state ?? null,
        cells: count.cells,
      });
    }
  }
  return lines;
}

/**
 * Points a registered target at a table of another name, or at a table created anew: the ids, and so the envelopes, stay.
 * `from` is the name the target was registered under, or its table's name now. Repeated after a failure it raises the fence
 * that may be missing.
 */
export async function renameTargetTo(
  context: ControlContext,
  from: string,
  to: string,
  reason: string | undefined,
): Promise<TargetListing> {
  const { database } = context;
  const [schema, table] = to.includes('.') ? (to.split('.', 2) as [string, string]) : (['public', to] as const);
  const found = await findTable(database, { schema, table });
  if (found === undefined)
    throw new KeyturnError('TARGET_NOT_FOUND', `there is no table ${schema}.${table} to rename to`, { target: to });
  const registry = await listRegistered(database);
  const registered = await findRegistered(database, registry, from);
  const renamed = registered ?? (await findRenamed(database, registry, from, found));
  if (renamed === undefined)
    throw new KeyturnError(
      'TARGET_NOT_FOUND',
      `there is no target "${from}"; known: ${registry.map(targetTitle).join(', ') || 'none'}`,
      { target: from },
    );
  if (registered !== undefined) await pointAt(database, { registry, registered, found, from, to, reason });
  await convergeFences(database, patienceOf(context));
  const listing = (await listTargetListings(context)).find((target) => target.id === renamed.id);
  if (listing === undefined)
    throw new KeyturnError('TARGET_NOT_FOUND', `target ${to} vanished while it was renamed`, { target: to });
  return listing;
}

interface Renaming {
  readonly registry: readonly RegisteredTarget[];
  readonly registered: RegisteredTarget;
  readonly found: CatalogTable;
  readonly from: string;
  readonly to: string;
  readonly reason: string | undefined;
}

/** One transaction. Throws TARGET_INVALID for a table that cannot stand in the registered one's place. */
async function pointAt(database: Database, renaming: Renaming): Promise<void> {
  const { registry, registered, found, from, to, reason } = renaming;
  const owner = registry.find((candidate) => candidate.tableOid === found.oid && candidate.id !== registered.id);
  if (owner !== undefined)
    throw new KeyturnError('TARGET_INVALID', `table ${to} is registered already as target ${targetTitle(owner)}`, {
      target: to,
    });
  const isSameTable = registered.tableOid === found.oid;
  const scopeColumn = isSameTable
    ? found.columns.find((column) => column.attribute === registered.scopeAttribute)?.name
    : registered.scopeName;
  const lost = bindingsLost(registered, found, scopeColumn);
  if (lost.length > 0)
    throw new KeyturnError(
      'TARGET_INVALID',
      `table ${to} has not what the envelopes of ${from} are bound to: ${lost.join(' and ')} must be as in the registered table`,
      { target: to },
    );
  const columns = registered.columns.map((column) => ({
    column,
    now: found.columns.find((candidate) =>
      isSameTable ? candidate.attribute === column.attribute : candidate.name === column.columnName,
    ),
  }));
  const missing = columns.filter(({ now }) => now === undefined);
  if (missing.length > 0)
    throw new KeyturnError(
      'TARGET_INVALID',
      `table ${to} lacks ${missing.map(({ column }) => column.columnName).join(', ')}, which target ${from} encrypts`,
      { target: to },
    );
  await database.transaction(async (client) => {
    await renameTarget(client, registered, placeOf(found, scopeColumn), reason);
    for (const { column, now } of columns) {
      if (now === undefined || (now.attribute === column.attribute && now.name === column.columnName)) continue;
      const place = { name: column.name, attribute: now.attribute, columnName: now.name };
      await renameColumn(client, registered, column, place, reason);
    }
  });
}

async function findRegistered(
  database: Queryable,
  registry: readonly RegisteredTarget[],
  name: string,
): Promise<RegisteredTarget | undefined> {
  const wanted = titleOf(name);
  const byName = registry.find((candidate) => targetTitle(candidate) === wanted);
  if (byName !== undefined) return byName;
  for (const candidate of registry) {
    const table = await findTable(database, { oid: candidate.tableOid });
    if (table !== undefined && targetTitle(table) === wanted) return candidate;
  }
  return undefined;
}

/** The target that an earlier attempt of the same command has brought there. */
async function findRenamed(
  database: Queryable,
  registry: readonly RegisteredTarget[],
  from: string,
  found: CatalogTable,
): Promise<RegisteredTarget | undefined> {
  const there = registry.find(({ tableOid }) => tableOid === found.oid);
  return there !== undefined && (await findFormerTable(database, there)) === titleOf(from) ? there : undefined;
}

function titleOf(name: string): string {
  return name.includes('.') ? name : `public.${name}`;
}
