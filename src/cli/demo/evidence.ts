// What the report rests on, read from the database when all is over: counts of batches and ledger, key names in the
// cells, `updated_at`, the old key.
import type { ControlContext } from '../../control/context.js';
import { readStatus } from '../../control/status.js';
import { listKeys } from '../../control/keys.js';
import { takeCensus } from '../../control/targets.js';
import { keyringName, tableName } from './customers.js';

export interface CellCounts {
  readonly examined: number;
  readonly reencrypted: number;
  readonly current: number;
  readonly conflicted: number;
  readonly failed: number;
}

export interface RunCounts {
  readonly byBatches: CellCounts;
  readonly byLedger: CellCounts;
}

const sums = (alias: string): string =>
  ['examined', 'reencrypted', 'current', 'conflicted', 'failed']
    .map((name) => `coalesce(sum(${alias}.cells_${name}), 0)`)
    .join(', ');

/** Cells of the run's moving batches, once from the batches and once from the ledger. */
export async function readRunCounts(context: ControlContext, runId: number): Promise<RunCounts> {
  const { database } = context;
  const ofRun = `b.run_id = $1 AND b.kind = 'reencrypt'`;
  const batches = await database.query(`SELECT ${sums('b')} FROM keyturn.batch b WHERE ${ofRun}`, [runId]);
  const ledger = await database.query(
    `SELECT ${sums('l')} FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id WHERE ${ofRun}`,
    [runId],
  );
  return { byBatches: countsOf(batches.rows[0]), byLedger: countsOf(ledger.rows[0]) };
}

function countsOf(row: readonly unknown[] | undefined): CellCounts {
  const [examined, reencrypted, current, conflicted, failed] = (row ?? []).map(Number);
  return {
    examined: examined ?? 0,
    reencrypted: reencrypted ?? 0,
    current: current ?? 0,
    conflicted: conflicted ?? 0,
    failed: failed ?? 0,
  };
}

/** Cells that name the key, by the header of what is stored; `others` name any other or none. */
export async function countNaming(context: ControlContext, keyId: number): Promise<{ named: number; others: number }> {
  const lines = await takeCensus(context, tableName);
  const sum = (isWanted: boolean): number =>
    lines.filter((line) => (line.key_id === keyId) === isWanted).reduce((total, line) => total + line.cells, 0);
  return { named: sum(true), others: sum(false) };
}

/** What reads have moved to the active key. */
export async function countLazyUpgrades(context: ControlContext): Promise<{ rows: number; cells: number }> {
  const { keyrings } = await readStatus(context);
  const lazy = keyrings.find(({ keyring }) => keyring === keyringName)?.lazy;
  return { rows: lazy?.rows_updated ?? 0, cells: lazy?.cells_reencrypted ?? 0 };
}

/** Rows whose `updated_at` is not when the application last wrote them, by its own record. */
export async function countTouchedRows(context: ControlContext): Promise<number> {
  const { rows } = await context.database.query(
    `SELECT count(*) FROM customer c LEFT JOIN (SELECT customer_id, max(written_at) AS written_at FROM demo_ack GROUP BY customer_id) a ON a.customer_id = c.id
     WHERE c.updated_at IS DISTINCT FROM coalesce(a.written_at, c.created_at)`,
  );
  return Number(rows[0]?.[0]);
}

export async function readKey(context: ControlContext, keyId: number): Promise<{ title: string; state: string }> {
  const [keyring] = await listKeys(context, keyringName);
  const key = keyring?.keys.find((candidate) => candidate.id === keyId);
  return { title: key?.title ?? `key ${keyId}`, state: key?.state ?? 'missing' };
}
