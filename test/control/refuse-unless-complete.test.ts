// When an ended run counts as a success, and which error says that it does not.
import { describe, expect, test } from 'vitest';
import { refuseUnlessComplete } from '../../src/control/rotate-and-reencrypt.js';
import type { RunReport } from '../../src/control/runs.js';
import { KeyturnError } from '../../src/errors.js';

const failure = { target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 1, cells: 2 };

function ended(
  state: RunReport['state'],
  rest: Partial<Pick<RunReport, 'failures' | 'fields_stale' | 'held_back_by'>> = {},
): RunReport {
  return {
    run_id: 7,
    kind: 'reencrypt',
    state,
    keyring: 'customers',
    target_key_id: 2,
    target_key: 'customers v2 (id 2)',
    scope: null,
    targets: ['public.customer'],
    rows_examined: 10,
    rows_updated: 9,
    rows_skipped_all_on_target: 0,
    rows_conflicted: 0,
    rows_failed: 1,
    fields_examined: 10,
    fields_reencrypted: 8,
    fields_skipped_on_target: 0,
    fields_conflicted: 0,
    fields_failed: 2,
    fields_settled: 10,
    fields_stale: 0,
    failures: [],
    batches: { pending: 0, dispatched: 0, running: 0, done: 1 },
    slices: 1,
    round: 0,
    limits: { rows_per_second: null, workers: null, hours: null, zone: null },
    priority: 0,
    emergency: false,
    retries: null,
    held_back_by: null,
    pace: null,
    reason: null,
    requested_by: 'operator',
    pass_rows: 10,
    pass_estimated_rows: 10,
    rows_per_second: null,
    created_at: '2026-01-01T00:00:00.000Z',
    started_at: null,
    verified_at: null,
    finished_at: null,
    ...rest,
  };
}

function errorOf(work: () => void): KeyturnError | undefined {
  try {
    work();
    return undefined;
  } catch (error) {
    if (error instanceof KeyturnError) return error;
    throw error;
  }
}

describe('an ended run', () => {
  test('that succeeded is complete', () => {
    expect(errorOf(() => refuseUnlessComplete(ended('succeeded')))).toBeUndefined();
  });

  test('with failed cells is RUN_INCOMPLETE, unless failures are accepted', () => {
    const report = ended('completed_with_failures', { failures: [failure] });
    expect(errorOf(() => refuseUnlessComplete(report))).toMatchObject({ code: 'RUN_INCOMPLETE', kind: 'corrupt' });
    expect(errorOf(() => refuseUnlessComplete(report, { acceptFailures: true }))).toBeUndefined();
  });

  test('with stale cells is RUN_INCOMPLETE even where failures are accepted', () => {
    const report = ended('completed_with_failures', { fields_stale: 3 });
    expect(errorOf(() => refuseUnlessComplete(report, { acceptFailures: true }))).toMatchObject({
      code: 'RUN_INCOMPLETE',
    });
  });

  test('that was paused is refused with the cause', () => {
    const error = errorOf(() => refuseUnlessComplete(ended('paused', { held_back_by: 'KEY_RETIRED 1' })));
    expect(error).toMatchObject({ code: 'RUN_STATE_REFUSED' });
    expect(error?.message).toContain('KEY_RETIRED 1');
  });
});
