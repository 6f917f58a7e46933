// SIGINT and SIGTERM while a command runs: the first one ends it in good order, the second at once.

const exitCodes = { SIGINT: 130, SIGTERM: 143 } as const;

export class Interrupted extends Error {
  readonly exitCode: number;

  constructor(signal: keyof typeof exitCodes, hint: string | undefined) {
    super(`interrupted by ${signal}${hint === undefined ? '' : `; ${hint}`}`);
    this.exitCode = exitCodes[signal];
  }
}

export interface Interruption {
  /** Rejects with Interrupted at the first signal; never resolves. */
  readonly happened: Promise<never>;
  stop(): void;
}

/** `hint`: asked when it happens, what to do about what was left unfinished. */
export function listenForInterruption(hint: () => string | undefined): Interruption {
  let reject: (error: Interrupted) => void = () => undefined;
  const happened = new Promise<never>((_, rejectHappened) => {
    reject = rejectHappened;
  });
  let isFirst = true;
  const listenerOf = (signal: keyof typeof exitCodes) => (): void => {
    if (!isFirst) process.exit(exitCodes[signal]);
    isFirst = false;
    reject(new Interrupted(signal, hint()));
  };
  const listeners = { SIGINT: listenerOf('SIGINT'), SIGTERM: listenerOf('SIGTERM') };
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, listeners[signal]);
  return {
    happened,
    stop() {
      for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, listeners[signal]);
    },
  };
}
