// The operator's verbs on root keys: status, prepare, finalize, rollback, rotate. A change is one short transaction each
// way: it rewraps data keys, never rows, so its cost depends on the number of data keys alone. Between prepare and finalize
// every data key has a wrap under both roots, and processes start with either.
import { waitForMembers } from '../engine/converge.js';
import { proveOpens, rewrapKeys, type NumberedRoot, type PassOptions } from '../engine/rewrap.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import { shortFingerprintOf } from '../keys/open-keyring.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { memberTitle, type Laggard } from '../rotation/convergence.js';
import { listUnbackedKeys } from '../store/backups.js';
import type { Queryable } from '../store/database.js';
import { getClusterId, getKeyring, listRootUris } from '../store/keys.js';
import { listExpectedMembers, listMembers } from '../store/members.js';
import {
  beginRootChange,
  endRootChange,
  hasAllWraps,
  listKeyringIds,
  listKeysUnderNeither,
  listRoots,
  lockKeyringsUnder,
  lockRootChange,
  findWrapped,
  repairRoot,
  takeRootId,
  type RootRow,
  type WrappedKey,
} from '../store/roots.js';
import { isSuspect, markRootsSuspect } from '../store/suspect-roots.js';
import { demandBackups } from './backup-policy.js';
import type { ControlContext } from './context.js';
import { findChange, keyringsOf, laggardsOf, listingOf, type Change, type RootListing } from './root-status.js';

/** A few refreshes: a member that can open the root says so by then; one that cannot needs a restart. */
const defaultPatienceMs = 15_000;

export interface RootChangeReport {
  /** What this call did; `unchanged` where all of it had been done before, and nothing was written. */
  readonly outcome: 'prepared' | 'finalized' | 'rolled_back' | 'unchanged';
  /** Why nothing was to do. */
  readonly note: string | null;
  readonly root: RootListing;
  readonly dataKeys: number;
  readonly keyrings: readonly string[];
  /** Data keys that no backup opens any more with the root keys there are now. */
  readonly unbackedKeys: readonly number[];
  readonly next: string;
}

export interface RootTarget {
  /** URI of the new root key. */
  readonly to: string;
  /** Where keyrings have different roots: change the one of this keyring. */
  readonly keyring: string | undefined;
  readonly reason: string | undefined;
}

export interface Override {
  /** Members, by name or title, that are not waited for. */
  readonly without: readonly string[];
  readonly reason: string | undefined;
  /** Others may hold the root key that is replaced: recorded with its replacement, so that what it wrapped is replaced too. */
  readonly isLeak?: boolean;
}

/** Adds a wrap under the new root to every data key of the present one. Repeating it adds what is missing. */
export async function prepareRoot(context: ControlContext, target: RootTarget): Promise<RootChangeReport> {
  const cluster = await getClusterId(context.database);
  const next = await openNext(context, target.to, cluster);
  const done = await findDone(context.database, next, target);
  if (done !== undefined) return done;
  await demandBackupsOf(context, target.keyring);
  const report = await context.database.transaction(async (client) => {
    await lockRootChange(client);
    const doneMeanwhile = await findDone(client, next, target);
    if (doneMeanwhile !== undefined) return doneMeanwhile;
    const { to, keyrings, dataKeys } = await prepareUnderLock(context, client, { cluster, next, target });
    await context.reachPoint?.('root.before_commit');
    return {
      outcome: 'prepared' as const,
      note: null,
      root: to,
      dataKeys,
      keyrings,
      unbackedKeys: await listUnbacked(client, keyrings),
      next: `give ${target.to} to every process (roots: [${target.to}, …] in keyturn.yaml) and restart them one at a time, then keyturn root finalize`,
    };
  });
  await context.reachPoint?.('root.after_commit_before_report');
  return report;
}

/** What a change says of backups; asked in its own transaction, since nothing may fail after the commit. */
async function listUnbacked(client: Queryable, keyrings: readonly string[]): Promise<readonly number[]> {
  const unbacked: number[] = [];
  for (const id of await listKeyringIds(client, keyrings)) unbacked.push(...(await listUnbackedKeys(client, id)));
  return unbacked.toSorted((a, b) => a - b);
}

/** A backup from before the change opens with the former root key alone, so there has to be one while that is at hand. A leak does not wait. */
async function demandBackupsOf(context: ControlContext, keyring: string | undefined): Promise<void> {
  const { database } = context;
  const roots = await listRoots(database);
  const from = findChange(roots)?.from ?? (await currentRoot(database, roots, keyring));
  if (from.isSuspect) return;
  for (const name of from.keyrings) await demandBackups(context, await getKeyring(database, name));
}

async function openNext(context: ControlContext, uri: string, cluster: string): Promise<RootKey> {
  const [root] = await context.openRoots([uri], cluster);
  if (root !== undefined) return root;
  throw new KeyturnError('USAGE', 'expected the URI of the new root key, such as env:NAME or file:PATH');
}

/** Recognises what an earlier call, or another operator a moment ago, has done already; refuses a second change. */
async function findDone(
  database: Queryable,
  next: RootKey,
  { to: uri, keyring }: RootTarget,
): Promise<RootChangeReport | undefined> {
  const roots = await listRoots(database);
  const change = findChange(roots);
  const unchanged = async (root: RootRow, note: string, following: string): Promise<RootChangeReport> => ({
    outcome: 'unchanged',
    note,
    root: listingOf(root),
    dataKeys: root.wraps,
    keyrings: root.keyrings,
    unbackedKeys: await listUnbacked(database, root.keyrings),
    next: following,
  });
  if (change === undefined) {
    const current = await currentRoot(database, roots, keyring);
    if (!current.fingerprint.equals(next.fingerprint)) return undefined;
    return unchanged(
      current,
      `${uri} is the present root key already (number ${current.id}, in use since ${current.createdAt.toISOString()}); nothing was written`,
      'nothing to do',
    );
  }
  if (!change.to.fingerprint.equals(next.fingerprint)) {
    throw new KeyturnError(
      'ROOT_CHANGE_REFUSED',
      `a change from root key ${change.from.id} to ${change.to.id} (${change.to.uri}) is prepared; end it with keyturn root finalize or keyturn root rollback before another begins`,
      { from: change.from.id, to: change.to.id },
    );
  }
  if (!(await hasAllWraps(database, { first: change.from.id, second: change.to.id }))) return undefined;
  return unchanged(
    change.to,
    `the change to ${change.to.uri} (root key ${change.to.id}) is prepared already; nothing was written`,
    'keyturn root finalize',
  );
}

/** The root that is to be replaced: that of the keyring named, or the only one. */
async function currentRoot(
  database: Queryable,
  roots: readonly RootRow[],
  keyring: string | undefined,
): Promise<RootRow> {
  const inUse = roots.filter(
    (root) =>
      root.wraps > 0 && root.replaces === undefined && (keyring === undefined || root.keyrings.includes(keyring)),
  );
  const [only, ...others] = inUse;
  if (only === undefined) {
    if (keyring !== undefined) await getKeyring(database, keyring);
    throw new KeyturnError('NOT_INITIALIZED', 'no data key is wrapped under any root key; run: keyturn init');
  }
  if (others.length === 0) return only;
  if (keyring === undefined)
    throw new KeyturnError(
      'USAGE',
      `keyrings have different root keys (${inUse.map((root) => `${root.keyrings.join(' and ')} under ${root.id}`).join(', ')}); say whose to change with --keyring`,
    );
  throw new KeyturnError(
    'UNWRAP_FAILED',
    `the data keys of keyring ${keyring} are wrapped under no single root key (numbers ${inUse.map(({ id }) => id).join(', ')}) and no change is prepared; restore the key tables from one backup`,
    { keyring },
  );
}

interface Prepared {
  readonly from: RootRow;
  readonly fromKey: RootKey;
  readonly to: RootListing;
  readonly keyrings: readonly string[];
  readonly dataKeys: number;
}

async function prepareUnderLock(
  context: ControlContext,
  client: Queryable,
  { cluster, next, target }: { cluster: string; next: RootKey; target: RootTarget },
): Promise<Prepared> {
  const roots = await listRoots(client);
  if (await isSuspect(client, next.fingerprint))
    throw new KeyturnError(
      'ROOT_CHANGE_REFUSED',
      `others may hold the root key ${next.shortFingerprint} at ${target.to} (keyturn root status); make a new one and change to that`,
    );
  const from = findChange(roots)?.from ?? (await currentRoot(client, roots, target.keyring));
  const keyrings = await lockKeyringsUnder(client, from.id);
  const fromKey = await holdRoot(context, client, { cluster, keyrings, root: from });
  const id = await takeRootId(client, next.fingerprint);
  const inUse = roots.find((root) => root.id === id && root.wraps > 0 && root.replaces === undefined);
  if (inUse !== undefined)
    throw new KeyturnError(
      'ROOT_CHANGE_REFUSED',
      `${target.to} is the root key of keyring ${inUse.keyrings.join(' and ')} (number ${id}), and rolling back could not tell their wraps apart; change to a root key of its own`,
      { rootId: id },
    );
  await refuseMixture(client, keyrings, from.id, id);
  const root = {
    id,
    fingerprint: next.fingerprint,
    verificationToken: await next.createToken(id),
    uri: target.to,
  };
  // The record comes first: a wrap refers to its root.
  await beginRootChange(client, from, root, { keyrings, dataKeys: from.wraps, reason: target.reason });
  const { keys } = await rewrapKeys(
    client,
    { id: from.id, key: fromKey },
    { id, key: next },
    passOptions(context, cluster),
  );
  if (!(await fromKey.opensToken(from.id, from.verificationToken)) || !fromKey.fingerprint.equals(from.fingerprint))
    await repairRoot(client, {
      ...from,
      fingerprint: fromKey.fingerprint,
      verificationToken: await fromKey.createToken(from.id),
    });
  const to = (await listRoots(client)).find((candidate) => candidate.id === id);
  if (to === undefined) throw new KeyturnError('DATABASE_ERROR', `root key ${id} was written and is not there`);
  return { from, fromKey, to: listingOf(to), keyrings, dataKeys: keys };
}

function passOptions(context: ControlContext, cluster: string): PassOptions {
  return {
    cluster,
    async afterPage(done) {
      context.onProgress(`${done} data keys`);
      await context.reachPoint?.('root.after_row_n');
    },
  };
}

async function refuseMixture(
  client: Queryable,
  keyrings: readonly string[],
  first: number,
  second: number,
): Promise<void> {
  const strangers = await listKeysUnderNeither(client, keyrings, { first, second });
  if (strangers.length === 0) return;
  throw new KeyturnError(
    'UNWRAP_FAILED',
    `data key ${strangers.join(', ')} has no wrap under root key ${first}, which opens others of its keyring; the key tables are mixed from different times, restore them from one backup`,
    { rootId: first },
  );
}

/**
 * The root key itself, from where the registry says it is. Known by its fingerprint; where its record is older than its
 * wraps, by opening one. Throws MASTER_KEY_MISMATCH when none of those given is it.
 */
async function holdRoot(
  context: ControlContext,
  client: Queryable,
  { cluster, keyrings, root }: { cluster: string; keyrings: readonly string[]; root: RootRow },
): Promise<RootKey> {
  const registered = await listRootUris(client);
  const uris = [...new Set([...keyrings.flatMap((name) => registered.get(name) ?? []), root.uri])];
  const given = await context.openRoots(uris, cluster);
  const known = given.find((candidate) => candidate.fingerprint.equals(root.fingerprint));
  if (known !== undefined) return known;
  const sample = await findWrapped(client, cluster, root.id);
  for (const candidate of given) {
    if (sample !== undefined && (await opens({ id: root.id, key: candidate }, sample))) return candidate;
  }
  const expected = shortFingerprintOf(root.fingerprint);
  const have = given.map((candidate) => candidate.shortFingerprint).join(', ') || 'none';
  throw new KeyturnError(
    'MASTER_KEY_MISMATCH',
    `MasterKeyMismatch: root key ${root.id} has fingerprint ${expected}, the given root key is ${have}; nothing was written; give the right root key at ${uris.join(' or ')}`,
    { expected, given: have },
  );
}

async function opens(root: NumberedRoot, sample: WrappedKey): Promise<boolean> {
  try {
    await root.key.unwrap(root.id, sample.identity, sample.commitment, sample.first ?? Buffer.alloc(0));
    return true;
  } catch (error) {
    if (isKeyturnError(error, 'UNWRAP_FAILED')) return false;
    throw error;
  }
}

/** Removes the wraps under the old root, once every live member can start with the new one. */
export function finalizeRoot(context: ControlContext, override: Override): Promise<RootChangeReport> {
  return endChange(context, 'root.finalize', override);
}

/** Removes the wraps under the new root: everything is as it was before prepare. */
export function rollbackRoot(context: ControlContext, override: Override): Promise<RootChangeReport> {
  return endChange(context, 'root.rollback', override);
}

type Ending = 'root.finalize' | 'root.rollback';

function sidesOf(ending: Ending, { from, to }: Change): { kept: RootRow; dropped: RootRow } {
  return ending === 'root.finalize' ? { kept: to, dropped: from } : { kept: from, dropped: to };
}

async function endChange(context: ControlContext, ending: Ending, override: Override): Promise<RootChangeReport> {
  const before = findChange(await listRoots(context.database));
  if (before === undefined) return nothingPrepared(context.database);
  await waitForLaggards(context, ending, before, override);
  const cluster = await getClusterId(context.database);
  let dropped: RootRow | undefined;
  const report = await context.database.transaction(async (client) => {
    await lockRootChange(client);
    const change = findChange(await listRoots(client));
    if (change === undefined) return nothingPrepared(client);
    if (change.to.id !== before.to.id)
      throw new KeyturnError(
        'ROOT_CHANGE_REFUSED',
        'another root change was prepared a moment ago; look at it with keyturn root status and repeat the command',
      );
    dropped = sidesOf(ending, change).dropped;
    const ended = await endUnderLock(context, client, { cluster, ending, change, override, keptKey: undefined });
    await context.reachPoint?.('root.before_commit');
    return ended;
  });
  if (dropped !== undefined) context.forgetRoot(dropped.fingerprint);
  await context.reachPoint?.('root.after_commit_before_report');
  return report;
}

async function nothingPrepared(database: Queryable): Promise<RootChangeReport> {
  const roots = await listRoots(database);
  const current = roots.filter((root) => root.wraps > 0).at(-1);
  if (current === undefined)
    throw new KeyturnError('NOT_INITIALIZED', 'no data key is wrapped under any root key; run: keyturn init');
  return {
    outcome: 'unchanged',
    note: `no root change is prepared; ${current.uri} (root key ${current.id}) is the present root key; nothing was written`,
    root: listingOf(current),
    dataKeys: current.wraps,
    keyrings: current.keyrings,
    unbackedKeys: await listUnbacked(database, current.keyrings),
    next: 'nothing to do',
  };
}

async function endUnderLock(
  context: ControlContext,
  client: Queryable,
  step: { cluster: string; ending: Ending; change: Change; override: Override; keptKey: RootKey | undefined },
): Promise<RootChangeReport> {
  const { cluster, ending, change, override } = step;
  const { kept, dropped } = sidesOf(ending, change);
  const keyrings = [
    ...new Set([...(await lockKeyringsUnder(client, kept.id)), ...(await lockKeyringsUnder(client, dropped.id))]),
  ];
  const ids = await listKeyringIds(client, keyrings);
  refuseLaggards(await laggardsLeft(client, ids, kept, override), ending, kept);
  await refuseMixture(client, keyrings, kept.id, dropped.id);
  const key = step.keptKey ?? (await holdRoot(context, client, { cluster, keyrings, root: kept }));
  const dataKeys = await proveOpens(client, { id: kept.id, key }, dropped.id, passOptions(context, cluster));
  await endRootChange(client, ending, kept, dropped, {
    keyrings,
    dataKeys,
    reason: override.reason,
    without: override.without,
  });
  const isFinal = ending === 'root.finalize';
  const isLeak = override.isLeak === true;
  if (isFinal && isLeak) await markRootsSuspect(client, [dropped.id], override.reason);
  return {
    outcome: isFinal ? 'finalized' : 'rolled_back',
    note: null,
    root: { ...listingOf(kept), state: 'current' },
    dataKeys,
    keyrings,
    unbackedKeys: await listUnbacked(client, keyrings),
    next: !isFinal
      ? `take ${dropped.uri} out of keyturn.yaml and of the processes again`
      : !isLeak && dropped.isSuspect
        ? `keyturn root finalize --reencrypt: others may hold the former root key, and with it every data key that it wrapped; and set root: ${kept.uri} in keyturn.yaml`
        : `set root: ${kept.uri} in keyturn.yaml; keep the former root key in escrow until the last backup of its time has expired`,
  };
}

/**
 * Prepare and finalize in one transaction, where no live member would be locked out; a change that is prepared already is
 * finalized.
 */
export async function rotateRoot(context: ControlContext, target: RootTarget & Override): Promise<RootChangeReport> {
  const cluster = await getClusterId(context.database);
  const next = await openNext(context, target.to, cluster);
  const done = await findDone(context.database, next, target);
  if (done !== undefined) return done.root.state === 'next' ? finalizeRoot(context, target) : done;
  if (target.isLeak !== true) await demandBackupsOf(context, target.keyring);
  let former: RootKey | undefined;
  const report = await context.database.transaction(async (client) => {
    await lockRootChange(client);
    const doneMeanwhile = await findDone(client, next, target);
    if (doneMeanwhile !== undefined) {
      if (doneMeanwhile.root.state !== 'next') return doneMeanwhile;
      throw new KeyturnError(
        'ROOT_CHANGE_REFUSED',
        'another operator prepared this root change a moment ago; look at it with keyturn root status',
      );
    }
    const prepared = await prepareUnderLock(context, client, { cluster, next, target });
    const change = findChange(await listRoots(client));
    if (change === undefined) throw new KeyturnError('DATABASE_ERROR', 'a root change was written and is not there');
    const ended = await endUnderLock(context, client, {
      cluster,
      ending: 'root.finalize',
      change,
      override: target,
      keptKey: next,
    });
    former = prepared.fromKey;
    await context.reachPoint?.('root.before_commit');
    return ended;
  });
  if (former !== undefined) context.forgetRoot(former.fingerprint);
  await context.reachPoint?.('root.after_commit_before_report');
  return report;
}

async function laggardsLeft(
  client: Queryable,
  keyringIds: readonly string[],
  root: RootRow,
  { without }: Override,
): Promise<readonly Laggard[]> {
  const members = await listMembers(client);
  const waived = new Set(
    members
      .filter((member) => without.includes(member.name) || without.includes(member.id))
      .map((member) => memberTitle(member)),
  );
  return laggardsOf(await listExpectedMembers(client), members, keyringIds, root).filter(
    ({ member }) => !waived.has(member) && !without.includes(member),
  );
}

async function waitForLaggards(
  context: ControlContext,
  ending: Ending,
  change: Change,
  override: Override,
): Promise<void> {
  const { kept } = sidesOf(ending, change);
  const expectedMembers = await listExpectedMembers(context.database);
  for (const keyringId of await listKeyringIds(context.database, keyringsOf(change))) {
    await waitForMembers(
      context.database,
      { keyringId, opensRootId: kept.id, expectedMembers },
      {
        // Whoever says whom to leave behind knows how long it would take.
        deadlineMs: override.without.length > 0 ? 0 : (context.patienceMs ?? defaultPatienceMs),
        onWait: (waiting) =>
          context.onProgress(
            `waiting until every live member can open root key ${kept.id}: ${waiting.map(({ member, why }) => `${member} ${why}`).join('; ')}`,
          ),
      },
    );
  }
}

function refuseLaggards(laggards: readonly Laggard[], ending: Ending, kept: RootRow): void {
  if (laggards.length === 0) return;
  const verb = ending === 'root.finalize' ? 'finalize' : 'rollback';
  throw new KeyturnError(
    'MEMBER_BEHIND',
    `not every live member could start again after ${verb}: ${laggards.map(({ member, why }) => `${member} ${why}`).join('; ')}; give it ${kept.uri} and restart it, then repeat the command (keyturn root prepare gives everybody the time), or leave it behind with --without NAME --reason TEXT`,
    { rootId: kept.id, members: laggards.map(({ member }) => member) },
  );
}
