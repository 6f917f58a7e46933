// The key states: every legal move, the refusal of all others, and which states are loaded.
import { describe, expect, test } from 'vitest';
import { isLoaded, keyMoves, type KeyState, mayMove } from '../../src/keys/states.js';

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
