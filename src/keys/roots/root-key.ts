// How a root key is found: a provider per URI scheme opens it. What it can do once open is crypto's RootKey.
import type { RootKey } from '../../crypto/root-key.js';
import type { CallTiming } from './remote-call.js';

export type { RootKey };

export interface RootKeyContext {
  /** UUID of the cluster. */
  readonly cluster: string;
  /** The environment; a provider that reads a key from it removes the variable. */
  readonly env: NodeJS.ProcessEnv;
  /** How patient a provider behind a network is; tests are less so. */
  readonly timing?: CallTiming;
  /** Shown the bytes by a provider that has them, for a backup that is to hold root keys; they are zeroed afterwards. */
  readonly onBytes?: (bytes: Buffer) => void;
}

export interface RootKeyProvider {
  /** The part of a root key URI before the colon. */
  readonly scheme: string;
  /** `location` is the part behind the colon. Throws ROOT_KEY_UNAVAILABLE (not there now) or ROOT_KEY_REFUSED. */
  open(location: string, context: RootKeyContext): Promise<RootKey>;
}
