// Takes away what a cluster keeps in its queue, for a cluster that is taken away itself.
import { queueUnavailable, type QueueAddress } from './address.js';
import { openQueue } from './connection.js';
import { batchQueueName, markerQueueName } from './jobs.js';
import { wakeUpQueueName } from './wake-ups.js';

/** Nobody may use the queue any more. Throws QUEUE_UNAVAILABLE. */
export async function removeQueue(address: QueueAddress): Promise<void> {
  for (const name of [batchQueueName, markerQueueName, wakeUpQueueName]) {
    const { queue, requireConnected, close } = openQueue(address, name);
    try {
      await requireConnected();
      await queue.obliterate({ force: true });
    } catch (error) {
      throw queueUnavailable(error);
    } finally {
      await close();
    }
  }
}
