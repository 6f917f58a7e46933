// The write that every reencryption ends in, inside a transaction of the caller: lock the rows that are free, in key order,
// and rewrite those whose envelope is still the one that was read (I3).
import type { CellStore } from '../store/cells.js';
import type { Queryable } from '../store/database.js';
import type { TreatedRows } from './treat-rows.js';

/** The stale rows that were not written, as positions among the treated ones: busy, or changed since they were read. */
export async function rewriteRows(
  client: Queryable,
  store: CellStore,
  { stale, replacements }: Pick<TreatedRows, 'stale' | 'replacements'>,
  beforeUpdate: () => Promise<void>,
): Promise<ReadonlySet<number>> {
  if (stale.length === 0) return new Set();
  const locked = await store.lockUnlessBusy(client, replacements);
  await beforeUpdate();
  const rewritten =
    locked !== 'all' && locked.size === 0 ? locked : await store.replaceIfUnchanged(client, replacements, locked);
  return rewritten === 'all' ? new Set() : new Set(stale.filter((_, position) => !rewritten.has(position)));
}
