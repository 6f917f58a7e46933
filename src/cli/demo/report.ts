// The report and its verdict. Every claim of the demo is a proof that holds or does not; one that does not makes the
// demo fail by name. Pure: what was measured comes in, words go out.
import type { CheckCounts, Mismatch, ReadCounts, WriteCounts } from './messages.js';
import type { RunCounts } from './evidence.js';
import type { BatchLedger, KilledWorker } from './kill-worker.js';
import { withThousands, type Phase } from './narrator.js';

export interface Evidence {
  /** As filled in. */
  readonly rows: number;
  readonly cells: number;
  /** Of rows that were there from the first to the last. */
  readonly cellsThroughout: number;
  /** What the application has left, by its own count of new and deleted rows. */
  readonly cellsAtEnd: number;
  readonly queue: string;
  readonly oldKey: { readonly id: number; readonly title: string; readonly state: string };
  readonly newKey: { readonly id: number; readonly title: string };
  readonly run: { readonly id: number; readonly state: string };
  readonly killed: KilledWorker;
  readonly killedBatch: BatchLedger;
  readonly counts: RunCounts;
  /** What reads moved beside the run. */
  readonly lazy: { readonly rows: number; readonly cells: number };
  readonly reads: ReadCounts;
  readonly writes: WriteCounts & { readonly whileVerifying: number; readonly whileRetiring: number };
  readonly finalCheck: CheckCounts;
  readonly deepVerify: {
    readonly run: number;
    readonly state: string;
    readonly cells: number;
    /** Of rows that were there before it began and after it had ended. */
    readonly atLeast: number;
  };
  readonly naming: { readonly named: number; readonly others: number };
  readonly rowsWithChangedUpdatedAt: number;
  readonly phases: readonly Phase[];
  /** From the start of the process to this report. */
  readonly seconds: number;
}

export interface Proof {
  readonly name: string;
  readonly holds: boolean;
  /** What was measured. */
  readonly words: string;
}

export function proofsOf(seen: Evidence): readonly Proof[] {
  const { killed, killedBatch, counts, reads, writes, finalCheck, naming } = seen;
  const moved = counts.byBatches;
  const finisher = killedBatch.finishedBy;
  return [
    {
      name: 'run',
      holds: seen.run.state === 'succeeded',
      words: `run ${seen.run.id} to ${seen.newKey.title}: ${seen.run.state}`,
    },
    {
      name: 'killed batch',
      holds: killed.slices > 0 && killedBatch.slicesByKilled === killed.slices,
      words: `batch ${killed.batchId}: ${killed.worker} (pid ${killed.pid}) had committed ${plural(killed.slices, 'slice')}, ${plural(killed.rows, 'row')}, when SIGKILL came`,
    },
    {
      name: 'finished by another',
      holds: finisher !== undefined && finisher.memberId !== killed.memberId && killedBatch.slicesByOthers > 0,
      words:
        finisher === undefined
          ? `batch ${killed.batchId} is ${killedBatch.state}`
          : `batch ${killed.batchId}: ${plural(killedBatch.slicesByOthers, 'further slice')} by ${finisher.name} (pid ${finisher.pid})`,
    },
    {
      name: 'conflicts',
      holds: moved.conflicted > 0,
      words: `${plural(moved.conflicted, 'cell')} changed in the worker's hands, left alone, and visited again`,
    },
    {
      name: 'reads',
      holds: reads.checked > 0 && reads.mismatches === 0,
      words: `${plural(reads.checked, 'cell')} read and compared meanwhile, ${plural(reads.mismatches, 'mismatch', 'mismatches')}${examplesOf(reads.examples)}`,
    },
    {
      name: 'lazy upgrades',
      holds: seen.lazy.rows > 0 && seen.lazy.cells >= seen.lazy.rows,
      words: `${plural(seen.lazy.cells, 'cell')} in ${plural(seen.lazy.rows, 'row')} moved because they were read, beside the run`,
    },
    {
      name: 'writes',
      holds: writes.acknowledged > 0 && writes.inserted > 0 && writes.deleted > 0 && finalCheck.lost === 0,
      words: `${plural(writes.acknowledged, 'write')} acknowledged meanwhile, ${plural(writes.inserted, 'new row')} and ${withThousands(writes.deleted)} deleted among them, ${withThousands(finalCheck.lost)} lost`,
    },
    {
      name: 'writes on the way',
      holds: writes.whileVerifying > 0 && writes.whileRetiring > 0,
      words: `${plural(writes.whileVerifying, 'write')} acknowledged during the verification, ${withThousands(writes.whileRetiring)} during the retirement`,
    },
    {
      name: 'final check',
      holds: finalCheck.checked === seen.cellsAtEnd && finalCheck.mismatches === 0,
      words: `${withThousands(finalCheck.checked - finalCheck.mismatches)} of ${plural(seen.cellsAtEnd, 'cell')} decrypt to the last acknowledged value${examplesOf(finalCheck.examples)}`,
    },
    {
      name: 'deep verify',
      holds: seen.deepVerify.state === 'succeeded' && seen.deepVerify.cells >= seen.deepVerify.atLeast,
      words: `run ${seen.deepVerify.run} opened ${plural(seen.deepVerify.cells, 'cell')}, all ${withThousands(seen.deepVerify.atLeast)} that were there all the while: ${seen.deepVerify.state}`,
    },
    {
      name: 'new key everywhere',
      holds: naming.named === seen.cellsAtEnd && naming.others === 0,
      words: `${withThousands(naming.named)} of ${plural(seen.cellsAtEnd, 'cell')} name ${seen.newKey.title}`,
    },
    {
      name: 'counting',
      holds: isBalanced(counts) && moved.examined - moved.conflicted >= seen.cellsThroughout,
      words: `${withThousands(moved.examined)} examined = ${withThousands(moved.reencrypted)} reencrypted + ${withThousands(moved.current)} current + ${withThousands(moved.conflicted)} conflicted + ${withThousands(moved.failed)} failed, in batches and ledger alike`,
    },
    {
      name: 'updated_at',
      holds: seen.rowsWithChangedUpdatedAt === 0,
      words: `changed behind the application's back in ${plural(seen.rowsWithChangedUpdatedAt, 'row')}`,
    },
    {
      name: 'old key',
      holds: seen.oldKey.state === 'retired',
      words: `${seen.oldKey.title} is ${seen.oldKey.state}`,
    },
  ];
}

function isBalanced({ byBatches, byLedger }: RunCounts): boolean {
  const { examined, reencrypted, current, conflicted, failed } = byBatches;
  const isSame = Object.entries(byBatches).every(([name, count]) => byLedger[name as keyof typeof byLedger] === count);
  return isSame && examined === reencrypted + current + conflicted + failed;
}

function examplesOf(examples: readonly Mismatch[]): string {
  if (examples.length === 0) return '';
  const words = examples.map(
    ({ id, column, expectedSeq, seen }) => `customer ${id} ${column}: expected seq ${expectedSeq}, seen ${seen}`,
  );
  return `; ${words.join('; ')}`;
}

function plural(count: number, one: string, many = `${one}s`): string {
  return `${withThousands(count)} ${count === 1 ? one : many}`;
}

/** Names of the proofs that do not hold. Empty is success. */
export function missingProofs(seen: Evidence): readonly string[] {
  return proofsOf(seen).flatMap((proof) => (proof.holds ? [] : [proof.name]));
}

/** The one object of `--json`. */
export function reportAsObject(seen: Evidence): Record<string, unknown> {
  const missing = missingProofs(seen);
  const { killed, killedBatch } = seen;
  return {
    proven: missing.length === 0,
    missing,
    rows: seen.rows,
    cells: seen.cells,
    cells_throughout: seen.cellsThroughout,
    cells_at_end: seen.cellsAtEnd,
    queue: seen.queue,
    old_key: seen.oldKey,
    new_key: seen.newKey,
    run: seen.run,
    killed: {
      batch_id: killed.batchId,
      worker: killed.worker,
      pid: killed.pid,
      member_id: killed.memberId,
      signal: 'SIGKILL',
      slices_before: killed.slices,
      rows_before: killed.rows,
      slices_after: killedBatch.slicesByOthers,
      finished_by: killedBatch.finishedBy?.name ?? null,
      finished_by_pid: killedBatch.finishedBy?.pid ?? null,
      finished_by_member_id: killedBatch.finishedBy?.memberId ?? null,
    },
    conflicted: seen.counts.byBatches.conflicted,
    reads: seen.reads,
    lazy_upgrades: seen.lazy,
    writes: {
      acknowledged: seen.writes.acknowledged,
      inserted: seen.writes.inserted,
      deleted: seen.writes.deleted,
      while_verifying: seen.writes.whileVerifying,
      while_retiring: seen.writes.whileRetiring,
      lost: seen.finalCheck.lost,
    },
    final_check: seen.finalCheck,
    deep_verify: {
      run: seen.deepVerify.run,
      state: seen.deepVerify.state,
      cells: seen.deepVerify.cells,
      at_least: seen.deepVerify.atLeast,
    },
    cells_naming_new_key: seen.naming.named,
    cells_naming_others: seen.naming.others,
    batches: seen.counts.byBatches,
    ledger: seen.counts.byLedger,
    rows_with_changed_updated_at: seen.rowsWithChangedUpdatedAt,
    phases: seen.phases,
    seconds: seen.seconds,
  };
}

export function reportAsText(seen: Evidence): string {
  const proofs = proofsOf(seen);
  const missing = missingProofs(seen);
  const width = Math.max(...proofs.map(({ name }) => name.length));
  const verdict =
    missing.length === 0
      ? `Every proof holds: all ${withThousands(seen.cellsAtEnd)} cells are under ${seen.newKey.title}, none is under ${seen.oldKey.title}, and nothing was lost.`
      : `NOT PROVEN: ${missing.join(', ')}.`;
  return [
    `Keyturn demo: ${plural(seen.rows, 'customer')}, ${plural(seen.cells, 'encrypted cell')}, queue in ${seen.queue}`,
    '',
    ...proofs.map(({ name, holds, words }) => `  ${holds ? '✓' : '✗'} ${name.padEnd(width)}  ${words}`),
    '',
    `  time: ${seen.phases.map(({ phase, seconds }) => `${phase} ${seconds} s`).join(', ')}; in all ${seen.seconds} s`,
    '',
    verdict,
    '',
  ].join('\n');
}
