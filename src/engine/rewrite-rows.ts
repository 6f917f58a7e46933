// The write that every reencryption ends in, inside a transaction of the caller: lock the rows that are free, in key order,
// and rewrite those whose envelope is still the one that was read (I3).
import type { CellStore, Positions } from '../store/cells.js';
import type { Queryable } from '../store/database.js';
import type { TreatedRows } from './treat-rows.js';

/** Stale rows that were not written, as positions among the treated ones. */
export interface Unwritten {
  readonly rows: ReadonlySet<number>;
  /** Of these the ones that somebody else holds locked, or that are gone; the others have changed since they were read. */
  readonly busy: ReadonlySet<number>;
}

export async function rewriteRows(
  client: Queryable,
  store: CellStore,
  { stale, replacements }: Pick<TreatedRows, 'stale' | 'replacements'>,
  beforeUpdate: () => Promise<void>,
): Promise<Unwritten> {
  if (stale.length === 0) return allWritten;
  const locked = await store.lockUnlessBusy(client, replacements);
  await beforeUpdate();
  const rewritten =
    locked !== 'all' && locked.size === 0 ? locked : await store.replaceIfUnchanged(client, replacements, locked);
  return { rows: missing(stale, rewritten), busy: missing(stale, locked) };
}

export const allWritten: Unwritten = { rows: new Set(), busy: new Set() };

function missing(stale: readonly number[], found: Positions): ReadonlySet<number> {
  return found === 'all' ? new Set() : new Set(stale.filter((_, position) => !found.has(position)));
}
