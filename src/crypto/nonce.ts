// Random nonces for values, cut from a small pool: one call to the generator per value would cost as much as the
// encryption. A process or virtual machine must never be cloned with the pool in memory: both copies would repeat it.
import { randomFillSync } from 'node:crypto';

const pool = Buffer.alloc(1024);
let used = pool.length;

/** Never handed out twice; copies, so that a refill of the pool cannot change nonces that wait for their use. */
export function takeNonces(count: number, bytes: number): readonly Buffer[] {
  const taken = takeNonceBytes(count * bytes);
  return Array.from({ length: count }, (_, at) => taken.subarray(at * bytes, (at + 1) * bytes));
}

/** The same for nonces that are to stand one behind the other: so many bytes in all. */
export function takeNonceBytes(length: number): Buffer {
  if (length > pool.length) return randomFillSync(Buffer.alloc(length));
  if (used + length > pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  used += length;
  return Buffer.from(pool.subarray(used - length, used));
}
