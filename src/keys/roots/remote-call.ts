// Calls to a root key provider behind a network: a deadline for each, an honest retry where the provider asks for patience,
// and a circuit breaker, so that an outage costs each call nothing and the provider no storm. Keys that are held already
// never come through here.
import { KeyturnError } from '../../errors.js';

/** How one attempt failed, as the provider's own code sorts it. */
export type RemoteFailure =
  /** Too many requests: the provider is well and wants them slower. */
  | { readonly kind: 'throttled'; readonly afterMs?: number | undefined; readonly reason: string }
  /** Time-outs, refused connections, errors of the provider's own. */
  | { readonly kind: 'away'; readonly reason: string }
  /** Credentials, permissions or the key itself were withdrawn: retrying changes nothing. */
  | { readonly kind: 'refused'; readonly reason: string }
  /** The ciphertext is not this key's, or not of this context. */
  | { readonly kind: 'wrong_ciphertext' };

export class RemoteCallFailed extends Error {
  readonly failure: RemoteFailure;

  constructor(failure: RemoteFailure) {
    super(failure.kind);
    this.failure = failure;
  }
}

/** Deadline, retries and clock; each has a default. */
export interface CallTiming {
  readonly timeoutMs?: number;
  /** Attempts at a throttled or failed call, the first included. */
  readonly attempts?: number;
  /** Monotonic milliseconds; default `performance.now`. */
  readonly now?: () => number;
  readonly wait?: (milliseconds: number) => Promise<void>;
}

export interface RemoteCallOptions extends CallTiming {
  /** URI of the root key, for messages. */
  readonly source: string;
}

const defaultTimeoutMs = 5_000;
const defaultAttempts = 4;
const firstDelayMs = 100;
const longestDelayMs = 3_000;
const failuresToOpen = 3;
const openForMs = 10_000;

/** Undefined for a ciphertext that is not this key's; throws ROOT_KEY_UNAVAILABLE or ROOT_KEY_REFUSED. */
export type RemoteCall = <T>(attempt: (signal: AbortSignal) => Promise<T>) => Promise<T | undefined>;

/** One per root key: its calls share the breaker. */
export function createRemoteCall(options: RemoteCallOptions): RemoteCall {
  const now = options.now ?? (() => performance.now());
  const wait = options.wait ?? ((milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds)));
  const timeoutMs = options.timeoutMs ?? defaultTimeoutMs;
  const attempts = options.attempts ?? defaultAttempts;
  let failuresInRow = 0;
  let openUntil = -Infinity;

  async function once<T>(attempt: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const signal = AbortSignal.timeout(timeoutMs);
    try {
      return await attempt(signal);
    } catch (error) {
      if (error instanceof RemoteCallFailed || error instanceof KeyturnError) throw error;
      throw new RemoteCallFailed({
        kind: 'away',
        reason: signal.aborted ? `no answer within ${timeoutMs} ms` : reasonOf(error),
      });
    }
  }

  function demandClosed(): void {
    if (failuresInRow < failuresToOpen) return;
    const leftMs = openUntil - now();
    if (leftMs <= 0) {
      // One call at a time tries whether the provider is back; the others wait for what it finds.
      openUntil = now() + timeoutMs;
      return;
    }
    throw new KeyturnError(
      'ROOT_KEY_UNAVAILABLE',
      `the root key at ${options.source} did not answer ${failuresInRow} times in a row; it is asked again in ${Math.ceil(leftMs / 1_000)} s`,
    );
  }

  function failed(reason: string): KeyturnError {
    failuresInRow++;
    if (failuresInRow >= failuresToOpen) openUntil = now() + openForMs;
    return new KeyturnError('ROOT_KEY_UNAVAILABLE', `the root key at ${options.source} cannot be used now: ${reason}`);
  }

  return async (attempt) => {
    demandClosed();
    for (let made = 1; ; made++) {
      try {
        const answer = await once(attempt);
        failuresInRow = 0;
        return answer;
      } catch (error) {
        if (!(error instanceof RemoteCallFailed)) throw error;
        const { failure } = error;
        if (failure.kind === 'wrong_ciphertext' || failure.kind === 'refused') failuresInRow = 0;
        if (failure.kind === 'wrong_ciphertext') return undefined;
        if (failure.kind === 'refused')
          throw new KeyturnError(
            'ROOT_KEY_REFUSED',
            `the root key at ${options.source} is refused by its provider: ${failure.reason}`,
          );
        // A probe of an open breaker is made once, and a call that was open in between is not repeated.
        if (made >= attempts || failuresInRow >= failuresToOpen) throw failed(failure.reason);
        await wait(delayMs(made, failure));
      }
    }
  };
}

/** Full jitter, so that processes that failed together do not come back together; never sooner than was asked for. */
function delayMs(made: number, failure: RemoteFailure): number {
  const most = Math.min(longestDelayMs, firstDelayMs * 2 ** made);
  const asked = failure.kind === 'throttled' ? Math.min(failure.afterMs ?? 0, longestDelayMs) : 0;
  return asked + Math.random() * most;
}

/** The class or code of an error, never its words: they may quote what was sent. */
function reasonOf(error: unknown): string {
  const cause = error instanceof Error && error.cause instanceof Error ? error.cause : error;
  if (cause instanceof Error && 'code' in cause && typeof cause.code === 'string') return cause.code;
  return cause instanceof Error ? cause.name : 'unknown error';
}
