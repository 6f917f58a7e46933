// The counting identity, checked in the database: what the ledger, the batches and the table's own witness say of a run
// must be the same numbers, whatever was killed on the way.
import type { Shop } from './shop.js';

const counters = [
  'rows_examined',
  'rows_updated',
  'rows_skipped',
  'rows_conflicted',
  'rows_failed',
  'cells_examined',
  'cells_reencrypted',
  'cells_current',
  'cells_conflicted',
  'cells_failed',
] as const;

/** What does not add up in batches and ledger, in words; empty when every number does. */
export async function findImbalances(shop: Shop): Promise<string[]> {
  const sums = counters.map((name) => `coalesce(sum(l.${name}), 0) AS ${name}`).join(', ');
  const differing = counters.map((name) => `CASE WHEN b.${name} <> e.${name} THEN '${name}' END`).join(', ');
  const rows = await shop.query(`
    SELECT b.id, concat_ws(', ', ${differing},
      CASE WHEN b.slices <> e.entries OR e.entries <> e.last_slice THEN 'slices' END,
      CASE WHEN b.cells_examined <> b.cells_reencrypted + b.cells_current + b.cells_conflicted + b.cells_failed THEN 'cell identity' END,
      CASE WHEN b.rows_examined <> b.rows_updated + b.rows_skipped + b.rows_conflicted + b.rows_failed THEN 'row identity' END) AS wrong
    FROM keyturn.batch b CROSS JOIN LATERAL (
      SELECT count(*) AS entries, coalesce(max(l.slice), 0) AS last_slice, ${sums} FROM keyturn.ledger l WHERE l.batch_id = b.id) e
    ORDER BY b.id`);
  return rows.filter((row) => row['wrong'] !== '').map((row) => `batch ${String(row['id'])}: ${String(row['wrong'])}`);
}

/** DDL of a witness: a trigger that records each committed rewrite of a row, and who made it. */
export function witnessOf(table: string): readonly string[] {
  return [
    `CREATE TABLE IF NOT EXISTS rewritten (table_name text NOT NULL, id bigint NOT NULL, by_keyturn boolean NOT NULL)`,
    `CREATE OR REPLACE FUNCTION witness() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
       INSERT INTO rewritten VALUES (TG_TABLE_NAME, NEW.id, coalesce(current_setting('keyturn.active', true), '') = '1');
       RETURN NULL;
     END $$`,
    `CREATE TRIGGER witnessed AFTER UPDATE ON ${table} FOR EACH ROW EXECUTE FUNCTION witness()`,
  ];
}

/** Rows that Keyturn rewrote, and how often the most frequent of them. */
export async function countRewrites(shop: Shop): Promise<{ rows: number; most: number }> {
  const [row] = await shop.query(
    `SELECT count(*)::int AS rows, coalesce(max(n), 0)::int AS most FROM (SELECT count(*) AS n FROM rewritten WHERE by_keyturn GROUP BY table_name, id) r`,
  );
  return { rows: Number(row?.['rows']), most: Number(row?.['most']) };
}

/** Everything a late or repeated job could change, as one digest: rows with their versions, batches, ledger, runs. */
export async function digestOf(shop: Shop, tables: readonly string[]): Promise<string> {
  const parts = [
    ...tables.map((table) => `SELECT '${table}' || t.ctid::text || t.xmin::text || t::text AS line FROM ${table} t`),
    ...['run', 'run_target', 'batch', 'ledger', 'quarantine'].map(
      (name) => `SELECT '${name}' || t::text AS line FROM keyturn.${name} t`,
    ),
  ];
  const [row] = await shop.query(
    `SELECT md5(string_agg(line, chr(10) ORDER BY line)) AS digest FROM (${parts.join(' UNION ALL ')}) lines`,
  );
  return String(row?.['digest']);
}
