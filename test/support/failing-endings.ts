// The verbs that end a key, each with statement 1, 2, … failing: what is left is before or after, and the next attempt works.
import { expect } from 'vitest';
import type { ControlContext } from '../../src/control/context.js';
import { approveAndDestroy, askForDestruction, cancelRequest } from '../../src/control/destroy-key.js';
import { restore, retire, type KeyListing } from '../../src/control/keys.js';
import { listFenceTroubles } from '../../src/engine/fence.js';
import { hashOf, passWait, replacedKey, retiredKey, stateOf, wrapsOf } from './ending-keys.js';
import { failAt } from './failing-database.js';
import { outcomeOf } from './outcome-of.js';
import type { Race } from './racing-destruction.js';

/** Which statements fail: `from`, and every `step`-th after it, until none is left to fail. */
export interface Failures {
  readonly from: number;
  readonly step: number;
}

/** Answers the last that failed. */
async function failEach(
  context: ControlContext,
  { from, step }: Failures,
  verb: (failing: ControlContext) => Promise<unknown>,
  check: () => Promise<void>,
): Promise<number> {
  for (let nth = from; ; nth += step) {
    const { database, asked } = failAt(context.database, nth);
    const end = await outcomeOf(() => verb({ ...context, database }));
    const isOver = asked() < nth;
    // A verb that ends well although a statement of it failed has swallowed an error.
    expect({ nth, end }).toEqual({ nth, end: isOver ? 'done' : 'DATABASE_UNAVAILABLE' });
    if (isOver) return nth - step;
    await check();
  }
}

/** Answers the number of the last statement that failed. */
export async function failRetirement({ shop }: Race, failures: Failures): Promise<number> {
  const key = await replacedKey(shop);
  const { context } = shop.control;
  const last = await failEach(
    context,
    failures,
    (failing) => retire(failing, undefined, String(key.id), 'test'),
    async () => {
      const isRetired = (await stateOf(shop, key.id)) === 'retired';
      const troubles = await listFenceTroubles(context.database);
      expect({ isRetired, state: await stateOf(shop, key.id), troubles: isRetired ? troubles : [] }).toEqual({
        isRetired,
        state: isRetired ? 'retired' : 'decrypt_only',
        troubles: [],
      });
      if (isRetired) await restore(context, undefined, String(key.id), 'test');
    },
  );
  expect(await stateOf(shop, key.id)).toBe('retired');
  expect(await listFenceTroubles(context.database)).toEqual([]);
  return last;
}

/** Restore, request, cancellation, approval. Answers the number of the last statement of the approval that failed. */
export async function failEndings({ shop, ada, bob }: Race, failures: Failures): Promise<number> {
  const key = await retiredKey(shop);
  const { context } = shop.control;
  const name = String(key.id);
  await failEach(
    context,
    failures,
    (failing) => restore(failing, undefined, name, 'test'),
    async () => {
      if ((await stateOf(shop, key.id)) === 'decrypt_only') await retire(context, undefined, name, 'test');
    },
  );
  await retire(context, undefined, name, 'test');
  await failEach(
    ada.context,
    failures,
    (failing) => askForDestruction(failing, undefined, name, { reason: 'test' }),
    async () => {
      if ((await stateOf(shop, key.id)) === 'pending_destruction')
        await cancelRequest(context, undefined, name, 'test');
      expect(await stateOf(shop, key.id)).toBe('retired');
    },
  );
  await failEach(
    ada.context,
    failures,
    (failing) => cancelRequest(failing, undefined, name, 'test'),
    async () => {
      if ((await stateOf(shop, key.id)) === 'retired')
        await askForDestruction(ada.context, undefined, name, { reason: 'test' });
    },
  );
  await askForDestruction(ada.context, undefined, name, { reason: 'test' });
  await passWait(shop);
  let due = { key, hash: await hashOf(shop, key) };
  const last = await failEach(
    bob.context,
    failures,
    (failing) => approveAndDestroy(failing, undefined, String(due.key.id), due.hash, 'test'),
    async () => {
      const state = await stateOf(shop, due.key.id);
      expect({ state, wraps: await wrapsOf(shop, due.key.id) }).toEqual(
        state === 'destroyed' ? { state, wraps: 0 } : { state: 'pending_destruction', wraps: 1 },
      );
      if (state === 'destroyed') due = await dueKey({ shop, ada, bob });
    },
  );
  expect(await stateOf(shop, due.key.id)).toBe('destroyed');
  return last;
}

async function dueKey({ shop, ada }: Race): Promise<{ key: KeyListing; hash: string }> {
  const key = await retiredKey(shop);
  await askForDestruction(ada.context, undefined, String(key.id), { reason: 'test' });
  await passWait(shop);
  return { key, hash: await hashOf(shop, key) };
}
