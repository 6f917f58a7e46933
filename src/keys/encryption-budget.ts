// Counts encryptions under one key before they happen: blocks are reserved in the key tables, spent here, never given back,
// so the stored count may only be too high. A key of a limited algorithm refuses when nothing is reserved; for the others
// counting never stands in the way, and what ran ahead of the count is reserved next.
import { encryptionLimits, type AlgorithmName } from '../crypto/algorithms.js';
import { KeyturnError } from '../errors.js';

export interface EncryptionBudget {
  /** Before encrypting so many values. Throws KEY_SPENT, ENCRYPTIONS_NOT_RESERVED. */
  spend(count: number): void;
}

export interface Reservation {
  /** Fewer than asked for, down to none, at the key's limit. */
  readonly granted: number;
  /** By all processes so far. */
  readonly reserved: number;
}

export interface RefilledBudget extends EncryptionBudget {
  /** Where less than a block is left, reserves what is missing to two. Throws what the reservation throws; the next call tries again. */
  refill(): Promise<void>;
}

export interface BudgetOptions {
  /** `customers v3 (id 17)`. */
  readonly title: string;
  readonly keyId: number;
  readonly algorithm: AlgorithmName;
  readonly reserve: (count: number) => Promise<Reservation>;
  /** A refill that nobody waits for failed. */
  readonly onTrouble: (error: unknown) => void;
}

/** Small at first, so that a process that soon ends leaves little unused; doubled with each refill that comes in between. */
const firstBlock = 65_536;
const largestBlock = 1_048_576;

export function createEncryptionBudget({ title, keyId, algorithm, ...options }: BudgetOptions): RefilledBudget {
  const isLimited = encryptionLimits[algorithm] !== undefined;
  let block = firstBlock;
  let left = 0;
  let isSpent = false;
  let refilling: Promise<void> | undefined;
  /** After a failure the caller of `refill` decides when to try again, not every value. */
  let mayAsk = true;

  async function reserve(): Promise<void> {
    if (left >= block || isSpent) return;
    const wanted = 2 * block - left;
    const { granted } = await options.reserve(wanted);
    left += granted;
    isSpent = granted < wanted;
  }

  function refill(): Promise<void> {
    refilling ??= reserve()
      .then(
        () => {
          mayAsk = true;
        },
        (error: unknown) => {
          mayAsk = false;
          throw error;
        },
      )
      .finally(() => {
        refilling = undefined;
      });
    return refilling;
  }

  function askAhead(): void {
    if (refilling !== undefined || !mayAsk || isSpent) return;
    block = Math.min(2 * block, largestBlock);
    refill().catch(options.onTrouble);
  }

  return {
    refill,
    spend(count) {
      if (isLimited && left < count) throw refusal();
      left -= count;
      if (left < block) askAhead();
    },
  };

  function refusal(): KeyturnError {
    askAhead();
    if (isSpent)
      return new KeyturnError(
        'KEY_SPENT',
        `${title} has used up its ${encryptionLimits[algorithm]?.refuse} encryptions with ${algorithm}, or counts so since a restore, and encrypts no more; rotate now: keyturn key rotate`,
        { keyId: String(keyId) },
      );
    return new KeyturnError(
      'ENCRYPTIONS_NOT_RESERVED',
      `no encryptions under ${title} are reserved for this process; try again once the control tables answer`,
      { keyId: String(keyId) },
    );
  }
}
