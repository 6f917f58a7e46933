// key compromise: a key that others may hold stops encrypting at once, its values move in an emergency run, and it retires
// once nothing names it. Each step may be repeated after any failure and goes on where the last one stopped.
import type { RetirementProof } from '../engine/retire.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { getKeyring } from '../store/keys.js';
import { listTargets } from '../store/registry.js';
import { findRetirementEvidence } from '../store/compromised-keys.js';
import { listPresentRoots } from '../store/suspect-roots.js';
import { contain, type Contained } from './contain.js';
import type { ControlContext } from './context.js';
import { chooseKeyring, findKey, listingOf, retire, type KeyListing } from './keys.js';
import { reencryptToActive, type BegunRun, type RunnerSupply } from './rotate-and-reencrypt.js';

/** What no rotation undoes; said with every compromise. */
export const beyondRotation =
  'copies taken before stay readable to whoever holds this key: older row versions until VACUUM, WAL and its archives, replicas, backups, dumps, exports; what was exposed is disclosed';

export interface CompromiseOptions {
  readonly keyring: string | undefined;
  readonly key: string;
  readonly reason: string | undefined;
  /** The root key may be known as well: a standby wrapped under it is no refuge. */
  readonly isRootSuspect: boolean;
}

export interface ContainedKey extends Omit<Contained, 'keys'> {
  readonly key: KeyListing;
}

/**
 * Marks the key compromised. An active one is replaced by the standby in the same transaction; a staged one is discarded.
 * Repeating it never makes a second key. Throws USAGE without a reason, KEY_NOT_FOUND; ROOT_KEY_UNAVAILABLE and its like
 * where the key is active, there is no standby and none can be made.
 */
export async function containKey(context: ControlContext, options: CompromiseOptions): Promise<ContainedKey> {
  const { database } = context;
  const { reason, isRootSuspect } = options;
  if (reason === undefined)
    throw new KeyturnError('USAGE', 'a compromise is recorded with its reason; say what is known with --reason');
  const keyring = await chooseKeyring(database, options.keyring);
  const id = Number(findKey(keyring, options.key).id);
  const { keys, ...contained } = await contain(context, {
    keyring: keyring.name,
    keys: [id],
    reason,
    suspectRoots: isRootSuspect ? await listPresentRoots(database, keyring.id) : [],
    insteadOf: isRootSuspect ? id : undefined,
  });
  const after = await getKeyring(database, keyring.name);
  return { ...contained, key: keys[0] ?? listingOf(after, findKey(after, String(id))) };
}

/**
 * Orders the emergency run, or joins the one toward the active key and puts it before every other. Undefined where nothing
 * can name the keys: they never encrypted, are retired, or the keyring has no target.
 */
export async function beginEmergency(
  context: ControlContext,
  keyringName: string,
  keys: readonly Pick<KeyListing, 'state'>[],
  order: { readonly reason: string | undefined; readonly supply: RunnerSupply },
): Promise<BegunRun | undefined> {
  if (!keys.some(({ state }) => state === 'decrypt_only')) return undefined;
  const keyring = await getKeyring(context.database, keyringName);
  if ((await listTargets(context.database, keyring.id)).length === 0) return undefined;
  await order.supply.require();
  return reencryptToActive(context, { keyring: keyring.name, ...order, steering: { isEmergency: true } });
}

export interface RetiredKey {
  readonly key: KeyListing;
  readonly proof: RetirementProof;
}

/** Retires a contained key whose run is through; a supervisor may have done it a moment ago. */
export async function retireContained(
  context: ControlContext,
  keyringName: string,
  id: number,
  reason: string | undefined,
): Promise<RetiredKey> {
  try {
    return await retire(context, keyringName, String(id), reason);
  } catch (error) {
    if (!isKeyturnError(error, 'KEY_STATE_REFUSED')) throw error;
    const keyring = await getKeyring(context.database, keyringName);
    const key = listingOf(keyring, findKey(keyring, String(id)));
    if (key.state !== 'retired') throw error;
    return { key, proof: (await findRetirementEvidence(context.database, id)) as RetirementProof };
  }
}
