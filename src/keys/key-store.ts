// Where a keyring's keys come from. Keyturn's own tables are one store (store/keys.ts); a secrets file or another
// system's key table would be others. A store holds wraps, never key material in clear.
import type { AlgorithmName } from '../crypto/algorithms.js';
import type { KeyId } from '../crypto/value-key.js';
import type { KeyState } from './states.js';

export interface StoredWrap {
  readonly rootId: number;
  readonly blob: Buffer;
}

/** One data key as stored. Times by the database clock. */
export interface StoredKey {
  readonly id: KeyId;
  readonly version: number;
  readonly state: KeyState;
  readonly isCompromised: boolean;
  readonly algorithm: AlgorithmName;
  /** 32 bytes. */
  readonly commitment: Buffer;
  readonly createdAt: Date;
  readonly activatedAt: Date | undefined;
  readonly activatedGeneration: number | undefined;
  readonly retiredAt: Date | undefined;
  readonly wraps: readonly StoredWrap[];
}

/** One keyring as of one moment: every key, whatever its state. */
export interface StoredKeyring {
  /** UUID; also the scope of its data keys. */
  readonly id: string;
  readonly name: string;
  readonly cluster: string;
  readonly algorithm: AlgorithmName;
  readonly generation: number;
  readonly keys: readonly StoredKey[];
}

export interface KeyStore {
  /** Generation per keyring name: what a refresh compares before it reads more. */
  generations(): Promise<ReadonlyMap<string, number>>;
  /** Undefined when there is no such keyring. */
  findKeyring(name: string): Promise<StoredKeyring | undefined>;
}
