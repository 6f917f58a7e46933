// What estimates are made from: the shape of a table, what its earlier slices took, how often the server checkpoints.
import type { RowCosts, TableShape } from '../rotation/estimate.js';
import type { Queryable } from './database.js';

/** `rows`: the planner's estimate, which the caller has. */
export async function readShape(database: Queryable, tableOid: number, rows: number): Promise<TableShape> {
  const { rows: found } = await database.query(
    `SELECT coalesce(sum(pg_table_size(leaf)), 0), coalesce(sum(pg_indexes_size(leaf)), 0),
       (SELECT count(*) FROM pg_index WHERE indrelid = $1)
     FROM (SELECT coalesce(p.relid, c.oid) AS leaf FROM pg_class c LEFT JOIN LATERAL pg_partition_tree(c.oid) p ON c.relkind = 'p' AND p.isleaf
       WHERE c.oid = $1) l`,
    [tableOid],
  );
  const [tableBytes, indexBytes, indexes] = (found[0] ?? []).map(Number);
  return { rows, tableBytes: tableBytes ?? 0, indexBytes: indexBytes ?? 0, indexes: indexes ?? 0 };
}

export interface MeasuredCosts extends RowCosts {
  readonly rows: number;
}

const latestSlices = 100;

/** Of the latest slices that wrote rows of the target; undefined before the first. */
export async function findWriteCosts(database: Queryable, targetId: string): Promise<MeasuredCosts | undefined> {
  const { rows } = await database.query(
    `SELECT sum(rows_examined), sum(read_ms)::float8 / sum(rows_examined), sum(crypto_ms)::float8 / sum(rows_examined),
       sum(write_ms)::float8 / sum(rows_updated)
     FROM (SELECT l.* FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id
       WHERE b.target_id = $1 AND b.kind = 'reencrypt' AND b.cells IS NULL AND l.rows_updated > 0 AND l.rows_updated * 2 > l.rows_examined
       ORDER BY l.committed_at DESC LIMIT ${latestSlices}) latest`,
    [targetId],
  );
  const [examined, readMs, cryptoMs, writeMs] = rows[0] ?? [];
  if (examined === null || examined === undefined) return undefined;
  return { rows: Number(examined), readMs: Number(readMs), cryptoMs: Number(cryptoMs), writeMs: Number(writeMs) };
}

export interface TriedTarget {
  readonly targetId: string;
  readonly rowsToMove: number;
  readonly costs: MeasuredCosts;
}

/** Per target, what a dry run counted and took. */
export async function listTried(database: Queryable, runId: number): Promise<readonly TriedTarget[]> {
  const { rows } = await database.query(
    `SELECT b.target_id, sum(l.rows_updated), sum(l.rows_examined), sum(l.read_ms)::float8 / sum(l.rows_examined),
       sum(l.crypto_ms)::float8 / sum(l.rows_examined)
     FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id
     WHERE b.run_id = $1 GROUP BY 1 HAVING sum(l.rows_examined) > 0 ORDER BY 1`,
    [runId],
  );
  return rows.map(([targetId, moved, examined, readMs, cryptoMs]) => ({
    targetId: String(targetId),
    rowsToMove: Number(moved),
    costs: { rows: Number(examined), readMs: Number(readMs), cryptoMs: Number(cryptoMs), writeMs: undefined },
  }));
}

export async function checkpointSeconds(database: Queryable): Promise<number> {
  const { rows } = await database.query(`SELECT setting::int FROM pg_settings WHERE name = 'checkpoint_timeout'`);
  return Number(rows[0]?.[0] ?? 300);
}
