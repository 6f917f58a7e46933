// Repairing the records of root keys after single tables were restored: only for a root key that opens every data key.
import { proveOpens } from '../engine/rewrap.js';
import { isKeyturnError } from '../errors.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { getClusterId } from '../store/keys.js';
import { listRoots, lockKeyringsUnder, lockRootChange, repairRoot, type RootRow } from '../store/roots.js';
import type { ControlContext } from './context.js';

/**
 * Writes records and tokens anew that are lost or older than the wraps, as after a restore of single tables: only for a
 * given root that opens every data key under the number. Answers the fingerprints.
 */
export async function repairRoots(
  context: ControlContext,
  rootsOf: (keyring: string) => readonly RootKey[],
): Promise<readonly string[]> {
  const repaired: string[] = [];
  const roots = await listRoots(context.database);
  for (const root of roots.filter(({ wraps }) => wraps > 0)) {
    const given = [...new Set(root.keyrings.flatMap(rootsOf))];
    const matching = given.find((candidate) => candidate.fingerprint.equals(root.fingerprint));
    if (given.length === 0 || (await matching?.opensToken(root.id, root.verificationToken)) === true) continue;
    for (const candidate of matching === undefined ? given : [matching]) {
      if (!(await repairWith(context, root, candidate))) continue;
      repaired.push(candidate.shortFingerprint);
      break;
    }
  }
  return repaired;
}

async function repairWith(context: ControlContext, root: RootRow, key: RootKey): Promise<boolean> {
  const cluster = await getClusterId(context.database);
  try {
    await context.database.transaction(async (client) => {
      await lockRootChange(client);
      await lockKeyringsUnder(client, root.id);
      await proveOpens(client, { id: root.id, key }, root.id, { cluster, afterPage: async () => undefined });
      await repairRoot(client, {
        ...root,
        fingerprint: key.fingerprint,
        verificationToken: await key.createToken(root.id),
      });
    });
    return true;
  } catch (error) {
    // Another root than this one, or not of every key: the refusal to open the keyring says so.
    if (isKeyturnError(error, 'UNWRAP_FAILED')) return false;
    throw error;
  }
}
