import { PassThrough } from 'node:stream';
import { describe, expect, test } from 'vitest';
import type { RunReport } from '../../src/control/runs.js';
import { describeSeconds, parseDuration } from '../../src/cli/duration.js';
import { toJson } from '../../src/cli/json.js';
import { createProgressLine } from '../../src/cli/progress-line.js';
import { progressPhase, progressWords, runLines } from '../../src/cli/run-words.js';
import { tableLines } from '../../src/cli/table.js';

const report: RunReport = {
  run_id: 3,
  kind: 'reencrypt',
  state: 'running',
  keyring: 'customers',
  target_key_id: 2,
  target_key: 'customers v2 (id 2)',
  scope: null,
  targets: ['public.customer'],
  rows_examined: 500,
  rows_updated: 490,
  rows_skipped_all_on_target: 7,
  rows_conflicted: 2,
  rows_failed: 1,
  fields_examined: 1_000,
  fields_reencrypted: 990,
  fields_skipped_on_target: 7,
  fields_conflicted: 2,
  fields_failed: 1,
  fields_settled: 998,
  fields_stale: 0,
  failures: [],
  batches: { pending: 0, dispatched: 0, running: 1, done: 0 },
  slices: 3,
  round: 0,
  limits: { rows_per_second: null, workers: null, hours: null, zone: null },
  priority: 0,
  emergency: false,
  retries: null,
  held_back_by: null,
  pace: null,
  reason: null,
  requested_by: 'owner',
  pass_rows: 500,
  pass_estimated_rows: 1_000,
  rows_per_second: 100,
  created_at: '2026-01-02T03:04:05.000Z',
  started_at: '2026-01-02T03:04:05.000Z',
  verified_at: null,
  finished_at: null,
};

const plain = { paint: (_: string, words: string): string => words };

describe('progress in words', () => {
  test('a run that moves shows bar, percent, rows, rate and time left, each estimate with a ~', () => {
    expect(progressWords(report)).toBe(
      'run 3 moving  [##########----------] ~50 %  500 of ~1,000 rows  100 rows/s  ~5 s left',
    );
  });

  test.each([1_000, 1_500, 1_000_000])(
    'a pass of %i rows where 1,000 were estimated stays below 100 percent',
    (rows) => {
      const words = progressWords({ ...report, pass_rows: rows });
      expect(words).toContain('~99 %');
      expect(words).not.toContain('left');
    },
  );

  test.each([null, 0])('a rate of %s gives no time left', (rate) => {
    expect(progressWords({ ...report, rows_per_second: rate })).not.toMatch(/left|rows\/s/);
  });

  test('a table that was never counted gives rows and no percent', () => {
    expect(progressWords({ ...report, pass_estimated_rows: 0, rows_per_second: null })).toBe('run 3 moving  500 rows');
  });

  test('a second round, the second scan and a dry run are named', () => {
    expect(progressPhase({ ...report, round: 1 })).toContain('moving, round 2');
    expect(progressPhase({ ...report, state: 'verifying' })).toContain('verifying');
    expect(progressPhase({ ...report, kind: 'dry_run' })).toContain('trying');
  });

  test('what holds a run back is said in words', () => {
    const words = progressWords({
      ...report,
      state: 'pending',
      held_back_by: 'waiting for worker a, which writes with key 1',
    });
    expect(words).toMatch(/^run 3 waiting to begin .*held back: waiting for worker a, which writes with key 1$/);
  });
});

describe('the progress line', () => {
  function showAt(stream: PassThrough): {
    show: (atMs: number, words: string, phase: string) => void;
    written: () => string;
  } {
    let nowMs = 0;
    const line = createProgressLine(stream, () => nowMs);
    return {
      show: (atMs, words, phase) => {
        nowMs = atMs;
        line.show(words, phase);
      },
      written: () => String(stream.read() ?? ''),
    };
  }

  test('without a terminal a line is printed at most every five seconds and whenever the phase changes', () => {
    const { show, written } = showAt(new PassThrough());
    show(0, 'a 1', 'a');
    show(4_999, 'a 2', 'a');
    show(5_000, 'a 3', 'a');
    show(5_001, 'b 1', 'b');
    expect(written()).toBe('a 1\na 3\nb 1\n');
  });

  test('on a terminal every change is redrawn in place and never wider than the terminal', () => {
    const terminal = Object.assign(new PassThrough(), { isTTY: true, columns: 11 });
    const { show, written } = showAt(terminal);
    show(0, '1234567890 and more', 'a');
    show(1, 'b', 'a');
    show(2, 'b', 'a');
    expect(written()).toBe('\r\u001b[2K1234567890\r\u001b[2Kb');
  });
});

describe('the report of a run', () => {
  test('shows every counter, and failures grouped with their remedies', () => {
    const failures = [
      { target: 'public.customer', field: 'email', cause: 'AUTHENTICATION_FAILED', key_id: 1, cells: 2 },
      { target: 'public.customer', field: 'phone', cause: 'AUTHENTICATION_FAILED', key_id: 1, cells: 1 },
      { target: 'public.customer', field: 'note', cause: 'REFUSED_22001', key_id: null, cells: 1 },
    ];
    const text = runLines(
      { ...report, failures, state: 'completed_with_failures', finished_at: '2026-01-02T03:05:06.000Z' },
      plain,
    ).join('\n');
    expect(text).toMatch(/completed with failures/);
    expect(text).toMatch(/moved +490 +990/);
    expect(text).toMatch(/on the key +7 +7/);
    expect(text).toMatch(/conflicted +2 +2/);
    expect(text).toMatch(/failed +1 +1/);
    expect(text).toMatch(/took +1 min 1 s/);
    expect(text.match(/AUTHENTICATION_FAILED: the envelope was altered/g)).toHaveLength(1);
    expect(text).toMatch(/REFUSED_22001: the column is too short/);
  });

  test('a verification has no line for moved cells and says how many are stale', () => {
    const text = runLines({ ...report, kind: 'verify', fields_stale: 12 }, plain).join('\n');
    expect(text).not.toContain('moved');
    expect(text).toContain('12 cells found that do not name customers v2 (id 2)');
  });
});

describe('small forms', () => {
  test('--json has names in snake_case, dates in ISO 8601, and null for what is absent', () => {
    expect(toJson({ isNew: true, retiredAt: undefined, key: { createdAt: new Date(0), ids: [1] } })).toBe(
      '{"is_new":true,"retired_at":null,"key":{"created_at":"1970-01-01T00:00:00.000Z","ids":[1]}}',
    );
  });

  test('tables align words to the left and numbers to the right', () => {
    expect(
      tableLines(
        ['name', 'rows'],
        [
          ['a', '1,000'],
          ['long name', '7'],
        ],
      ),
    ).toEqual(['  name        rows', '  a          1,000', '  long name      7']);
  });

  test.each([
    ['80d', 80 * 86_400_000],
    ['12h', 12 * 3_600_000],
    ['30m', 30 * 60_000],
    ['45s', 45_000],
  ])('the duration %s is %i ms', (text, ms) => {
    expect(parseDuration(text)).toBe(ms);
  });

  test.each(['', '80', 'd', '8 d', '-1d', '1.5h', '80D', '1w', '1234567d'])('"%s" is no duration', (text) => {
    expect(() => parseDuration(text)).toThrow(/such as 80d/);
  });

  test.each([
    [0.84, '0.8 s'],
    [59.4, '59 s'],
    [61, '1 min 1 s'],
    [7_260, '2 h 1 min'],
  ])('%d seconds are "%s"', (seconds, words) => {
    expect(describeSeconds(seconds)).toBe(words);
  });
});
