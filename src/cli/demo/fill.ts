// Fills a range of customers through the library: values are encrypted here, rows inserted many at a time, the next ones
// encrypted while the previous ones are on their way.
import type { App } from './app-process.js';
import { columnNames, tenantOf, valueOf } from './customers.js';
import type { RowRange } from './messages.js';

const rowsPerInsert = 500;

const insertRows = `INSERT INTO customer (id, tenant_id, email, phone, profile, created_at, updated_at)
  SELECT id, tenant_id, email, phone, jsonb_build_object('plan', 'standard', 'ssn', ssn), now(), now()
  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::bytea[], $5::text[]) AS made (id, tenant_id, email, phone, ssn)`;

export async function fill(app: App, range: RowRange): Promise<void> {
  let inserting: Promise<unknown> = Promise.resolve();
  for (let from = range.from; from <= range.upto; from += rowsPerInsert) {
    const made = await makeRows(app, { from, upto: Math.min(from + rowsPerInsert - 1, range.upto) });
    await inserting;
    inserting = app.pool.query(insertRows, made);
    // Awaited on the next turn; until then its failure must not count as unhandled.
    inserting.catch(() => undefined);
  }
  await inserting;
}

/** One array per parameter of the insert. */
async function makeRows(app: App, range: RowRange): Promise<unknown[][]> {
  const ids = Array.from({ length: range.upto - range.from + 1 }, (_, at) => range.from + at);
  const encrypted = columnNames.map((name) => {
    const column = app.column(name);
    return Promise.all(ids.map((id) => column.encrypt({ pk: id, scope: tenantOf(id) }, valueOf(id, name, 0))));
  });
  return [ids, ids.map(tenantOf), ...(await Promise.all(encrypted))];
}
