// A messenger that delivers again: puts batch jobs into a shop's queue under job ids of its own, so that the queue cannot
// know them for the same, in shuffled order.
import { openQueue } from '../../src/queue/connection.js';
import { batchQueueName, openBatchQueue } from '../../src/queue/jobs.js';
import { queueAddressOfShop } from './branches.js';
import type { Shop } from './shop.js';
import { until } from './until.js';

export interface Delivery {
  readonly batchId: number;
  readonly generation: number;
}

export interface Redelivery {
  /** Sends each job `copies` times. */
  send(deliveries: readonly Delivery[], copies: number): Promise<void>;
  /** Resolves when the queue holds no job any more. */
  waitUntilDrained(): Promise<void>;
  close(): Promise<void>;
}

export async function openRedelivery(shop: Shop): Promise<Redelivery> {
  const address = await queueAddressOfShop(shop);
  const { queue, close } = openQueue(address, batchQueueName);
  const batches = openBatchQueue(address);
  let sent = 0;
  return {
    async send(deliveries, copies) {
      const jobs = shuffle(
        deliveries.flatMap(({ batchId, generation }) =>
          Array.from({ length: copies }, () => ({ batchId, generation })),
        ),
      );
      await queue.addBulk(jobs.map((data) => ({ name: 'batch', data, opts: { jobId: `again-${++sent}` } })));
    },
    async waitUntilDrained() {
      await until(async () => (await batches.depth()) === 0, { what: 'every job to be delivered', deadlineMs: 60_000 });
    },
    async close() {
      await batches.close();
      await close();
    },
  };
}

/** Every job that a run can have sent, and one generation more. */
export async function everyJobOf(shop: Shop): Promise<Delivery[]> {
  const rows = await shop.query(
    'SELECT b.id::int AS id, g::int AS generation FROM keyturn.batch b, generate_series(0, b.generation + 1) g',
  );
  return rows.map((row) => ({ batchId: Number(row['id']), generation: Number(row['generation']) }));
}

function shuffle<T>(items: readonly T[]): T[] {
  return items
    .map((item) => ({ item, rank: Math.random() }))
    .toSorted((a, b) => a.rank - b.rank)
    .map(({ item }) => item);
}
