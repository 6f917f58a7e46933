// The accident: a worker dies of SIGKILL in the middle of a batch, and the ledger tells who finished that batch.
//
// The batch's row is locked while its worker is killed. A worker advances that row in the transaction of every slice, so
// whatever slice it has under way can no longer commit: the slices counted under the lock are all that it ever did.
import { setTimeout as delay } from 'node:timers/promises';
import type { ControlContext } from '../../control/context.js';
import { KeyturnError } from '../../errors.js';
import type { Service } from './crew.js';

export interface KilledWorker {
  readonly worker: string;
  readonly pid: number;
  readonly memberId: string;
  readonly batchId: number;
  readonly slices: number;
  readonly rows: number;
  /** What was left of the lease when its holder died; until then nobody else may have the batch. */
  readonly leaseSeconds: number;
}

/** Enough that the batch is well under way, few enough for a small table. */
const minSlices = 3;
const lookEveryMs = 10;

/** Waits until one of `workers` is in the middle of a batch of the run, and kills it there. */
export async function killWorkerInBatch(
  context: ControlContext,
  runId: number,
  workers: readonly Service[],
): Promise<KilledWorker> {
  for (;;) {
    const killed = await killIfInBatch(context, runId, workers);
    if (killed !== undefined) return killed;
    const { rows } = await context.database.query(`SELECT state FROM keyturn.run WHERE id = $1`, [runId]);
    if (rows[0]?.[0] !== 'pending' && rows[0]?.[0] !== 'running') {
      throw new KeyturnError(
        'RUN_INCOMPLETE',
        `run ${runId} became ${String(rows[0]?.[0])} before a worker could be killed in one of its batches; repeat with more --rows`,
        { run: runId },
      );
    }
    await delay(lookEveryMs);
  }
}

/** With a row left behind the cursor, so that whoever finishes the batch writes at least one slice. */
const midway = `b.run_id = $1 AND b.kind = 'reencrypt' AND b.state = 'running' AND b.cells IS NULL AND b.slices >= ${minSlices}
  AND b.cursor_key[1]::bigint < b.upto_key[1]::bigint`;

async function killIfInBatch(
  context: ControlContext,
  runId: number,
  workers: readonly Service[],
): Promise<KilledWorker | undefined> {
  const { rows: seen } = await context.database.query(`SELECT b.id FROM keyturn.batch b WHERE ${midway} LIMIT 1`, [
    runId,
  ]);
  if (seen[0] === undefined) return undefined;
  return context.database.transaction(async (client) => {
    const { rows } = await client.query(
      `SELECT b.id, b.slices, b.rows_examined, b.member_id, m.pid, extract(epoch FROM b.lease_until - clock_timestamp())::float8
       FROM keyturn.batch b JOIN keyturn.member m ON m.id = b.member_id
       WHERE b.id = $2 AND ${midway} FOR UPDATE OF b`,
      [runId, seen[0]?.[0]],
    );
    const [batchId, slices, examined, memberId, pid, leaseSeconds] = rows[0] ?? [];
    const worker = workers.find((candidate) => candidate.pid === pid);
    if (worker === undefined) return undefined;
    await worker.kill();
    return {
      worker: worker.name,
      pid: worker.pid,
      memberId: String(memberId),
      batchId: Number(batchId),
      slices: Number(slices),
      rows: Number(examined),
      leaseSeconds: Math.round(Number(leaseSeconds)),
    };
  });
}

export interface BatchLedger {
  readonly state: string;
  /** Slices that the killed worker committed, by the ledger. */
  readonly slicesByKilled: number;
  /** Slices of all other members after those. */
  readonly slicesByOthers: number;
  /** Who committed the last slice. */
  readonly finishedBy: { readonly memberId: string; readonly name: string; readonly pid: number } | undefined;
}

export async function readBatchLedger(context: ControlContext, killed: KilledWorker): Promise<BatchLedger> {
  const { rows } = await context.database.query(
    `SELECT b.state, count(*) FILTER (WHERE l.member_id = $2), count(*) FILTER (WHERE l.member_id <> $2),
       (array_agg(l.member_id ORDER BY l.slice DESC))[1]
     FROM keyturn.batch b JOIN keyturn.ledger l ON l.batch_id = b.id WHERE b.id = $1 GROUP BY b.state`,
    [killed.batchId, killed.memberId],
  );
  const [state, byKilled, byOthers, lastMember] = rows[0] ?? [];
  const { rows: members } = await context.database.query('SELECT id, name, pid FROM keyturn.member WHERE id = $1', [
    lastMember,
  ]);
  const [id, name, pid] = members[0] ?? [];
  return {
    state: String(state),
    slicesByKilled: Number(byKilled),
    slicesByOthers: Number(byOthers),
    finishedBy:
      typeof id === 'string' && state === 'done' ? { memberId: id, name: String(name), pid: Number(pid) } : undefined,
  };
}
