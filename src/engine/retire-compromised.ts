// A compromised key retires when its emergency run is through, with the rights that the supervisor's login has. Where these do
// not reach, or something stands in the way, it is said and tried again; an operator may retire the key at any time.
import { isKeyturnError } from '../errors.js';
import { listRetirable, type RetirableKey } from '../store/compromised-keys.js';
import type { Database } from '../store/database.js';
import type { PolicyVerbs } from './advance-occurrence.js';

const lookMs = 5_000;
/** A command that waits for the run retires the key itself, and gets the time for it. */
const endedForSeconds = 10;
const retryMs = 30_000;

export interface Retirements {
  /** Looks, now and then; at most one attempt per key in half a minute. */
  advance(): Promise<void>;
}

export function createRetirements(options: {
  readonly database: Database;
  readonly verbs: Pick<PolicyVerbs, 'retireCompromised'>;
  readonly onTrouble: (error: unknown) => void;
  readonly onEvent: (event: string, details: Readonly<Record<string, number | string>>) => void;
}): Retirements {
  let lookedAtMs = -Infinity;
  const triedAtMs = new Map<number, number>();

  async function attempt(key: RetirableKey): Promise<void> {
    triedAtMs.set(key.id, performance.now());
    try {
      await options.verbs.retireCompromised({
        keyring: key.keyring,
        keyId: key.id,
        reason: `compromised; run ${key.runId} has moved its values`,
      });
      options.onEvent('compromised key retired', { key: key.id, keyring: key.keyring });
    } catch (error) {
      if (!isKeyturnError(error) || error.code === 'DATABASE_UNAVAILABLE') throw error;
      options.onTrouble(error);
    }
  }

  return {
    async advance() {
      const now = performance.now();
      if (now - lookedAtMs < lookMs) return;
      lookedAtMs = now;
      for (const key of await listRetirable(options.database, endedForSeconds))
        if (now - (triedAtMs.get(key.id) ?? -Infinity) >= retryMs) await attempt(key);
    },
  };
}
