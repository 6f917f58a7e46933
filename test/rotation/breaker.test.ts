// When a run stops and asks: one cause in most cells of three batches in a row, and nothing less.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type BatchFailures, causeToPauseFor, mostBatchesToJudge, whyPaused } from '../../src/rotation/breaker.js';

function batch(cellsExamined: number, failed: Readonly<Record<string, number>>): BatchFailures {
  return { cellsExamined, failedByCause: new Map(Object.entries(failed)) };
}

const bad = batch(10, { AUTHENTICATION_FAILED: 6 });

describe('the breaker', () => {
  test('names the cause that failed more than half of the cells of the last three batches', () => {
    expect(causeToPauseFor([bad, bad, bad])).toBe('AUTHENTICATION_FAILED');
    expect(causeToPauseFor([bad, bad, bad, batch(10, {})])).toBe('AUTHENTICATION_FAILED');
  });

  test('judges batches of a row or two together with enough others to mean something', () => {
    const lone = batch(1, { TIMEOUT: 1 });
    expect(causeToPauseFor([lone, lone, lone, batch(1_000, {})])).toBeUndefined();
    expect(causeToPauseFor(Array(19).fill(lone))).toBeUndefined();
    expect(causeToPauseFor(Array(mostBatchesToJudge).fill(lone))).toBe('TIMEOUT');
  });

  for (const { latest, what } of [
    { what: 'fewer than three batches', latest: [bad, bad] },
    { what: 'a good batch in between', latest: [bad, batch(10, {}), bad, bad] },
    { what: 'exactly half of the cells', latest: [bad, bad, batch(10, { AUTHENTICATION_FAILED: 5 })] },
    { what: 'another cause in one of them', latest: [bad, bad, batch(10, { MALFORMED: 10 })] },
    { what: 'causes that only together are more than half', latest: Array(3).fill(batch(10, { A: 4, B: 4 })) },
    { what: 'no batches', latest: [] },
  ]) {
    test(`stays closed for ${what}`, () => {
      expect(causeToPauseFor(latest)).toBeUndefined();
    });
  }

  test('one cell in a hundred never opens it, however the bad ones lie', () => {
    const batches = fc.array(
      fc.integer({ min: 100, max: 100_000 }).map((cells) => batch(cells, { MALFORMED: Math.floor(cells / 100) })),
      { minLength: 3, maxLength: 20 },
    );
    fc.assert(
      fc.property(batches, (latest) => {
        expect(causeToPauseFor(latest)).toBeUndefined();
      }),
    );
  });
});

describe('a run that pauses', () => {
  test.each([
    ['AUTHENTICATION_FAILED', 'copied from another table or tenant', 'keyturn quarantine list --run 7'],
    ['KEY_CHECK_DIFFERS', 'restored or merged', 'bring back the key tables'],
    ['UNKNOWN_KEY', 'another cluster', 'bring back the key tables'],
    ['TIMEOUT', 'trigger', 'mend that'],
    ['REFUSED_42501', 'lacks a privilege', 'keyturn init --print-sql'],
    ['DATABASE_ERROR 42501', 'lacks a privilege', 'keyturn init --print-sql'],
    ['DATABASE_UNAVAILABLE 53100', 'disk of the database is full', 'make room'],
    ['DATABASE_ERROR 25006', 'read-only', 'DATABASE_URL at the primary'],
    ['KEY_RETIRED 3', 'the key is needed', 'keyturn key restore 3'],
    ['KEY_NOT_HELD 3', 'no worker could open key 3', 'root keys'],
    ['LEASE_EXPIRED', 'did not come back', 'logs'],
    ['DATABASE_ERROR XX001', 'mend it', ''],
  ])('for %s names the cause, the likely reason and the next command', (cause, reason, first) => {
    const words = whyPaused(cause, 7);
    expect(words.startsWith(`${cause}; `)).toBe(true);
    expect(words).toContain(reason);
    expect(words).toContain(first);
    expect(words.endsWith(', then keyturn run resume 7')).toBe(true);
  });
});
