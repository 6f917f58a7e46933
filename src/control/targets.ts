// The operator's verbs on targets: list, census, rename.
import { formatOf } from '../engine/cells-of-target.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import { targetTitle } from '../rotation/target.js';
import { findTable } from '../store/catalog.js';
import { countByKey } from '../store/census.js';
import { getKeyring } from '../store/keys.js';
import { listRegistered, listTargets, renameTarget } from '../store/registry.js';
import type { ControlContext } from './context.js';
import { findTarget } from './runs.js';

export interface TargetListing {
  readonly id: string;
  readonly table: string;
  readonly keyring: string;
  readonly primary_key: readonly string[];
  readonly scope: string | null;
  readonly columns: readonly { id: string; name: string; type: string; format: string; bind: string }[];
}

export async function listTargetListings(context: ControlContext): Promise<readonly TargetListing[]> {
  return (await listTargets(context.database)).map((target) => ({
    id: target.id,
    table: targetTitle(target),
    keyring: target.keyringName,
    primary_key: target.key.map(({ name, type }) => `${name} ${type}`),
    scope: target.scope?.name ?? null,
    columns: target.columns.map((column) => ({ id: column.id, name: column.name, type: column.sqlType, format: column.format, bind: column.bind })),
  }));
}

export interface CensusLine {
  readonly target: string;
  readonly column: string;
  readonly key_id: number | string | null;
  /** `customers v3 (id 17)`, `unknown key 99`, or `not an envelope`. */
  readonly key: string;
  readonly state: string | null;
  readonly cells: number;
}

/** Counts every registered column by the key its values name. Reads whole tables; needs no root key. */
export async function takeCensus(context: ControlContext, name: string | undefined): Promise<readonly CensusLine[]> {
  const { database } = context;
  const targets = name === undefined ? await listTargets(database) : [await findTarget(context, name)];
  const lines: CensusLine[] = [];
  for (const target of targets) {
    context.onProgress(`counting ${targetTitle(target)}`);
    const keyring = await getKeyring(database, target.keyringName);
    for (const count of await countByKey(database, target, formatOf)) {
      const key = keyring.keys.find((candidate) => candidate.id === count.keyId);
      lines.push({
        target: count.target,
        column: count.column,
        key_id: count.keyId ?? null,
        key: count.keyId === undefined ? 'not an envelope' : key === undefined ? `unknown key ${count.keyId}` : keyTitle(keyring.name, key),
        state: key?.state ?? null,
        cells: count.cells,
      });
    }
  }
  return lines;
}

/** Points a registered target at a table of another name: the ids, and so the envelopes, stay. */
export async function renameTargetTo(context: ControlContext, from: string, to: string): Promise<TargetListing> {
  const { database } = context;
  const [schema, table] = to.includes('.') ? (to.split('.', 2) as [string, string]) : (['public', to] as const);
  const found = await findTable(database, { schema, table });
  if (found === undefined) throw new KeyturnError('TARGET_NOT_FOUND', `there is no table ${schema}.${table} to rename to`, { target: to });
  const wanted = from.includes('.') ? from : `public.${from}`;
  const registry = await listRegistered(database);
  const registered = registry.find((candidate) => targetTitle(candidate) === wanted);
  if (registered === undefined) throw new KeyturnError('TARGET_NOT_FOUND', `there is no target "${from}"; known: ${registry.map(targetTitle).join(', ') || 'none'}`, { target: from });
  const owner = registry.find((candidate) => candidate.tableOid === found.oid && candidate.id !== registered.id);
  if (owner !== undefined) throw new KeyturnError('TARGET_INVALID', `table ${to} is registered already as target ${targetTitle(owner)}`, { target: to });
  const missing = registered.columns.filter((column) => !found.columns.some((candidate) => candidate.name === column.columnName));
  if (missing.length > 0) throw new KeyturnError('TARGET_INVALID', `table ${to} lacks ${missing.map((column) => column.columnName).join(', ')}, which target ${from} encrypts`, { target: to });
  const scopeName = (await listTargets(database)).find((target) => target.id === registered.id)?.scope?.name;
  await database.transaction(async (client) => {
    await renameTarget(client, registered, {
      tableOid: found.oid,
      schema,
      table,
      keyAttributes: found.keyAttributes,
      scopeAttribute: registered.scopeAttribute === undefined ? undefined : (found.columns.find((column) => column.name === scopeName)?.attribute ?? registered.scopeAttribute),
    });
    for (const column of registered.columns) {
      await client.query('UPDATE keyturn.target_column SET attribute = $2 WHERE id = $1', [column.id, found.columns.find((candidate) => candidate.name === column.columnName)?.attribute]);
    }
  });
  const listing = (await listTargetListings(context)).find((target) => target.id === registered.id);
  if (listing === undefined) throw new KeyturnError('TARGET_NOT_FOUND', `target ${to} vanished while it was renamed`, { target: to });
  return listing;
}
