// A worker of this process that waits with its first slice in hand, read and not yet written, until it is let go.
import type { Shop } from './shop.js';
import { until } from './until.js';

/** Resolves, once the worker has read, with the way to let it go. */
export async function startHeldWorker(shop: Shop): Promise<() => void> {
  let letGo: () => void = () => undefined;
  const untilLetGo = new Promise<void>((resolve) => {
    letGo = resolve;
  });
  let hasRead = false;
  await shop.startWorker(async (point) => {
    if (point !== 'batch.after_read') return;
    hasRead = true;
    await untilLetGo;
  });
  await until(async () => hasRead, { what: 'the worker to read its first slice', deadlineMs: 60_000 });
  return letGo;
}
