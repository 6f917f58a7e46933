// Nonces come from the generator, are never handed out twice, and keep their length and bytes across refills of the pool.
import { expect, test } from 'vitest';
import { takeNonces } from '../../src/crypto/nonce.js';

test('10 000 nonces of mixed lengths are all different and none is empty', () => {
  const seen = new Set<string>();
  for (let round = 0; round < 5_000; round++) {
    for (const length of [12, 24]) {
      for (const nonce of takeNonces(1, length)) {
        expect(nonce).toHaveLength(length);
        seen.add(nonce.toString('hex', 0, 12));
      }
    }
  }
  expect(seen.size).toBe(10_000);
});

test('nonces taken together, less and more than the pool holds, are all different and stay as they were', () => {
  const seen = new Set<string>();
  let wanted = 0;
  for (const count of [1, 2, 41, 42, 43, 85, 86, 1_000]) {
    const nonces = takeNonces(count, 24);
    const before = nonces.map((nonce) => nonce.toString('hex'));
    takeNonces(100, 12);
    expect(nonces.map((nonce) => nonce.toString('hex'))).toEqual(before);
    for (const nonce of before) seen.add(nonce);
    wanted += count;
  }
  expect(seen.size).toBe(wanted);
});
