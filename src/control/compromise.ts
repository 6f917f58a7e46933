// key compromise: a key that others may hold stops encrypting at once, its values move in an emergency run, and it retires
// once nothing names it. Each step may be repeated after any failure and goes on where the last one stopped.
import { waitForMembers } from '../engine/converge.js';
import { KeyturnError } from '../errors.js';
import type { StoredKey, StoredKeyring } from '../keys/key-store.js';
import { writeAudit } from '../store/audit.js';
import { activateKey, discardStagedKey, getKeyring, lockKeyring, markCompromised } from '../store/keys.js';
import { listExpectedMembers } from '../store/members.js';
import { listTargets } from '../store/registry.js';
import { findUnbacked } from './backup-policy.js';
import { patienceOf, type ControlContext } from './context.js';
import {
  chooseKeyring,
  excuse,
  findKey,
  listingOf,
  openRootsOf,
  stageIn,
  type Excused,
  type KeyListing,
} from './keys.js';
import { keyTitle } from '../keys/keyring.js';
import { reencryptToActive, type BegunRun, type RunnerSupply } from './rotate-and-reencrypt.js';

/** An emergency does not wait longer for members that are behind: it goes on without them and names them. */
const deadlineMs = 15_000;

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

export interface Contained {
  readonly keyring: string;
  readonly key: KeyListing;
  /** The key that encrypts now. */
  readonly active: KeyListing;
  /** Members that did not hold the new key in time. */
  readonly without: readonly Excused[];
  /** Keys of the keyring that no backup covers: an emergency does not wait for one. */
  readonly unbackedKeys: readonly number[];
}

/**
 * Marks the key compromised. An active one is replaced by the standby in the same transaction; a staged one is discarded.
 * Repeating it never makes a second key. Throws USAGE without a reason, KEY_NOT_FOUND, MASTER_KEY_MISMATCH.
 */
export async function containKey(context: ControlContext, options: CompromiseOptions): Promise<Contained> {
  const { database } = context;
  const { reason } = options;
  if (reason === undefined)
    throw new KeyturnError('USAGE', 'a compromise is recorded with its reason; say what is known with --reason');
  const keyring = await chooseKeyring(database, options.keyring);
  const key = findKey(keyring, options.key);
  await openRootsOf(context, keyring);
  const without =
    key.state === 'active' ? await replaceActive(context, keyring, key, { ...options, reason }) : await markOnly();
  await stageIn(context, keyring, reason, { insteadOf: insteadOf(options, key) });
  const after = await getKeyring(database, keyring.name);
  const active = after.keys.find(({ state }) => state === 'active');
  if (active === undefined)
    throw new KeyturnError('KEY_STATE_REFUSED', `keyring ${keyring.name} has no active key; run: keyturn key activate`);
  const marked = findKey(after, String(key.id));
  return {
    keyring: keyring.name,
    key: listingOf(after, marked),
    active: listingOf(after, active),
    without,
    unbackedKeys: await findUnbacked(context, after),
  };

  async function markOnly(): Promise<readonly Excused[]> {
    await database.transaction(async (client) => {
      const locked = await lockKeyring(client, keyring.name);
      const current = findKey(locked, String(key.id));
      // Between the look and the lock a rotation may have activated it.
      if (current.state === 'active') throw changedMeanwhile(keyring, current);
      if (current.isCompromised) return;
      if (current.state === 'staged') await discardStagedKey(client, locked, current, reason);
      await markCompromised(client, locked, findKey(await getKeyring(client, keyring.name), String(key.id)), reason);
    });
    return [];
  }
}

function changedMeanwhile(keyring: StoredKeyring, key: StoredKey): KeyturnError {
  return new KeyturnError(
    'KEY_STATE_REFUSED',
    `${keyTitle(keyring.name, key)} was activated by another command meanwhile; repeat the command`,
    { keyId: String(key.id), state: key.state },
  );
}

/** Where the root is suspect, no key from before will do as successor or standby: the same leak may have reached it. */
function insteadOf({ isRootSuspect }: CompromiseOptions, key: StoredKey): number | undefined {
  return isRootSuspect ? Number(key.id) : undefined;
}

async function replaceActive(
  context: ControlContext,
  keyring: StoredKeyring,
  key: StoredKey,
  options: CompromiseOptions & { readonly reason: string },
): Promise<readonly Excused[]> {
  const { database } = context;
  const { reason } = options;
  const { key: next } = await stageIn(context, keyring, reason, {
    isOrdered: true,
    insteadOf: insteadOf(options, key),
  });
  const laggards = await waitForMembers(
    database,
    {
      keyringId: keyring.id,
      holdsKeyId: next.id,
      algorithm: next.algorithm,
      expectedMembers: await listExpectedMembers(database),
    },
    {
      deadlineMs: Math.min(patienceOf(context).patienceMs, deadlineMs),
      onWait: (waiting) =>
        context.onProgress(
          `waiting at most ${deadlineMs / 1_000} s until every live member can decrypt with ${next.title}: ${waiting.map(({ member, why }) => `${member} ${why}`).join('; ')}`,
        ),
    },
  );
  const without = laggards.map((laggard) => excuse(laggard, next.title));
  await database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring.name);
    const current = findKey(locked, String(key.id));
    if (current.state === 'active') await activateKey(client, locked, findKey(locked, String(next.id)), reason);
    if (!current.isCompromised) {
      const replaced = findKey(await getKeyring(client, keyring.name), String(key.id));
      await markCompromised(client, locked, replaced, reason);
    }
    if (without.length > 0)
      await writeAudit(client, {
        action: 'key.activate.without',
        object: `key ${next.id}`,
        reason,
        after: { without: without.map(({ member, why }) => `${member} ${why}`) },
      });
  });
  return without;
}

/**
 * Orders the emergency run, or joins the one toward the active key and puts it before every other. Undefined where nothing
 * can name the key: it never encrypted, is retired, or the keyring has no target.
 */
export async function beginEmergency(
  context: ControlContext,
  contained: Contained,
  order: { readonly reason: string | undefined; readonly supply: RunnerSupply },
): Promise<BegunRun | undefined> {
  if (contained.key.state !== 'decrypt_only') return undefined;
  const keyring = await getKeyring(context.database, contained.keyring);
  if ((await listTargets(context.database, keyring.id)).length === 0) return undefined;
  await order.supply.require();
  return reencryptToActive(context, { keyring: keyring.name, ...order, steering: { isEmergency: true } });
}
