// Rewrapping: every data key under one root key gets a wrap under another. Page by page inside one transaction, so that
// memory stays small at any number of keys; each key is unwrapped and compared with its commitment, and each new wrap is
// opened again from the bytes the database has, before anything commits.
import { KeyturnError } from '../errors.js';
import type { RootKey } from '../keys/roots/root-key.js';
import type { Queryable } from '../store/database.js';
import { insertWraps, lockWrappedKeys, type WrappedKey } from '../store/roots.js';

/** Data keys per statement. */
const pageKeys = 1_000;
/** Root keys behind a network are asked for this many keys at once. */
const atOnce = 16;

export interface NumberedRoot {
  readonly id: number;
  readonly key: RootKey;
}

export interface PassOptions {
  readonly cluster: string;
  /** After each page, with the keys done so far. */
  readonly afterPage: (done: number) => Promise<void>;
}

/** Adds the missing wraps under `to`. Answers how many keys `to` opens now, and how many wraps were added. */
export async function rewrapKeys(
  client: Queryable,
  from: NumberedRoot,
  to: NumberedRoot,
  options: PassOptions,
): Promise<{ keys: number; added: number }> {
  let added = 0;
  const keys = await forEachPage(client, { first: from.id, second: to.id }, options, async (page) => {
    const made = await inGroups(page, async ({ identity, commitment, first, second }) => {
      const known = second === undefined ? undefined : await to.key.unwrap(to.id, identity, commitment, second);
      const material = first === undefined ? known : await from.key.unwrap(from.id, identity, commitment, first);
      if (material === undefined || known !== undefined) return [];
      return [{ keyId: identity.id, blob: await to.key.wrap(to.id, identity, material.material) }];
    });
    const wraps = made.flat();
    if (wraps.length === 0) return;
    added += wraps.length;
    const stored = await insertWraps(client, to.id, wraps);
    await inGroups(
      page.filter(({ second }) => second === undefined),
      ({ identity, commitment }) =>
        to.key.unwrap(to.id, identity, commitment, stored.get(identity.id) ?? Buffer.alloc(0)),
    );
  });
  return { keys, added };
}

/**
 * Opens every data key under `kept`, those that `dropped` opens included. Throws ROOT_CHANGE_REFUSED for a key that only
 * `dropped` opens, UNWRAP_FAILED for one that does not open.
 */
export async function proveOpens(
  client: Queryable,
  kept: NumberedRoot,
  dropped: number,
  options: PassOptions,
): Promise<number> {
  return forEachPage(client, { first: kept.id, second: dropped }, options, async (page) => {
    const missing = page.filter(({ first }) => first === undefined).map(({ identity }) => identity.id);
    if (missing.length > 0)
      throw new KeyturnError(
        'ROOT_CHANGE_REFUSED',
        `data key ${missing.slice(0, 10).join(', ')} has no wrap under root key ${kept.id}, and removing root key ${dropped} would lose it; repeat keyturn root prepare first`,
        { rootId: kept.id },
      );
    await inGroups(page, ({ identity, commitment, first }) =>
      kept.key.unwrap(kept.id, identity, commitment, first ?? Buffer.alloc(0)),
    );
  });
}

async function forEachPage(
  client: Queryable,
  roots: { readonly first: number; readonly second: number },
  { cluster, afterPage }: PassOptions,
  treat: (page: readonly WrappedKey[]) => Promise<void>,
): Promise<number> {
  let done = 0;
  let afterId = 0;
  for (;;) {
    const page = await lockWrappedKeys(client, cluster, roots, { afterId, limit: pageKeys });
    if (page.length === 0) return done;
    const wrapped = page.filter(({ first, second }) => first !== undefined || second !== undefined);
    await treat(wrapped);
    done += wrapped.length;
    afterId = page.at(-1)?.identity.id ?? afterId;
    await afterPage(done);
    if (page.length < pageKeys) return done;
  }
}

async function inGroups<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<readonly R[]> {
  const results: R[] = [];
  for (let at = 0; at < items.length; at += atOnce)
    results.push(...(await Promise.all(items.slice(at, at + atOnce).map(work))));
  return results;
}
