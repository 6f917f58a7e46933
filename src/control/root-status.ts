// root status: which root keys there are, whether one is being changed to another, and who could not start with which.
import { shortFingerprintOf } from '../keys/open-keyring.js';
import { findLaggards, type Laggard } from '../rotation/convergence.js';
import { listExpectedMembers, listMembers, type MemberRow } from '../store/members.js';
import { listKeyringIds, listRoots, type RootRow } from '../store/roots.js';
import { isExposedKeyInUse } from '../store/suspect-roots.js';
import type { ControlContext } from './context.js';

export interface RootListing {
  readonly id: number;
  readonly fingerprint: string;
  /** `next` from prepare to finalize, when it is `current`; `former` once nothing is wrapped under it. */
  readonly state: 'current' | 'next' | 'former';
  /** Others may hold it. */
  readonly suspect: boolean;
  readonly uri: string;
  readonly dataKeys: number;
  readonly keyrings: readonly string[];
  readonly createdAt: string;
}

export interface RootStatus {
  readonly roots: readonly RootListing[];
  /** From prepare to finalize. */
  readonly change: {
    readonly from: RootListing;
    readonly to: RootListing;
    /** Live members that could not start with the new root alone, and finalize would refuse. */
    readonly laggards: readonly Laggard[];
    /** Live members that could not start with the present root alone, and rollback would refuse. */
    readonly laggardsOfRollback: readonly Laggard[];
  } | null;
  /** The next safe command. */
  readonly next: string;
}

/** Needs the database alone. */
export async function rootStatus(context: ControlContext): Promise<RootStatus> {
  const rows = await listRoots(context.database);
  const pair = findChange(rows);
  const roots = rows.map(listingOf);
  if (pair === undefined)
    return { roots, change: null, next: (await commandAfterLeak(context, rows)) ?? 'nothing to do' };
  const members = await listMembers(context.database);
  const keyringIds = await listKeyringIds(context.database, keyringsOf(pair));
  const expected = await listExpectedMembers(context.database);
  const laggards = laggardsOf(expected, members, keyringIds, pair.to);
  return {
    roots,
    change: {
      from: listingOf(pair.from),
      to: listingOf(pair.to),
      laggards,
      laggardsOfRollback: laggardsOf(expected, members, keyringIds, pair.from),
    },
    next:
      laggards.length === 0
        ? finalizeCommand(pair)
        : `give ${pair.to.uri} to the members above and restart them one at a time, then ${finalizeCommand(pair)}`,
  };
}

function finalizeCommand({ from }: Change): string {
  return from.isSuspect ? 'keyturn root finalize --reencrypt' : 'keyturn root finalize';
}

/** What is left to do about root keys that others may hold: undefined where nothing is. */
export async function commandAfterLeak(
  { database }: ControlContext,
  roots: readonly RootRow[],
): Promise<string | undefined> {
  if (findChange(roots)?.from.isSuspect === true) return 'keyturn root status';
  if (roots.some(({ isSuspect, wraps }) => isSuspect && wraps > 0))
    return 'make a new root key, then keyturn root prepare --to URI and keyturn root finalize --reencrypt';
  return (await isExposedKeyInUse(database)) ? 'keyturn root finalize --reencrypt' : undefined;
}

export function listingOf(root: RootRow): RootListing {
  return {
    id: root.id,
    fingerprint: shortFingerprintOf(root.fingerprint),
    state: root.replaces !== undefined ? 'next' : root.wraps > 0 ? 'current' : 'former',
    suspect: root.isSuspect,
    uri: root.uri,
    dataKeys: root.wraps,
    keyrings: root.keyrings,
    createdAt: root.createdAt.toISOString(),
  };
}

export interface Change {
  readonly from: RootRow;
  readonly to: RootRow;
}

export function findChange(roots: readonly RootRow[]): Change | undefined {
  const to = roots.find((root) => root.replaces !== undefined);
  const from = roots.find((root) => root.id === to?.replaces);
  return from === undefined || to === undefined ? undefined : { from, to };
}

export function keyringsOf({ from, to }: Change): readonly string[] {
  return [...new Set([...from.keyrings, ...to.keyrings])];
}

/** Live members of these keyrings that could not start with this root key alone. */
export function laggardsOf(
  expectedMembers: readonly string[],
  members: readonly MemberRow[],
  keyringIds: readonly string[],
  root: RootRow,
): readonly Laggard[] {
  const found = new Map<string, Laggard>();
  for (const keyringId of keyringIds) {
    for (const laggard of findLaggards(members, {
      keyringId,
      opensRootId: root.id,
      expectedMembers,
    }))
      found.set(laggard.member, laggard);
  }
  return [...found.values()];
}
