// Where the targets of a backup are in this database: a registry names tables by catalogue numbers, which every database
// hands out anew, so tables and columns are found by name. A table that is not there yet waits under a number no table has.
import { KeyturnError } from '../errors.js';
import type { TargetRow } from '../keys/backup.js';
import type { RestorePlan } from '../keys/merge-backup.js';
import type { KeyTag } from '../rotation/target.js';
import { findTable, type CatalogTable } from '../store/catalog.js';
import type { Queryable } from '../store/database.js';
import { bindingsLost, placeOf } from '../store/registry.js';

const greatestOid = 4_294_967_295;

/** `waiting`: targets whose table is not there. Throws BACKUP_REFUSED for a table that its values are not bound to. */
export async function placeTargets(
  client: Queryable,
  plan: RestorePlan,
): Promise<{ plan: RestorePlan; waiting: readonly string[] }> {
  const waiting: string[] = [];
  const targets: RestorePlan['targets'][number][] = [];
  let freeOid = await lowestPlaceholder(client);
  for (const { before, after } of plan.targets) {
    const table = await findTable(client, { schema: after.schema_name, table: after.table_name });
    if (table !== undefined) targets.push({ before, after: placed(after, table) });
    else {
      waiting.push(`${after.schema_name}.${after.table_name}`);
      targets.push({ before, after: before === undefined ? { ...after, table_oid: --freeOid } : after });
    }
  }
  return { plan: { ...plan, targets }, waiting };
}

/** Numbers at the very end of the range, where no server has come to. */
async function lowestPlaceholder(client: Queryable): Promise<number> {
  const { rows } = await client.query(`SELECT to_regclass('keyturn.target') IS NOT NULL`);
  if (rows[0]?.[0] !== true) return greatestOid;
  const used = await client.query('SELECT min(table_oid::bigint) FROM keyturn.target WHERE table_oid::bigint > $1', [
    greatestOid - 100_000,
  ]);
  return Number(used.rows[0]?.[0] ?? greatestOid);
}

function placed(target: TargetRow, table: CatalogTable): TargetRow {
  const scopeName = textOf(target['scope_name']);
  const title = `${target.schema_name}.${target.table_name}`;
  const lost = bindingsLost(
    {
      id: target.id,
      keyringId: target.keyring_id,
      // Another table than the one that was backed up, as far as numbers go: compared by name.
      tableOid: 0,
      schema: target.schema_name,
      table: target.table_name,
      keyAttributes: [],
      keyNames: target['key_names'] as string[],
      keyTags: target['key_tags'] as KeyTag[],
      scopeAttribute: undefined,
      scopeName,
      columns: [],
    },
    table,
    scopeName,
  );
  if (lost.length > 0) throw refusal(`${title} has ${lost.join(' and ')} otherwise than its values are bound to`);
  const place = placeOf(table, scopeName);
  return {
    ...target,
    table_oid: place.tableOid,
    key_attributes: [...place.keyAttributes],
    scope_attribute: place.scopeAttribute ?? null,
    columns: target.columns.map((column) => {
      const attribute = table.columns.find(({ name }) => name === column.column_name)?.attribute;
      if (attribute === undefined) throw refusal(`${title} has no column ${column.column_name}`);
      return { ...column, attribute };
    }),
  };
}

function textOf(value: unknown): string | undefined {
  return typeof value === 'string' ? value : undefined;
}

function refusal(why: string): KeyturnError {
  return new KeyturnError('BACKUP_REFUSED', `the backup does not fit this database: table ${why}; nothing was written`);
}
