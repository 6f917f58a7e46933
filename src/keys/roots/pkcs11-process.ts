// The parent's end of pkcs11-child.ts: starts it, asks it, and kills it when it does not answer. One for each token and way to
// its PIN, shared by all root keys in it.
import { type ChildProcess, fork } from 'node:child_process';
import { createHash } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { refused, unavailable } from './key-bytes.js';
import type {
  NumberedAnswer,
  NumberedRequest,
  TokenAnswer,
  TokenFailure,
  TokenLogin,
  TokenRequest,
} from './pkcs11-messages.js';
import { RemoteCallFailed } from './remote-call.js';

const startDeadlineMs = 10_000;

export interface TokenProcess {
  /** Throws RemoteCallFailed, or a KeyturnError where no patience helps. */
  ask(request: TokenRequest, signal: AbortSignal): Promise<Buffer>;
  /** Starts and logs in, unless that is done. */
  start(): Promise<void>;
}

export interface TokenProcessOptions {
  /** URI of a root key in it, for messages. */
  readonly source: string;
  readonly env: NodeJS.ProcessEnv;
  readonly login: () => Promise<TokenLogin>;
}

/** Digests of the PINs that a token refused in this process: tokens lock after a few, so none is sent twice. */
const refusedPins = new Set<string>();

export function createTokenProcess({ source, env, login }: TokenProcessOptions): TokenProcess {
  let running: Promise<Child> | undefined;

  async function launch(): Promise<Child> {
    const wanted = await login();
    const { pin, ...place } = wanted;
    const pinDigest = createHash('sha256')
      .update(JSON.stringify([place, pin]))
      .digest('hex');
    if (refusedPins.has(pinDigest)) throw pinRefused(source);
    const child = startChild(env, () => {
      running = undefined;
    });
    const answer = await child.ask({ verb: 'login', ...wanted }, AbortSignal.timeout(startDeadlineMs));
    if (!('failure' in answer)) return child;
    child.kill();
    if (answer.failure.kind === 'pin_refused') refusedPins.add(pinDigest);
    throw failed(source, answer.failure);
  }

  function started(): Promise<Child> {
    if (running === undefined) {
      const starting = launch();
      running = starting;
      starting.catch(() => {
        if (running === starting) running = undefined;
      });
    }
    return running;
  }

  return {
    async start() {
      await started();
    },
    async ask(request, signal) {
      // A start that takes longer goes on; the next call finds it further.
      const child = await Promise.race([started(), aborted(signal, 'the token is still being opened')]);
      const answer = await child.ask(request, signal);
      if ('failure' in answer) throw failed(source, answer.failure);
      return answer.bytes;
    },
  };
}

function failed(source: string, { kind, reason }: TokenFailure): Error {
  if (kind === 'package_missing') return unavailable(source, reason);
  if (kind === 'pin_refused') return pinRefused(source);
  return new RemoteCallFailed({ kind, reason });
}

function pinRefused(source: string): Error {
  return refused(
    source,
    'the token does not take its PIN, which is not tried again, since a token locks after a few; correct it, then restart',
  );
}

interface Child {
  ask(request: TokenRequest, signal: AbortSignal): Promise<TokenAnswer>;
  kill(): void;
}

function startChild(env: NodeJS.ProcessEnv, onEnd: () => void): Child {
  const child: ChildProcess = fork(fileURLToPath(new URL('./pkcs11-child.js', import.meta.url)), [], {
    env,
    // Neither a debug port nor flags of the application's.
    execArgv: [],
    serialization: 'advanced',
    // A library's own output may quote anything.
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  });
  const pending = new Map<number, (answer: TokenAnswer) => void>();
  let asked = 0;
  let ended = false;

  const settle = (id: number, answer: TokenAnswer): void => {
    pending.get(id)?.(answer);
    pending.delete(id);
    if (pending.size === 0) child.channel?.unref();
  };
  const end = (reason: string): void => {
    if (ended) return;
    ended = true;
    onEnd();
    for (const id of pending.keys()) settle(id, { failure: { kind: 'away', reason } });
  };
  child.on('message', ({ id, answer }: NumberedAnswer) => settle(id, asBuffers(answer)));
  child.once('exit', (code, by) => end(`the process of its library ended with ${by ?? code}`));
  child.once('error', () => end('the process of its library could not be started'));
  child.unref();

  return {
    async ask(request, signal) {
      if (ended) return { failure: { kind: 'away', reason: 'the process of its library ended' } };
      const id = ++asked;
      const answered = new Promise<TokenAnswer>((resolve) => pending.set(id, resolve));
      child.channel?.ref();
      child.send({ id, request } satisfies NumberedRequest, (error) => {
        if (error !== null) end('the process of its library ended');
      });
      try {
        return await Promise.race([answered, aborted(signal, 'the token did not answer in time')]);
      } catch (error) {
        // Its one thread is stuck in the library, and nothing else gets it out of there.
        child.kill('SIGKILL');
        end('the token did not answer in time');
        throw error;
      }
    },
    kill() {
      child.kill('SIGKILL');
      end('the process of its library was ended');
    },
  };
}

/** What was a Buffer arrives as bytes. */
function asBuffers(answer: TokenAnswer): TokenAnswer {
  if (!('bytes' in answer)) return answer;
  const { buffer, byteOffset, byteLength } = answer.bytes;
  return { bytes: Buffer.from(buffer, byteOffset, byteLength) };
}

function aborted(signal: AbortSignal, reason: string): Promise<never> {
  return new Promise((_, reject) => {
    const fail = (): void => reject(new RemoteCallFailed({ kind: 'away', reason }));
    if (signal.aborted) fail();
    else signal.addEventListener('abort', fail, { once: true });
  });
}
