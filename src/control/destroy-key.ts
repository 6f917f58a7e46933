// The operator's verbs for the end of a data key: ask, approve, cancel. Destroying takes a retired key, the waiting time by
// the database's clock, a second database login, and the proof once more, all in one transaction with the record (I6, I10).
import { holdFences, readFences, refuseIfTouched, refuseUnlessFenced } from '../engine/fence.js';
import { proveUnused, refuseWhileAtHand } from '../engine/retire.js';
import { KeyturnError } from '../errors.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKeyring } from '../keys/key-store.js';
import type { Queryable } from '../store/database.js';
import {
  approveDestruction,
  cancelDestruction,
  destroyKey,
  getDestruction,
  listDestructions,
  requestDestruction,
  type Destruction,
} from '../store/destructions.js';
import { getKeyring, lockKeyring } from '../store/keys.js';
import { leastWaitDays } from '../store/migrations/retirement-statements.js';
import { patienceOf, type ControlContext } from './context.js';
import { beginDurable, chooseKeyring, findKey, listingOf, type KeyListing } from './keys.js';

export interface DestructionReport {
  readonly request: number;
  readonly key: string;
  readonly keyring: string;
  readonly reason: string;
  readonly requested_by: string;
  readonly requested_at: string;
  readonly not_before: string;
  /** Whether the waiting time is over. */
  readonly is_due: boolean;
  /** Of an approval that still stands. */
  readonly approved_by: string | null;
  /** SHA-256 of `canonical`. */
  readonly hash: string;
  readonly canonical: string;
  readonly next: string;
}

export const defaultWaitDays = 30;

/** Asks for the destruction of a retired key. Throws KEY_STATE_REFUSED, KEY_IN_USE where its fence does not stand. */
export async function askForDestruction(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  { reason, waitDays = defaultWaitDays }: { reason: string | undefined; waitDays?: number | undefined },
): Promise<{ keyring: string; key: KeyListing; destruction: DestructionReport }> {
  const { database } = context;
  const keyring = await chooseKeyring(database, keyringName);
  const key = findKey(keyring, keyName);
  if (reason === undefined || reason === '')
    throw new KeyturnError('USAGE', 'a destruction is asked for with a reason; say why with --reason');
  if (waitDays < leastWaitDays && key.activatedAt !== undefined)
    throw new KeyturnError(
      'USAGE',
      `${keyTitle(keyring.name, key)} was active, so it waits at least ${leastWaitDays} days; ask for more than ${waitDays} with --wait-days`,
    );
  await database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring.name);
    const present = findKey(locked, String(key.id));
    if (present.state === 'retired') refuseUnlessFenced(await readFences(client), Number(key.id));
    await requestDestruction(client, locked, present, { reason, waitDays });
  }, beginDurable);
  return reportOf(context, keyring.name, Number(key.id));
}

async function reportOf(
  context: ControlContext,
  keyringName: string,
  keyId: number,
): Promise<{ keyring: string; key: KeyListing; destruction: DestructionReport }> {
  const keyring = await getKeyring(context.database, keyringName);
  const destruction = await getDestruction(context.database, keyId);
  return {
    keyring: keyring.name,
    key: listingOf(keyring, findKey(keyring, String(keyId))),
    destruction: destructionReport(keyring, destruction),
  };
}

function destructionReport(keyring: StoredKeyring, destruction: Destruction): DestructionReport {
  const { id, keyId, hash, isDue } = destruction;
  return {
    request: id,
    key: keyTitle(keyring.name, findKey(keyring, String(keyId))),
    keyring: keyring.name,
    reason: destruction.reason,
    requested_by: destruction.requestedBy,
    requested_at: destruction.requestedAt.toISOString(),
    not_before: destruction.notBefore.toISOString(),
    is_due: isDue,
    approved_by: destruction.isApproved ? (destruction.approvedBy ?? null) : null,
    hash,
    canonical: destruction.request,
    next: `as another database login${isDue ? '' : `, from ${destruction.notBefore.toISOString()} on`}: keyturn key destroy ${keyId} --keyring ${keyring.name} --approve ${hash}`,
  };
}

/** Open requests of one keyring, for `status`. */
export async function listPendingDestructions(
  database: Queryable,
  keyring: StoredKeyring,
): Promise<readonly DestructionReport[]> {
  const ofKeyring = (destruction: Destruction): boolean => keyring.keys.some(({ id }) => id === destruction.keyId);
  return (await listDestructions(database))
    .filter(ofKeyring)
    .map((destruction) => destructionReport(keyring, destruction));
}

/**
 * Approves the request and destroys the key. An approval outlives a destruction that was refused by up to an hour; within
 * it either login may repeat the command. `request`: the request's number or hash.
 */
export async function approveAndDestroy(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  request: string,
  reason: string | undefined,
): Promise<{ keyring: string; key: KeyListing; approved_by: string }> {
  const { database } = context;
  const keyring = await chooseKeyring(database, keyringName);
  const key = findKey(keyring, keyName);
  const asked = await getDestruction(database, Number(key.id));
  refuseUnlessSame(asked, request);
  if (!asked.isApproved)
    await database.transaction(async (client) => {
      await approveDestruction(client, await getDestruction(client, Number(key.id), true), reason);
    }, beginDurable);
  await context.reachPoint?.('destroy.before');
  const approvedBy = await destroyProven(context, keyring, Number(key.id), request);
  const after = await getKeyring(database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))), approved_by: approvedBy };
}

function refuseUnlessSame(destruction: Destruction, request: string): void {
  if (request === String(destruction.id) || request.toLowerCase() === destruction.hash) return;
  throw new KeyturnError(
    'APPROVAL_REFUSED',
    `the open request for key ${destruction.keyId} is number ${destruction.id} with the hash ${destruction.hash}, not "${request.slice(0, 64)}"; read it again with: keyturn status`,
    { request: String(destruction.id) },
  );
}

/**
 * The request stays locked from before the scan to the commit, so the key cannot leave its state; the fence is the same
 * before and after, so nothing that names the key came after the scan's snapshot.
 */
async function destroyProven(
  context: ControlContext,
  keyring: StoredKeyring,
  keyId: number,
  request: string,
): Promise<string> {
  const { database } = context;
  const key = findKey(keyring, String(keyId));
  await refuseWhileAtHand(database, keyring, key);
  return database.transaction(async (client) => {
    const destruction = await getDestruction(client, keyId, true);
    refuseUnlessSame(destruction, request);
    const fences = await readFences(client);
    refuseUnlessFenced(fences, keyId);
    const proof = await proveUnused(database, keyring, key, {
      onProgress: context.onProgress,
      olderTransactionsMs: patienceOf(context).patienceMs,
      ownBackend: Number((await client.query('SELECT pg_backend_pid()')).rows[0]?.[0]),
    });
    const now = await holdFences(client);
    const locked = await lockKeyring(client, keyring.name);
    refuseIfTouched(fences, now, keyId);
    const evidence = { ...proof, fence: now.map(({ table, definitions }) => ({ table, definitions })) };
    await destroyKey(
      client,
      locked,
      findKey(locked, String(keyId)),
      destruction,
      { snapshot: proof.snapshot, scannedAt: new Date(proof.scannedAt), evidence },
      async () => context.reachPoint?.('destroy.after_null_before_audit'),
    );
    return String(destruction.approvedBy);
  }, beginDurable);
}

/** Takes the request back: the key is retired again, and what was asked and approved counts no more. */
export async function cancelRequest(
  context: ControlContext,
  keyringName: string | undefined,
  keyName: string,
  reason: string | undefined,
): Promise<{ keyring: string; key: KeyListing }> {
  const { database } = context;
  const keyring = await chooseKeyring(database, keyringName);
  const key = findKey(keyring, keyName);
  await database.transaction(async (client) => {
    if (key.state === 'pending_destruction') await getDestruction(client, Number(key.id), true);
    const locked = await lockKeyring(client, keyring.name);
    await cancelDestruction(client, locked, findKey(locked, String(key.id)), reason);
  }, beginDurable);
  const after = await getKeyring(database, keyring.name);
  return { keyring: keyring.name, key: listingOf(after, findKey(after, String(key.id))) };
}
