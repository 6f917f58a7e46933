// What a root key must be able to do, wherever it is kept: wrap and unwrap data keys and prove that it is the right one.
// Its bytes are never asked for, so a KMS or an HSM can stand behind it; asynchronous for the same reason.
import type { KeyObject } from 'node:crypto';
import type { DataKeyIdentity, ValueKey } from '../../crypto/value-key.js';

export interface RootKey {
  /** 32 bytes, equal for equal root keys of one cluster. */
  readonly fingerprint: Buffer;
  /** The first 8 bytes as 16 hexadecimal characters, for people. */
  readonly shortFingerprint: string;
  wrap(rootId: number, identity: DataKeyIdentity, material: KeyObject): Promise<Buffer>;
  /** Throws UNWRAP_FAILED on anything wrong: the returned key matches `identity` and `commitment`. */
  unwrap(rootId: number, identity: DataKeyIdentity, commitment: Buffer, blob: Buffer): Promise<ValueKey>;
  /** A token only this root key opens; stored, it tells at boot whether the right root key was given. */
  createToken(rootId: number): Promise<Buffer>;
  opensToken(rootId: number, token: Buffer): Promise<boolean>;
}

export interface RootKeyContext {
  /** UUID of the cluster. */
  readonly cluster: string;
  /** The environment; a provider that reads a key from it removes the variable. */
  readonly env: NodeJS.ProcessEnv;
}

export interface RootKeyProvider {
  /** The part of a root key URI before the colon. */
  readonly scheme: string;
  /** `location` is the part behind the colon. Throws ROOT_KEY_UNAVAILABLE (not there now) or ROOT_KEY_REFUSED. */
  open(location: string, context: RootKeyContext): Promise<RootKey>;
}
