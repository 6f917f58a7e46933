// The arithmetic of an estimate: what it grows with, and that low never passes high.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { estimateRun, overHours, type EstimateInput, type Range } from '../../src/rotation/estimate.js';
import { noLimits, parseHours } from '../../src/rotation/limits.js';

const input: EstimateInput = {
  shape: { rows: 100_000, tableBytes: 20_000_000, indexBytes: 4_000_000, indexes: 2 },
  rowsToVisit: 100_000,
  rowsToMove: 100_000,
  costs: { readMs: 0.01, cryptoMs: 0.02, writeMs: 0.05 },
  workers: 1,
  rest: 0,
  limits: noLimits,
  checkpointSeconds: 300,
};

const span = ({ low, high }: Range): number => high - low;

test('an estimate spans from all work overlapping to none of it, and the second scan', () => {
  const { rows, seconds, growthBytes } = estimateRun(input);
  expect(rows).toBe(100_000);
  expect(seconds.low).toBeCloseTo(0.5 + 5, 5);
  expect(seconds.high).toBeCloseTo(5 + 3 + 7.5 + 1, 5);
  expect(growthBytes).toEqual({ low: 0, high: 24_000_000 });
});

test('at worst the rest beside an application at work is taken all the while, at best never', () => {
  const { seconds } = estimateRun({ ...input, rest: 9 });
  expect(seconds.low).toBeCloseTo(0.5 + 5, 5);
  expect(seconds.high).toBeCloseTo(5 + 10 * (3 + 7.5 + 1), 5);
});

test('a write that was never measured makes the range wider', () => {
  const unmeasured = estimateRun({ ...input, costs: { ...input.costs, writeMs: undefined } });
  expect(span(unmeasured.seconds)).toBeGreaterThan(span(estimateRun(input).seconds));
});

test('WAL is rows times row and entries, and pages once or twice, by the checkpoints crossed', () => {
  const records = 100_000 * (200 + 60);
  const entries = 100_000 * (40 + 2 * 64);
  expect(estimateRun(input).walBytes.low).toBeCloseTo(records, 0);
  expect(estimateRun(input).walBytes.high).toBeCloseTo(records + entries + 24_000_000, 0);
  expect(estimateRun({ ...input, checkpointSeconds: 1 }).walBytes.high).toBeCloseTo(
    records + entries + 2 * 24_000_000,
    0,
  );
});

test('rows per second hold for every row that is looked at, twice, and workers beyond the allowed count for nothing', () => {
  const seconds = (limits: EstimateInput['limits'], workers = 8): Range =>
    estimateRun({ ...input, workers, limits }).seconds;
  expect(seconds({ rowsPerSecond: 100, workers: undefined }).low).toBeCloseTo(0.5 + 2_000, 5);
  expect(seconds({ rowsPerSecond: 100, workers: undefined }).high).toBeCloseTo(5 + 2_000, 5);
  expect(seconds({ rowsPerSecond: undefined, workers: 1 })).toEqual(estimateRun(input).seconds);
  // Fewer rows a second than workers: no more batches are out than can each do one.
  expect(seconds({ rowsPerSecond: 1, workers: undefined }, 1)).toEqual(
    seconds({ rowsPerSecond: 1, workers: undefined }, 8),
  );
});

test('hours stretch the work over the nights it needs, from the opening at best and from the closing at worst', () => {
  const hour = 3_600;
  const nights = parseHours('22:00-06:00', 'Europe/Berlin');
  expect(overHours({ low: hour, high: 2 * hour }, undefined)).toEqual({ low: hour, high: 2 * hour });
  expect(overHours({ low: hour, high: 2 * hour }, nights)).toEqual({ low: hour, high: 18 * hour });
  expect(overHours({ low: 8 * hour, high: 20 * hour }, nights)).toEqual({ low: 8 * hour, high: 68 * hour });
  expect(overHours({ low: 9 * hour, high: 9 * hour }, nights)).toEqual({ low: 25 * hour, high: 41 * hour });
});

test('low never passes high, more rows never take less, and more workers never take longer', () => {
  const cost = fc.double({ min: 0, max: 10, noNaN: true });
  const made = fc.record({
    shape: fc.record({
      rows: fc.nat(1_000_000),
      tableBytes: fc.nat(1e9),
      indexBytes: fc.nat(1e9),
      indexes: fc.nat(10),
    }),
    rowsToVisit: fc.nat(1_000_000),
    rowsToMove: fc.nat(1_000_000),
    costs: fc.record({ readMs: cost, cryptoMs: cost, writeMs: fc.option(cost, { nil: undefined }) }),
    workers: fc.integer({ min: 1, max: 64 }),
    rest: fc.double({ min: 0, max: 50, noNaN: true }),
    limits: fc.record({
      rowsPerSecond: fc.option(fc.integer({ min: 1, max: 1_000_000 }), { nil: undefined }),
      workers: fc.option(fc.integer({ min: 1, max: 64 }), { nil: undefined }),
    }),
    checkpointSeconds: fc.integer({ min: 30, max: 3_600 }),
  });
  fc.assert(
    fc.property(made, (given) => {
      const estimate = estimateRun(given);
      for (const range of [estimate.seconds, estimate.walBytes, estimate.growthBytes])
        expect(range.low).toBeLessThanOrEqual(range.high);
      const more = estimateRun({ ...given, rowsToMove: given.rowsToMove * 2 });
      expect(more.seconds.low).toBeGreaterThanOrEqual(estimate.seconds.low);
      expect(more.walBytes.high).toBeGreaterThanOrEqual(estimate.walBytes.high);
      const faster = estimateRun({ ...given, workers: given.workers + 1 });
      expect(faster.seconds.high).toBeLessThanOrEqual(estimate.seconds.high);
      const unlimited = estimateRun({ ...given, limits: noLimits });
      expect(unlimited.seconds.low).toBeLessThanOrEqual(estimate.seconds.low);
      const nightly = overHours(estimate.seconds, parseHours('22:00-06:00', 'UTC'));
      expect(nightly.low).toBeGreaterThanOrEqual(estimate.seconds.low);
      expect(nightly.high).toBeGreaterThan(nightly.low);
    }),
  );
});
