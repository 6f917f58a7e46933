// The key states and their legal moves, as one literal table; each arrow's comment names what causes it.

export type KeyState = 'staged' | 'active' | 'decrypt_only' | 'retired' | 'pending_destruction' | 'destroyed';

export const keyMoves: Readonly<Record<KeyState, readonly KeyState[]>> = {
  staged: [
    'active', // key activate, once every live member holds it
    'destroyed', // discarded before it ever encrypted
  ],
  active: [
    'decrypt_only', // its successor's activation, in the same transaction
  ],
  decrypt_only: [
    'active', // roll back to a previous key
    'retired', // key retire, after the proof that no envelope names it
  ],
  retired: [
    'decrypt_only', // key restore
    'pending_destruction', // key destroy, requested
  ],
  pending_destruction: [
    'retired', // the request was withdrawn
    'destroyed', // approved by a second person after the waiting time
  ],
  destroyed: [],
};

export function mayMove(from: KeyState, to: KeyState): boolean {
  return keyMoves[from].includes(to);
}

/** The fewest states to pass on the way between two, both left out; undefined where no legal way leads there. */
export function statesBetween(from: KeyState, to: KeyState): readonly KeyState[] | undefined {
  const ways: (readonly KeyState[])[] = [[from]];
  const seen = new Set<KeyState>([from]);
  for (const way of ways) {
    const last = way.at(-1) ?? from;
    if (last === to) return way.slice(1, -1);
    for (const next of keyMoves[last]) {
      if (seen.has(next)) continue;
      seen.add(next);
      ways.push([...way, next]);
    }
  }
  return undefined;
}

/** Which states a member loads: everything it may still need to decrypt with. */
export function isLoaded(state: KeyState): boolean {
  return state === 'staged' || state === 'active' || state === 'decrypt_only';
}
