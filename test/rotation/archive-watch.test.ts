// How many segments wait to be archived, from what a role may see of them.
import { expect, test } from 'vitest';
import { noArchiveWatch, watchArchive, type SeenArchive } from '../../src/rotation/archive-watch.js';

function waiting(...looks: readonly Partial<SeenArchive>[]): number | undefined {
  let watch = noArchiveWatch;
  let value: number | undefined;
  for (const look of looks) {
    const next = watchArchive(watch, {
      current: 100,
      archived: undefined,
      failed: undefined,
      waiting: undefined,
      ...look,
    });
    ({ watch } = next);
    value = next.readings[0]?.value;
  }
  return value;
}

test('those that a role may list are counted, whatever was archived or failed before', () => {
  expect(waiting({ waiting: 7, archived: 99 })).toBe(7);
  expect(waiting({ waiting: 0, failed: 3 })).toBe(0);
});

test('otherwise all after the newest one archived wait, but the one being written', () => {
  expect(waiting({ archived: 99 })).toBe(0);
  expect(waiting({ archived: 91 })).toBe(8);
  expect(waiting({ archived: 91, failed: 50 })).toBe(8);
  // Archived since, by the statistics, more than the position that was read first.
  expect(waiting({ archived: 101 })).toBe(0);
});

test('a backlog that stood before the watch began is seen where none was ever archived, or a history last: from the one that fails', () => {
  expect(waiting({ failed: 58 })).toBe(42);
});

test('where nothing was archived and nothing failed, what was written since the watch began waits', () => {
  expect(waiting({ current: 100 })).toBe(0);
  expect(waiting({ current: 100 }, { current: 109 })).toBe(9);
});

test('the reading says the number and is judged by the limits of an archive', () => {
  const { readings } = watchArchive(noArchiveWatch, {
    current: 100,
    archived: 57,
    failed: undefined,
    waiting: undefined,
  });
  expect(readings).toMatchObject([
    {
      source: 'wal_archive',
      value: 42,
      words: '42 segments of WAL wait to be archived',
      limits: { soft: 8, hard: 42 },
    },
  ]);
});
