// Waiting in tests: for something to become true, with a deadline, never for a fixed time.

import { setTimeout as delay } from 'node:timers/promises';

const pollIntervalMs = 20;

/** What the condition first gave other than undefined or false. What the condition throws ends the waiting. */
export async function until<T>(
  condition: () => Promise<T | undefined | false>,
  { what, deadlineMs }: { readonly what: string; readonly deadlineMs: number },
): Promise<T> {
  const timer = new AbortController();
  const late = delay(deadlineMs, undefined, { signal: timer.signal }).then(
    () => {
      throw new Error(`waited ${deadlineMs} ms for ${what}, in vain`);
    },
    () => undefined,
  );
  try {
    for (;;) {
      // A condition that itself never settles must not outlast the deadline.
      const met = await Promise.race([condition(), late]);
      if (met !== undefined && met !== false) return met;
      await Promise.race([delay(pollIntervalMs), late]);
    }
  } finally {
    timer.abort();
  }
}
