// The rest of a worker between two slices, and after the last one of a batch.
import { restAfter, type Standing } from '../rotation/standing.js';

/** Resolves when the worker has rested, at once when `signal` asks it to stop. */
export async function rest(
  standing: Standing,
  slice: { readonly rows: number; readonly workMs: number },
  signal: AbortSignal,
): Promise<void> {
  const restMs = restAfter(standing, slice);
  if (restMs < 1 || signal.aborted) return;
  await new Promise<void>((resolve) => {
    const wake = (): void => {
      clearTimeout(timer);
      signal.removeEventListener('abort', wake);
      resolve();
    };
    const timer = setTimeout(wake, restMs);
    signal.addEventListener('abort', wake);
  });
}
