// SIGINT and SIGTERM while a command runs: the first one ends it in good order, the second at once.

const exitCodes = { SIGINT: 130, SIGTERM: 143 } as const;
/** Under `npm run` one Ctrl-C arrives twice: npm passes on what the terminal has sent to the whole group already. */
const echoMs = 500;

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
  let firstAtMs: number | undefined;
  const listenerOf = (signal: keyof typeof exitCodes) => (): void => {
    if (firstAtMs !== undefined && performance.now() - firstAtMs > echoMs) process.exit(exitCodes[signal]);
    firstAtMs ??= performance.now();
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
