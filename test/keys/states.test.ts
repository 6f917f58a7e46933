// The key states: every legal move, the refusal of all others, and which states are loaded.
import { describe, expect, test } from 'vitest';
import { isLoaded, keyMoves, type KeyState, mayMove, statesBetween } from '../../src/keys/states.js';

const states = Object.keys(keyMoves) as KeyState[];

/** Written out a second time on purpose: a change of the table has to be meant twice. */
const legal: Readonly<Record<KeyState, string>> = {
  staged: 'active destroyed',
  active: 'decrypt_only',
  decrypt_only: 'active retired',
  retired: 'decrypt_only pending_destruction',
  pending_destruction: 'retired destroyed',
  destroyed: '',
};

const arrows = states.flatMap((from) =>
  states.map((to) => ({ from, to, isLegal: legal[from].split(' ').includes(to) })),
);

describe('the states of a data key', () => {
  for (const { from, to } of arrows.filter(({ isLegal }) => isLegal)) {
    test(`a key that is ${from} may become ${to}`, () => {
      expect(mayMove(from, to)).toBe(true);
    });
  }

  for (const { from, to } of arrows.filter(({ isLegal }) => !isLegal)) {
    test(`a key that is ${from} cannot become ${to}`, () => {
      expect(mayMove(from, to)).toBe(false);
    });
  }

  test('I6 the active key cannot be retired or destroyed: a successor has to take over first', () => {
    expect(keyMoves.active).toEqual(['decrypt_only']);
  });

  test('I6 a key that ever encrypted is destroyed only after it was retired and then waited', () => {
    const before = states.filter((state) => mayMove(state, 'destroyed'));
    expect(before).toEqual(['staged', 'pending_destruction']);
    expect(states.filter((state) => mayMove(state, 'pending_destruction'))).toEqual(['retired']);
    expect(states.filter((state) => mayMove(state, 'staged'))).toEqual([]);
  });

  test('members load what they may still need to decrypt with, and nothing else', () => {
    expect(states.filter(isLoaded)).toEqual(['staged', 'active', 'decrypt_only']);
  });
});

test('the way between two states is the shortest of legal moves, and there is none back from destruction', () => {
  const ways = arrows.flatMap(({ from, to }) => {
    const between = statesBetween(from, to);
    return between === undefined || from === to ? [] : [[from, ...between, to]];
  });
  const steps = ways.flatMap((way) => way.slice(1).map((to, at) => mayMove(way[at] ?? to, to)));
  expect(steps).not.toContain(false);
  expect(statesBetween('active', 'retired')).toEqual(['decrypt_only']);
  expect(statesBetween('retired', 'active')).toEqual(['decrypt_only']);
  for (const to of states.filter((state) => state !== 'destroyed'))
    expect(statesBetween('destroyed', to)).toBeUndefined();
  for (const from of states.filter((state) => state !== 'staged'))
    expect(statesBetween(from, 'staged')).toBeUndefined();
});
