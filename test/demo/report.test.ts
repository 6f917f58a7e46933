// The verdict: complete evidence proves the demo, and each proof that is missing fails it by name.

import { describe, expect, test } from 'vitest';
import { missingProofs, proofsOf, reportAsObject, reportAsText, type Evidence } from '../../src/cli/demo/report.js';

const counts = { examined: 6_004, reencrypted: 5_500, current: 500, conflicted: 4, failed: 0 };

const complete: Evidence = {
  rows: 2_000,
  cells: 6_000,
  cellsThroughout: 5_991,
  cellsAtEnd: 5_997,
  queue: 'PostgreSQL',
  oldKey: { id: 1, title: 'customers v1 (id 1)', state: 'retired' },
  newKey: { id: 2, title: 'customers v2 (id 2)' },
  run: { id: 1, state: 'succeeded' },
  killed: { worker: 'worker-1', pid: 101, memberId: 'one', batchId: 7, slices: 3, rows: 350, leaseSeconds: 15 },
  killedBatch: {
    state: 'done',
    slicesByKilled: 3,
    slicesByOthers: 9,
    finishedBy: { memberId: 'two', name: 'worker-2', pid: 102 },
  },
  counts: { byBatches: counts, byLedger: counts },
  reads: { checked: 900, mismatches: 0, examples: [] },
  lazy: { rows: 40, cells: 90 },
  writes: { acknowledged: 400, inserted: 2, deleted: 3, whileVerifying: 20, whileRetiring: 10 },
  finalCheck: { checked: 5_997, mismatches: 0, examples: [], lost: 0 },
  deepVerify: { run: 2, state: 'succeeded', cells: 5_996, atLeast: 5_994 },
  naming: { named: 5_997, others: 0 },
  rowsWithChangedUpdatedAt: 0,
  phases: [{ phase: 'move', seconds: 19.5 }],
  seconds: 35.1,
};

/** Per proof, what can go wrong with it. */
const missing: Readonly<Record<string, Readonly<Record<string, Partial<Evidence>>>>> = {
  run: {
    'the run completed with failures': { run: { id: 1, state: 'completed_with_failures' } },
  },
  'killed batch': {
    'the worker was killed before its first slice': {
      killed: { ...complete.killed, slices: 0 },
      killedBatch: { ...complete.killedBatch, slicesByKilled: 0 },
    },
    'the ledger knows of a slice after the kill': { killedBatch: { ...complete.killedBatch, slicesByKilled: 4 } },
  },
  'finished by another': {
    'nobody finished the batch': { killedBatch: { ...complete.killedBatch, state: 'running', finishedBy: undefined } },
    'the killed member finished it': {
      killedBatch: { ...complete.killedBatch, finishedBy: { memberId: 'one', name: 'worker-1', pid: 101 } },
    },
    'no other member wrote a slice': { killedBatch: { ...complete.killedBatch, slicesByOthers: 0 } },
  },
  conflicts: {
    'no cell was conflicted': balanced({ examined: 6_000, reencrypted: 5_500, current: 500, conflicted: 0, failed: 0 }),
  },
  reads: {
    'nothing was read': { reads: { checked: 0, mismatches: 0, examples: [] } },
    'one read differed': {
      reads: {
        checked: 900,
        mismatches: 1,
        examples: [{ id: 17, column: 'email', expectedSeq: 4, seen: 3 }],
      },
    },
  },
  'lazy upgrades': {
    'no read moved its row': { lazy: { rows: 0, cells: 0 } },
  },
  writes: {
    'nothing was written': { writes: { ...complete.writes, acknowledged: 0 } },
    'no row was added': { writes: { ...complete.writes, inserted: 0 } },
    'no row was deleted': { writes: { ...complete.writes, deleted: 0 } },
    'one write was lost': { finalCheck: { ...complete.finalCheck, lost: 1 } },
  },
  'writes on the way': {
    'nothing was written while every value was decrypted': { writes: { ...complete.writes, whileVerifying: 0 } },
    'nothing was written while the key was retired': { writes: { ...complete.writes, whileRetiring: 0 } },
  },
  'final check': {
    'a cell was not looked at': { finalCheck: { ...complete.finalCheck, checked: 5_996 } },
    'a cell that nobody wrote differs': { finalCheck: { ...complete.finalCheck, mismatches: 1 } },
  },
  'deep verify': {
    'it found something': { deepVerify: { ...complete.deepVerify, state: 'completed_with_failures' } },
    'it opened too few cells': { deepVerify: { ...complete.deepVerify, cells: 5_993 } },
  },
  'new key everywhere': {
    'a cell names the old key': { naming: { named: 5_996, others: 1 } },
    'a cell is gone': { naming: { named: 5_996, others: 0 } },
  },
  counting: {
    'the batches do not add up': balanced({ ...counts, current: 499 }),
    'the ledger differs from the batches': {
      counts: { byBatches: counts, byLedger: { ...counts, reencrypted: 5_499 } },
    },
    'cells were left out': balanced({ ...counts, examined: 5_994, reencrypted: 5_490 }),
  },
  updated_at: {
    'a row was touched': { rowsWithChangedUpdatedAt: 1 },
  },
  'old key': {
    'it still decrypts': { oldKey: { ...complete.oldKey, state: 'decrypt_only' } },
  },
};

function balanced(same: Evidence['counts']['byBatches']): Partial<Evidence> {
  return { counts: { byBatches: same, byLedger: same } };
}

const cases = Object.entries(missing).flatMap(([name, ways]) =>
  Object.entries(ways).map(([way, change]) => ({ name, way, change })),
);

describe('the verdict of the demo', () => {
  test('complete evidence is proven', () => {
    expect(missingProofs(complete)).toEqual([]);
    expect(reportAsObject(complete)).toMatchObject({ proven: true, missing: [] });
    expect(reportAsText(complete)).toContain('Every proof holds');
  });

  test.each(cases)('without the proof "$name" it fails: $way', ({ name, change }) => {
    const seen = { ...complete, ...change };
    expect(missingProofs(seen)).toEqual([name]);
    expect(reportAsObject(seen)).toMatchObject({ proven: false, missing: [name] });
    expect(reportAsText(seen)).toContain(`NOT PROVEN: ${name}.`);
  });

  test('every proof is known to fail in some way', () => {
    expect(proofsOf(complete).map((proof) => proof.name)).toEqual(Object.keys(missing));
  });

  test('a mismatch is reported by cell and sequence number', () => {
    const examples = [{ id: 17, column: 'email' as const, expectedSeq: 4, seen: 3 }];
    expect(reportAsText({ ...complete, reads: { checked: 900, mismatches: 1, examples } })).toContain(
      'customer 17 email: expected seq 4, seen 3',
    );
  });
});
