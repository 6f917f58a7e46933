// After a root key that others may hold was replaced: every key that it ever wrapped may be known, and rewrapping protects
// nothing. The audit key and the data keys are replaced by new ones, which only the new root key ever wrapped. Each step looks
// at what is there, so that a command which was cut short goes on by being repeated.
import { KeyturnError } from '../errors.js';
import { getKeyring, lockKeyring } from '../store/keys.js';
import type { Queryable } from '../store/database.js';
import { listKeyringIds, listRoots, lockRootChange, type RootRow } from '../store/roots.js';
import {
  listExposedKeyrings,
  listExposedKeys,
  listFormerRoots,
  listPresentRoots,
  markRootsSuspect,
} from '../store/suspect-roots.js';
import { replaceExposedAuditKey } from './audit.js';
import { contain, type Contained } from './contain.js';
import type { ControlContext } from './context.js';
import { findChange } from './root-status.js';

export interface ReplacedKeys {
  /** Id of the new audit key; null where the present one is not known to others. */
  readonly auditKey: number | null;
  readonly keyrings: readonly Contained[];
}

/**
 * `keyrings`: those whose root key was replaced, now or by an earlier command. Their active keys give way to keys that no
 * suspect root ever wrapped; what was exposed is marked compromised, for an emergency run and retirement to follow. Throws
 * ROOT_CHANGE_REFUSED while a suspect root key is still in use there.
 */
export async function replaceExposedKeys(
  context: ControlContext,
  { keyrings, reason }: { readonly keyrings: readonly string[]; readonly reason: string },
): Promise<ReplacedKeys> {
  const names = await markFormerRoots(context, keyrings, reason);
  for (const name of keyrings) await refuseSuspectRoot(context, name);
  const auditKey = (await replaceExposedAuditKey(context, reason)) ?? null;
  const contained: Contained[] = [];
  for (const name of names) {
    const keyring = await getKeyring(context.database, name);
    const exposed = new Set((await listExposedKeys(context.database, keyring.id)).map(({ id }) => id));
    const keys = keyring.keys.filter(({ id, state }) => exposed.has(Number(id)) && state !== 'staged');
    if (keys.length === 0) continue;
    contained.push(
      await contain(context, {
        keyring: name,
        keys: keys.map(({ id }) => Number(id)),
        reason,
        suspectRoots: [],
        insteadOf: undefined,
      }),
    );
  }
  return { auditKey, keyrings: contained };
}

/**
 * Also those of changes that were made before anybody knew. Answers the keyrings to look at: with them those that an earlier
 * command left, and whose own root key is none that others may hold.
 */
function markFormerRoots(
  { database }: ControlContext,
  keyrings: readonly string[],
  reason: string,
): Promise<readonly string[]> {
  return database.transaction(async (client) => {
    await lockRootChange(client);
    for (const name of keyrings) await lockKeyring(client, name);
    const former = await listFormerRoots(client, await listKeyringIds(client, keyrings));
    await markRootsSuspect(client, former, reason);
    const others: string[] = [];
    for (const name of await listExposedKeyrings(client))
      if (!keyrings.includes(name) && (await findSuspectRoot(client, name)) === undefined) others.push(name);
    return [...keyrings, ...others];
  });
}

/** A root key that wraps keys of this keyring now, and that others may hold. */
async function findSuspectRoot(database: Queryable, name: string): Promise<RootRow | undefined> {
  const present = await listPresentRoots(database, (await getKeyring(database, name)).id);
  return (await listRoots(database)).find((root) => root.isSuspect && present.includes(root.id));
}

async function refuseSuspectRoot({ database }: ControlContext, name: string): Promise<void> {
  const suspect = await findSuspectRoot(database, name);
  if (suspect === undefined) return;
  const isPrepared = findChange(await listRoots(database)) !== undefined;
  const way = isPrepared ? 'keyturn root finalize --reencrypt' : 'keyturn root prepare --to URI';
  throw new KeyturnError(
    'ROOT_CHANGE_REFUSED',
    `keyring ${name} is still under root key ${suspect.id} (${suspect.uri}), which others may hold, and a new data key would be too; replace it with: ${way}`,
    { keyring: name, rootId: suspect.id },
  );
}
