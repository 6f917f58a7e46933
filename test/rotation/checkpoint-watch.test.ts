// Which checkpoints count as forced by a run's WAL.
import { describe, expect, test } from 'vitest';
import { noCheckpointWatch, watchCheckpoints, type SeenCheckpoints } from '../../src/rotation/checkpoint-watch.js';

const walBetween = 1_000;

interface Look extends Partial<SeenCheckpoints> {
  readonly second: number;
  readonly isMoving?: boolean;
}

function counted(looks: readonly Look[]): number | undefined {
  let watch = noCheckpointWatch;
  let value: number | undefined;
  for (const { second, isMoving = true, requested = 0, redo = 0 } of looks) {
    const next = watchCheckpoints(watch, { requested, redo, walBetween }, { ms: second * 1_000, isMoving });
    ({ watch } = next);
    value = next.readings[0]?.value;
  }
  return value;
}

describe('checkpoints', () => {
  test('that were requested after as much WAL as the server allows count, for five minutes', () => {
    const forced = [{ second: 0 }, { second: 10, requested: 1 }, { second: 20, requested: 1, redo: 900 }];
    expect(counted(forced)).toBe(1);
    expect(counted([...forced, { second: 40, requested: 2, redo: 1_900 }])).toBe(2);
    expect(counted([...forced, { second: 321, requested: 1, redo: 900 }])).toBe(0);
  });

  test('that came by the clock, by hand after little WAL, or while nothing moved do not count', () => {
    expect(counted([{ second: 0 }, { second: 10, redo: 900 }])).toBe(0);
    expect(counted([{ second: 0 }, { second: 10, requested: 1, redo: 100 }])).toBe(0);
    expect(counted([{ second: 0 }, { second: 10, requested: 1, redo: 900, isMoving: false }])).toBe(0);
  });
});
