// Containing keys that others may hold: they are marked, and where one of them encrypts its successor becomes active in the
// same transaction. A standby takes over at once, whoever lags behind; only where a key has to be made first are members
// waited for, and not for long. What a root key is needed for comes last, so that one that is away keeps nothing encrypting
// that should not.
import { waitForMembers } from '../engine/converge.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { StoredKey, StoredKeyring } from '../keys/key-store.js';
import { isRootAway } from '../keys/open-keyring.js';
import { keyTitle } from '../keys/keyring.js';
import { findLaggards, type Requirement } from '../rotation/convergence.js';
import { writeAudit } from '../store/audit.js';
import type { Queryable } from '../store/database.js';
import { activateKey, discardStagedKey, getKeyring, lockKeyring, markCompromised } from '../store/keys.js';
import { listExpectedMembers, listMembers } from '../store/members.js';
import { markRootsSuspect } from '../store/suspect-roots.js';
import { findUnbacked } from './backup-policy.js';
import { patienceOf, type ControlContext } from './context.js';
import { beginDurable, excuse, findKey, isFit, listingOf, stageIn, type Excused, type KeyListing } from './keys.js';

/** An emergency does not wait longer for members that are behind: it goes on without them and names them. */
const deadlineMs = 15_000;

export interface Containment {
  readonly keyring: string;
  /** Ids of the keys that others may hold. */
  readonly keys: readonly number[];
  readonly reason: string;
  /** Root keys that others may hold as well. */
  readonly suspectRoots: readonly number[];
  /** Where given, only a successor that was made in this key's stead will do: the same leak may have reached any other. */
  readonly insteadOf: number | undefined;
}

export interface Contained {
  readonly keyring: string;
  readonly keys: readonly KeyListing[];
  /** The key that encrypts now. */
  readonly active: KeyListing;
  /** Members that did not hold the new key in time. */
  readonly without: readonly Excused[];
  /** Why the successor is a standby that the same leak may have reached; null where it is not. */
  readonly successorTrouble: string | null;
  /** Why there is no standby now; null where there is one. */
  readonly standbyTrouble: string | null;
  /** Keys of the keyring that no backup covers: an emergency does not wait for one. */
  readonly unbackedKeys: readonly number[];
}

/** Repeating it never makes a second key. Throws what a root key's provider throws only where no standby can take over. */
export async function contain(context: ControlContext, order: Containment): Promise<Contained> {
  const { without, successorTrouble } = await replaceOrWait(context, order);
  const standbyTrouble = await stageStandby(context, order);
  const after = await getKeyring(context.database, order.keyring);
  const active = after.keys.find(({ state }) => state === 'active');
  if (active === undefined)
    throw new KeyturnError('KEY_STATE_REFUSED', `keyring ${after.name} has no active key; run: keyturn key activate`);
  return {
    keyring: after.name,
    keys: order.keys.map((id) => listingOf(after, findKey(after, String(id)))),
    active: listingOf(after, active),
    without,
    successorTrouble: successorTrouble ?? null,
    standbyTrouble: standbyTrouble ?? null,
    unbackedKeys: await findUnbacked(context, after),
  };
}

interface Replaced {
  readonly without: readonly Excused[];
  readonly successorTrouble?: string;
}

async function replaceOrWait(context: ControlContext, order: Containment): Promise<Replaced> {
  const { database } = context;
  const atOnce = await replaceNow(database, order, isFit);
  if (atOnce !== undefined) return { without: atOnce };
  try {
    await stageSuccessor(context, order);
  } catch (error) {
    if (!isRootTrouble(error)) throw error;
    // Better a successor that may be known than one that is.
    const lastResort = await replaceNow(database, order, async () => true);
    if (lastResort === undefined) throw error;
    return { without: lastResort, successorTrouble: error.message };
  }
  const without = await replaceNow(database, order, async () => true);
  if (without !== undefined) return { without };
  throw new KeyturnError(
    'KEY_STATE_REFUSED',
    `the staged key of ${order.keyring} was activated or discarded by another command meanwhile; repeat the command`,
    { keyring: order.keyring },
  );
}

async function stageSuccessor(context: ControlContext, order: Containment): Promise<void> {
  const { database } = context;
  const keyring = await getKeyring(database, order.keyring);
  const { key } = await stageIn(context, keyring, order.reason, { isOrdered: true, insteadOf: order.insteadOf });
  await waitForMembers(database, await requirementFor(database, keyring, key), {
    deadlineMs: Math.min(patienceOf(context).patienceMs, deadlineMs),
    onWait: (waiting) =>
      context.onProgress(
        `waiting at most ${deadlineMs / 1_000} s until every live member can decrypt with ${key.title}: ${waiting.map(({ member, why }) => `${member} ${why}`).join('; ')}`,
      ),
  });
}

async function requirementFor(
  database: Queryable,
  keyring: StoredKeyring,
  key: Pick<StoredKey, 'id' | 'algorithm'>,
): Promise<Requirement> {
  return {
    keyringId: keyring.id,
    holdsKeyId: Number(key.id),
    algorithm: key.algorithm,
    expectedMembers: await listExpectedMembers(database),
  };
}

/**
 * One transaction. Answers the members left behind; undefined where one of the keys is active and no staged key may take
 * over: then all the others are marked, and that one is still to be replaced.
 */
function replaceNow(
  database: ControlContext['database'],
  order: Containment,
  mayTakeOver: typeof isFit,
): Promise<readonly Excused[] | undefined> {
  const { reason } = order;
  const isMeant = ({ id }: StoredKey): boolean => order.keys.includes(Number(id));
  return database.transaction(async (client) => {
    const keyring = await lockKeyring(client, order.keyring);
    await markRootsSuspect(client, order.suspectRoots, reason);
    const staged = keyring.keys.find(({ state }) => state === 'staged');
    if (staged !== undefined && isMeant(staged)) await discardStagedKey(client, keyring, staged, reason);
    const successor =
      staged !== undefined && !isMeant(staged) && (await mayTakeOver(client, keyring, staged, order.insteadOf))
        ? staged
        : undefined;
    const hasToBeReplaced = keyring.keys.some((key) => key.state === 'active' && isMeant(key));
    const without =
      hasToBeReplaced && successor !== undefined ? await putInPlace(client, keyring, successor, reason) : [];
    for (const key of (await getKeyring(client, keyring.name)).keys)
      if (isMeant(key) && !key.isCompromised && key.state !== 'active')
        await markCompromised(client, keyring, key, reason);
    return hasToBeReplaced && successor === undefined ? undefined : without;
  }, beginDurable);
}

async function putInPlace(
  client: Queryable,
  keyring: StoredKeyring,
  successor: StoredKey,
  reason: string,
): Promise<readonly Excused[]> {
  const laggards = findLaggards(await listMembers(client), await requirementFor(client, keyring, successor));
  await activateKey(client, keyring, successor, reason);
  if (laggards.length > 0)
    await writeAudit(client, {
      action: 'key.activate.without',
      object: `key ${successor.id}`,
      reason,
      after: { without: laggards.map(({ member, why }) => `${member} ${why}`) },
    });
  return laggards.map((laggard) => excuse(laggard, keyTitle(keyring.name, successor)));
}

/** Answers why there is none. */
async function stageStandby(context: ControlContext, order: Containment): Promise<string | undefined> {
  try {
    await stageIn(context, await getKeyring(context.database, order.keyring), order.reason, {
      insteadOf: order.insteadOf,
    });
    return undefined;
  } catch (error) {
    if (isRootTrouble(error)) return error.message;
    throw error;
  }
}

function isRootTrouble(error: unknown): error is KeyturnError {
  return isRootAway(error) || isKeyturnError(error, 'MASTER_KEY_MISMATCH') || isKeyturnError(error, 'UNWRAP_FAILED');
}
