// Slots that hold back WAL, and dead rows: from where on they slow a run or stop it.
import { describe, expect, test } from 'vitest';
import { deadReadings, slotReading, type SeenSlot, type SeenTable } from '../../src/rotation/disk-use.js';
import type { Reading } from '../../src/rotation/health.js';

function gradeOf({ value, limits }: Pick<Reading, 'value' | 'limits'>): 'calm' | 'soft' | 'hard' {
  if (value >= limits.hard) return 'hard';
  return value >= limits.soft ? 'soft' : 'calm';
}

describe('a replication slot', () => {
  const graded = (slot: Partial<SeenSlot>): string =>
    gradeOf(slotReading({ name: 's', grade: 'reserved', left: undefined, ...slot }));

  test('slows a run once it is extended and stops it once its WAL is not safe', () => {
    expect((['reserved', 'extended', 'unreserved', 'lost'] as const).map((grade) => graded({ grade }))).toEqual([
      'calm',
      'soft',
      'hard',
      'hard',
    ]);
  });

  test('stops a run with less than a fifth of its room left, whatever its grade', () => {
    expect([1, 0.2, 0.19, -1].map((left) => graded({ left }))).toEqual(['calm', 'calm', 'hard', 'hard']);
    expect(graded({ grade: 'extended', left: 0.5 })).toBe('soft');
  });

  test('is named with its grade', () => {
    expect(slotReading({ name: 'cdc', grade: 'extended', left: undefined }).words).toBe(
      'replication slot cdc holds back WAL (extended)',
    );
  });
});

describe('dead rows', () => {
  const gibibyte = 1_073_741_824;
  const table: SeenTable = {
    table: 'public.customer',
    bytes: 10 * gibibyte,
    deadRows: 0,
    liveRows: 0,
    isCleanedUp: true,
  };

  test('slow a run from a tenth of the table on and stop it from a fifth on', () => {
    const graded = ([deadRows, liveRows]: readonly [number, number]): string | undefined =>
      deadReadings({ ...table, bytes: 100 * gibibyte, deadRows, liveRows }).map(gradeOf)[0];
    expect(
      (
        [
          [5, 95],
          [10, 90],
          [19, 81],
          [20, 80],
          [100, 0],
        ] as const
      ).map(graded),
    ).toEqual(['calm', 'soft', 'soft', 'hard', 'hard']);
  });

  test('of less than a gibibyte are not judged, nor those of an empty table', () => {
    expect(deadReadings({ ...table, deadRows: 9, liveRows: 91 })).toEqual([]);
    expect(deadReadings({ ...table, deadRows: 10, liveRows: 90 })).toHaveLength(1);
    expect(deadReadings(table)).toEqual([]);
  });

  test('where nothing will ever clean up stop nothing, and say what to run', () => {
    const [reading] = deadReadings({ ...table, deadRows: 90, liveRows: 10, isCleanedUp: false });
    expect(reading && gradeOf(reading)).toBe('soft');
    expect(reading?.words).toBe('90 % of table public.customer is dead rows; autovacuum is off for it, so run: VACUUM');
  });
});
