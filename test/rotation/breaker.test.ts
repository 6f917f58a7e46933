// When a run stops and asks: one cause in most cells of three batches in a row, and nothing less.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type BatchFailures, causeToPauseFor } from '../../src/rotation/breaker.js';

function batch(cellsExamined: number, failed: Readonly<Record<string, number>>): BatchFailures {
  return { cellsExamined, failedByCause: new Map(Object.entries(failed)) };
}

const bad = batch(10, { AUTHENTICATION_FAILED: 6 });

describe('the breaker', () => {
  test('names the cause that failed more than half of the cells of the last three batches', () => {
    expect(causeToPauseFor([bad, bad, bad])).toBe('AUTHENTICATION_FAILED');
    expect(causeToPauseFor([bad, bad, bad, batch(10, {})])).toBe('AUTHENTICATION_FAILED');
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
