// Releases what a process started when that process ends without having stopped it: at normal exit, after an
// uncaught error, and on SIGINT, SIGTERM and SIGHUP, whose default is to die without Node's `exit` event.
// A host with a shutdown of its own keeps it; then its exit is what triggers the release. Nothing helps against
// SIGKILL: the sweep of the next start does (instance-folder.ts).

const deadlySignals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

const releases = new Set<() => void>();

/** Registers a synchronous release; the returned function withdraws it. */
export function releaseAtExit(release: () => void): () => void {
  if (releases.size === 0) listen();
  releases.add(release);
  return () => {
    if (releases.delete(release) && releases.size === 0) unlisten();
  };
}

function listen(): void {
  process.on('exit', releaseAll);
  // First in line, so that a host's `once` handler still counts as its own shutdown when we look.
  for (const signal of deadlySignals) process.prependListener(signal, releaseAndDie);
}

function unlisten(): void {
  process.off('exit', releaseAll);
  for (const signal of deadlySignals) process.off(signal, releaseAndDie);
}

function releaseAll(): void {
  for (const release of releases) {
    try {
      release();
    } catch (error) {
      // Throwing would change how the owner ends and skip the other releases. What is left has a dead owner soon,
      // and the next start sweeps it.
      process.stderr.write(`left behind at exit: ${error instanceof Error ? error.message : String(error)}\n`);
    }
  }
  releases.clear();
  unlisten();
}

function releaseAndDie(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return;
  releaseAll();
  // No handler is left, so this is the death the signal would have been without us, exit status included.
  process.kill(process.pid, signal);
}
