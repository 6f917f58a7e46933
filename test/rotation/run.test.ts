// The run's states: every legal move, the refusal of all others, and what the table promises as a whole.
import { describe, expect, test } from 'vitest';
import { isFinished, isWorking, mayMoveRun, maxRounds, runMoves, type RunState } from '../../src/rotation/run.js';

const states = Object.keys(runMoves) as RunState[];

/** Written out a second time on purpose: a change of the table has to be meant twice. */
const legal: Readonly<Record<RunState, string>> = {
  pending: 'running verifying pausing cancelling failed',
  running: 'verifying succeeded completed_with_failures pausing cancelling failed',
  verifying: 'running succeeded completed_with_failures pausing cancelling failed',
  pausing: 'paused pending running verifying cancelling',
  paused: 'pending running verifying cancelling',
  cancelling: 'cancelled',
  cancelled: '',
  succeeded: '',
  completed_with_failures: '',
  failed: '',
};

const arrows = states.flatMap((from) =>
  states.map((to) => ({ from, to, isLegal: legal[from].split(' ').includes(to) })),
);

function reachableFrom(start: RunState): Set<RunState> {
  const seen = new Set<RunState>([start]);
  for (const state of seen) for (const next of runMoves[state]) seen.add(next);
  return seen;
}

describe('the states of a run', () => {
  for (const { from, to } of arrows.filter(({ isLegal }) => isLegal)) {
    test(`a run that is ${from} may become ${to}`, () => {
      expect(mayMoveRun(from, to)).toBe(true);
    });
  }

  for (const { from, to } of arrows.filter(({ isLegal }) => !isLegal)) {
    test(`a run that is ${from} cannot become ${to}`, () => {
      expect(mayMoveRun(from, to)).toBe(false);
    });
  }

  test('every state can be reached, and from each one some end', () => {
    expect([...reachableFrom('pending')].toSorted()).toEqual(states.toSorted());
    for (const state of states) expect([...reachableFrom(state)].some(isFinished)).toBe(true);
  });

  test('the finished states are those without a way on', () => {
    expect(states.filter(isFinished)).toEqual(['cancelled', 'succeeded', 'completed_with_failures', 'failed']);
  });

  test('workers take batches only while the run is running or verifying, never once a stop was asked for', () => {
    expect(states.filter(isWorking)).toEqual(['running', 'verifying']);
  });

  test('an operator can cancel every run that is not finished or cancelled already', () => {
    const open = states.filter((state) => !isFinished(state) && state !== 'cancelling');
    expect(open.filter((state) => !mayMoveRun(state, 'cancelling'))).toEqual([]);
  });

  test('a run goes back at most three times to move what its scan found stale', () => {
    expect(maxRounds).toBe(3);
  });
});
