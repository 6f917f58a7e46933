// A member's keyrings and its report. Every 5 s it compares generations, reloads what changed and beats its heart; what
// it holds is visible to the operator and decides convergence (I5).
//
// A member that cannot reach the control tables goes on reading with the keys it has. It may not encrypt with a snapshot
// older than 30 s (monotonic clock): by the time the others have activated a new key, it has either seen it or fallen
// silent, and 45 s after its last heartbeat nobody waits for it any more.
import { hostname } from 'node:os';
import { randomUUID } from 'node:crypto';
import { algorithmNames } from '../crypto/algorithms.js';
import { KeyturnError } from '../errors.js';
import { formatNames } from '../formats/registry.js';
import type { KeyId } from '../crypto/value-key.js';
import type { RefilledBudget } from '../keys/encryption-budget.js';
import { foreignKeyId, type KeyStore } from '../keys/key-store.js';
import type { Keyring } from '../keys/keyring.js';
import {
  isRootAway,
  listOpenRoots,
  matchRoots,
  openKeyring,
  openKeyringOrRefuse,
  type KnownRoot,
  type OpenForeignKey,
} from '../keys/open-keyring.js';
import type { RootKey } from '../keys/roots/root-key.js';
import { isLoaded } from '../keys/states.js';
import type { Database } from '../store/database.js';
import { listRootRecords } from '../store/keys.js';
import { beat, leave, type HeldKeyring, type MemberIdentity, type MemberKind } from '../store/members.js';
import { createBudgetOf } from './counted-keyring.js';
import type { KeyringSource } from './services.js';

const refreshMs = 5_000;
const staleAfterMs = 30_000;
const minRefreshGapMs = 1_000;

export interface Membership extends KeyringSource {
  readonly id: string;
  readonly keyringNames: readonly string[];
  /** Removes the member row; after it nothing runs. Safe twice. */
  close(): Promise<void>;
}

export interface MembershipOptions {
  readonly database: Database;
  readonly store: KeyStore;
  readonly kind: MemberKind;
  readonly name: string;
  readonly version: string;
  /** Where the process answers health and metrics, if it does. */
  readonly healthUrl?: string | undefined;
  /** Keyrings to hold; undefined for all, new ones included. */
  readonly keyrings: readonly string[] | undefined;
  /** Opens the root keys of a keyring, as far as they are there; called again when the keyring has changed. */
  readonly openRoots: (keyring: string) => Promise<readonly RootKey[]>;
  /** Opens the key of a foreign format; whatever it cannot open this member reports as not held. */
  readonly openForeign?: OpenForeignKey;
  /** A refresh or heartbeat failed, or a key could not be opened; the member goes on. */
  readonly onTrouble: (error: unknown) => void;
  /** Monotonic milliseconds; default `performance.now`. */
  readonly now?: () => number;
}

interface Held {
  keyring: Keyring;
  roots: readonly RootKey[];
  /** Numbers of the roots it could start with. */
  rootIds: readonly number[];
  /** Monotonic milliseconds: when the read behind the snapshot began. */
  freshAtMs: number;
  refreshing: Promise<Keyring> | undefined;
  refreshedAtMs: number;
}

/** Opens every keyring, or throws (MASTER_KEY_MISMATCH, KEYRING_NOT_FOUND, …) before anything is written. */
export async function startMembership(options: MembershipOptions): Promise<Membership> {
  const { database, store } = options;
  const now = options.now ?? (() => performance.now());
  /** When the last report that reached the database was begun. */
  let reportedAtMs = -Infinity;
  let isClosed = false;
  const held = new Map<string, Held>();
  const budgets = new Map<KeyId, RefilledBudget>();
  const identity: MemberIdentity = {
    id: randomUUID(),
    kind: options.kind,
    name: options.name,
    host: hostname(),
    pid: process.pid,
    version: options.version,
    formats: formatNames,
    algorithms: algorithmNames,
    healthUrl: options.healthUrl,
  };

  /** With the budget of its active key, filled before anybody can encrypt with the snapshot. A supervisor never encrypts. */
  async function withBudget(keyring: Keyring): Promise<Keyring> {
    const keyId = keyring.active?.id;
    if (options.kind === 'supervisor' || keyId === undefined) return keyring;
    const budget = budgets.get(keyId) ?? createBudgetOf(database, keyring, options.onTrouble);
    if (budget === undefined) return keyring;
    budgets.set(keyId, budget);
    await budget.refill().catch(options.onTrouble);
    return Object.freeze({ ...keyring, budget });
  }

  /** What ran low between refreshes, or could not be reserved then. */
  async function refillBudgets(): Promise<void> {
    for (const { keyring } of held.values()) {
      const budget = keyring.active === undefined ? undefined : budgets.get(keyring.active.id);
      await budget?.refill().catch(options.onTrouble);
    }
  }

  async function open(name: string): Promise<void> {
    const readAtMs = now();
    const stored = await store.findKeyring(name);
    if (stored === undefined)
      throw new KeyturnError('KEYRING_NOT_FOUND', `there is no keyring "${name}" in this database; run: keyturn init`, {
        keyring: name,
      });
    const roots = await options.openRoots(name);
    const known = await listRootRecords(database);
    const { keyring, unproven } = await openKeyringOrRefuse(stored, roots, known, options.openForeign);
    if (unproven.length > 0)
      options.onTrouble(
        new KeyturnError(
          'UNWRAP_FAILED',
          `the record of root key ${unproven.join(', ')} is not that of the given root key, although every data key of ${name} opens; write it anew with: keyturn init`,
          { keyring: name },
        ),
      );
    held.set(name, {
      keyring: await withBudget(keyring),
      roots,
      rootIds: [...unproven, ...(await listOpenRoots(roots, known, options.onTrouble))],
      freshAtMs: readAtMs,
      refreshing: undefined,
      refreshedAtMs: readAtMs,
    });
  }

  function get(name: string): Held {
    const found = held.get(name);
    if (found !== undefined) return found;
    throw new KeyturnError(
      'KEYRING_NOT_FOUND',
      `this process does not hold keyring "${name}"; it holds: ${[...held.keys()].join(', ') || 'none'}`,
      { keyring: name },
    );
  }

  async function reload(name: string, entry: Held): Promise<Keyring> {
    const readAtMs = now();
    const stored = await store.findKeyring(name);
    if (stored === undefined) return entry.keyring;
    const known: readonly KnownRoot[] = await listRootRecords(database);
    const earlier = new Map(entry.keyring.held.map((key) => [key.id, key]));
    entry.roots = await openRootsAgain(name, entry.roots);
    const opened = await openKeyring(stored, matchRoots(entry.roots, known), earlier, {
      onAway: options.onTrouble,
      openForeign: options.openForeign,
    });
    const keyring = await withBudget(opened);
    entry.rootIds = await listOpenRoots(entry.roots, known, options.onTrouble);
    // A slower read that began before a newer snapshot arrived must not bring the older one back: the member may have
    // reported already that it writes with the newer key.
    if (keyring.generation >= entry.keyring.generation) entry.keyring = keyring;
    entry.freshAtMs = Math.max(entry.freshAtMs, readAtMs);
    entry.refreshedAtMs = now();
    return entry.keyring;
  }

  /** A root change may have given the keyring another place to look; whoever is away keeps what it holds. */
  async function openRootsAgain(name: string, earlier: readonly RootKey[]): Promise<readonly RootKey[]> {
    try {
      return await options.openRoots(name);
    } catch (error) {
      if (!isRootAway(error)) throw error;
      options.onTrouble(error);
      return earlier;
    }
  }

  function refresh(name: string): Promise<Keyring> {
    const entry = get(name);
    if (entry.refreshing !== undefined) return entry.refreshing;
    if (now() - entry.refreshedAtMs < minRefreshGapMs) return Promise.resolve(entry.keyring);
    entry.refreshing = reload(name, entry).finally(() => {
      entry.refreshing = undefined;
    });
    return entry.refreshing;
  }

  async function cycle(): Promise<void> {
    const readAtMs = now();
    const generations = await store.generations();
    for (const [name, generation] of generations) {
      const entry = held.get(name);
      if (entry === undefined) {
        // A new keyring whose root is away must not silence the heart of those that are held.
        if (options.keyrings === undefined) await open(name).catch(options.onTrouble);
      } else if (entry.keyring.generation === generation && isComplete(entry.keyring)) {
        entry.freshAtMs = Math.max(entry.freshAtMs, readAtMs);
      } else {
        await reload(name, entry);
      }
    }
    await beat(database, identity, [...held.values()].map(reportOf));
    reportedAtMs = readAtMs;
    await refillBudgets();
  }

  for (const name of options.keyrings ?? (await store.generations()).keys()) await open(name);
  await cycle();

  let running: Promise<void> = Promise.resolve();
  const timer = setInterval(() => {
    running = running.then(cycle).catch(options.onTrouble);
  }, refreshMs);
  timer.unref();

  return {
    id: identity.id,
    get keyringNames() {
      return [...held.keys()];
    },
    current: (name) => get(name).keyring,
    forWriting(name) {
      const entry = get(name);
      if (isClosed)
        throw new KeyturnError(
          'KEYRING_STALE',
          `this member has left, so nobody waits for it before keyring ${name} changes; open Keyturn again to encrypt`,
          { keyring: name },
        );
      // Both are needed: what it knows, and that the others know it is here.
      const ageMs = now() - Math.min(entry.freshAtMs, reportedAtMs);
      if (ageMs <= staleAfterMs) return entry.keyring;
      throw new KeyturnError(
        'KEYRING_STALE',
        `the snapshot of keyring ${name} is ${Math.round(ageMs / 1000)} s old, over ${staleAfterMs / 1000} s; encrypting stops until the control tables answer again`,
        { keyring: name },
      );
    },
    refresh,
    async close() {
      if (isClosed) return;
      isClosed = true;
      clearInterval(timer);
      await running;
      await leave(database, identity.id).catch(options.onTrouble);
    },
  };
}

/** A key whose provider was away is tried again at the next cycle. */
function isComplete(keyring: Keyring): boolean {
  return keyring.keys.every((key) => !isLoaded(key.state) || keyring.lookup(key.id).status === 'held');
}

function reportOf({ keyring, rootIds }: Held): HeldKeyring {
  return {
    rootIds,
    keyringId: keyring.id,
    generation: keyring.generation,
    writeKeyId: typeof keyring.active?.id === 'number' ? keyring.active.id : undefined,
    heldKeyIds: keyring.held.flatMap((key) => (typeof key.id === 'number' ? [key.id] : [])),
    foreignKeyIds: [...keyring.foreign.values()].map(foreignKeyId).filter((id) => keyring.lookup(id).status === 'held'),
  };
}
