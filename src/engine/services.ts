// What the engine's functions are given: databases, the keyrings of this member, and the points where tests may stop it.
import type { Keyring } from '../keys/keyring.js';
import type { Outcome } from '../rotation/outcome.js';
import type { RunKind } from '../rotation/run.js';
import type { Target } from '../rotation/target.js';
import type { Database } from '../store/database.js';
import type { LazyUpgrades } from './lazy-upgrade.js';

/** Named points inside a batch; a crash test ends the process when one is reached. */
export type BatchPoint =
  | 'batch.after_read'
  | 'batch.before_update'
  | 'batch.before_commit'
  | 'batch.after_commit'
  | 'batch.before_ack';

export type ReachPoint = (point: BatchPoint) => Promise<void>;

export const passPoint: ReachPoint = async () => undefined;

/** The keyrings a member holds. */
export interface KeyringSource {
  /** Throws KEYRING_NOT_FOUND. */
  current(name: string): Keyring;
  /** The snapshot, if it is young enough to encrypt with; throws KEYRING_STALE. */
  forWriting(name: string): Keyring;
  /** Reads the keyring anew; at most once a second, concurrent calls share one read. */
  refresh(name: string): Promise<Keyring>;
}

/** A slice that was settled and committed. */
export interface SliceReport {
  /** Of its batch. */
  readonly kind: RunKind;
  readonly outcome: Outcome;
  /** Of the stored values that were read. */
  readonly bytes: number;
  readonly readMs: number;
  readonly cryptoMs: number;
  readonly writeMs: number;
}

/** What an application holds: the registered targets, its keyrings, and the way for stale values it reads. */
export interface ApplicationParts {
  /** As registered when the application opened Keyturn. */
  readonly targets: readonly Target[];
  /** The same with the columns that were left: what the application's entities may name. */
  readonly targetsOfEntities: readonly Target[];
  readonly keyrings: KeyringSource;
  readonly upgrades: LazyUpgrades;
}

export interface BatchServices {
  readonly database: Database;
  readonly keyrings: KeyringSource;
  readonly memberId: string;
  readonly reachPoint: ReachPoint;
  /** How long one statement of a slice's write may take; default 5 s. */
  readonly writeTimeoutMs?: number;
  /** Hears of every slice once it is committed; what it does with that must not throw. */
  readonly report?: (slice: SliceReport) => void;
}

/** How a worker's visit to a batch ended. Only `done` settles the batch; the ledger knows the rest. */
export type BatchEnd =
  | { readonly end: 'done' }
  /** The lease was lost: another worker has the batch, nothing of the last slice was written. */
  | { readonly end: 'lost' }
  | { readonly end: 'released'; readonly cause: string }
  /** Two batches have taken its place, so that the rows that fail are found and the others go on. */
  | { readonly end: 'split'; readonly cause: string }
  | { readonly end: 'stopped' };
