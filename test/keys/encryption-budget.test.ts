// Reserved before used: what is spent never exceeds what was granted, and a limited key refuses rather than guess.
import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { AlgorithmName } from '../../src/crypto/algorithms.js';
import { createEncryptionBudget, type RefilledBudget } from '../../src/keys/encryption-budget.js';

interface Ledger {
  stored: number;
  limit: number;
  isAway: boolean;
  asked: number;
}

function open(algorithm: AlgorithmName, ledger: Ledger): { budget: RefilledBudget; troubles: unknown[] } {
  const troubles: unknown[] = [];
  const budget = createEncryptionBudget({
    title: 'customers v1 (id 1)',
    keyId: 1,
    algorithm,
    reserve: async (count) => {
      ledger.asked += 1;
      if (ledger.isAway) throw new Error('away');
      const granted = Math.min(count, ledger.limit - ledger.stored);
      ledger.stored += granted;
      return { granted, reserved: ledger.stored };
    },
    onTrouble: (error) => troubles.push(error),
  });
  return { budget, troubles };
}

const newLedger = (limit = Number.MAX_SAFE_INTEGER): Ledger => ({ stored: 0, limit, isAway: false, asked: 0 });
const turn = (): Promise<void> => new Promise(setImmediate);

test('the stored count is never below what was spent, whatever the amounts, outages and limits', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.integer({ min: 1, max: 90_000 }), fc.boolean(), fc.boolean()), { maxLength: 40 }),
      fc.integer({ min: 0, max: 2_000_000 }),
      async (steps, limit) => {
        const ledger = newLedger(limit);
        const { budget } = open('aes-256-gcm', ledger);
        let spent = 0;
        for (const [count, isAway, refills] of steps) {
          ledger.isAway = isAway;
          if (refills) await budget.refill().catch(() => undefined);
          try {
            budget.spend(count);
            spent += count;
          } catch {
            await turn();
          }
          expect(spent).toBeLessThanOrEqual(ledger.stored);
        }
      },
    ),
    { numRuns: 200 },
  );
});

test('it reserves ahead, so that a steady stream is never refused, and asks seldom', async () => {
  const ledger = newLedger();
  const { budget } = open('aes-256-gcm', ledger);
  await budget.refill();
  for (let n = 0; n < 400; n += 1) {
    budget.spend(10_000);
    await turn();
  }
  expect(ledger.stored).toBeGreaterThanOrEqual(4_000_000);
  expect(ledger.asked).toBeLessThan(12);
});

test('a limited key with nothing reserved refuses until it is; one that is used up says to rotate', async () => {
  const ledger = { ...newLedger(100), isAway: true };
  const { budget, troubles } = open('aes-256-gcm', ledger);
  expect(() => budget.spend(1)).toThrow(expect.objectContaining({ code: 'ENCRYPTIONS_NOT_RESERVED' }));
  await turn();
  expect(troubles).toHaveLength(1);
  // A failed reservation is not repeated by every value.
  for (let n = 0; n < 10; n += 1) expect(() => budget.spend(1)).toThrow(/no encryptions/);
  expect(ledger.asked).toBe(1);
  ledger.isAway = false;
  await budget.refill();
  budget.spend(100);
  expect(() => budget.spend(1)).toThrow(
    expect.objectContaining({ code: 'KEY_SPENT', kind: 'refused', message: expect.stringContaining('rotate now') }),
  );
  expect(ledger.stored).toBe(100);
});

test('an unlimited key is never refused, and what ran ahead of the count is reserved next', async () => {
  const ledger = { ...newLedger(), isAway: true };
  const { budget } = open('xaes-256-gcm', ledger);
  budget.spend(5_000_000);
  await turn();
  expect(ledger.stored).toBe(0);
  ledger.isAway = false;
  await budget.refill();
  expect(ledger.stored).toBeGreaterThanOrEqual(5_000_000);
});
