// Nonces come from the generator, are never handed out twice, and keep their length across refills of the pool.
import { expect, test } from 'vitest';
import { takeNonce } from '../../src/crypto/nonce.js';

test('10 000 nonces of mixed lengths are all different and none is empty', () => {
  const seen = new Set<string>();
  for (let round = 0; round < 5_000; round++) {
    for (const length of [12, 24]) {
      const nonce = takeNonce(length);
      expect(nonce).toHaveLength(length);
      seen.add(nonce.toString('hex', 0, 12));
    }
  }
  expect(seen.size).toBe(10_000);
});
