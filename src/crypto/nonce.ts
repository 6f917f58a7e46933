// Random nonces for values, cut from a small pool: one call to the generator per value would cost as much as the
// encryption. A process or virtual machine must never be cloned with the pool in memory: both copies would repeat it.
import { randomFillSync } from 'node:crypto';

const pool = Buffer.alloc(1024);
let used = pool.length;

/** A view of the pool, never handed out twice; copy it before the next call. */
export function takeNonce(bytes: number): Buffer {
  if (used + bytes > pool.length) {
    randomFillSync(pool);
    used = 0;
  }
  used += bytes;
  return pool.subarray(used - bytes, used);
}
