// What a Redis does when its memory is full: the one question of `doctor` to the queue.
import { Redis } from 'ioredis';
import { type QueueAddress, queueUnavailable } from './address.js';

/** Redis must not evict jobs; undefined for PostgreSQL. Throws QUEUE_UNAVAILABLE. */
export async function readEvictionPolicy(address: QueueAddress): Promise<string | undefined> {
  if (address.backend === 'postgres') return undefined;
  const connection = new Redis(address.url.expose(), {
    maxRetriesPerRequest: 1,
    connectTimeout: 5_000,
    lazyConnect: true,
  });
  // What goes wrong is thrown by the command; without a listener it would also end the process.
  connection.on('error', () => undefined);
  try {
    await connection.connect();
    const reply = await connection.config('GET', 'maxmemory-policy');
    return Array.isArray(reply) ? String(reply[1]) : undefined;
  } catch (error) {
    throw queueUnavailable(error);
  } finally {
    connection.disconnect();
  }
}
