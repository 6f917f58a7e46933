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

/** A column between Keyturn's format and a foreign one: adopting it writes ours, leaving it writes theirs; both are read. */
export interface ForeignColumn {
  /** UUID. */
  readonly columnId: string;
  readonly format: string;
  /** Where the format's secret is found; undefined for a format without a key. A URI names a place, never a key. */
  readonly secretUri: string | undefined;
  readonly move: 'adopting' | 'leaving';
}

/** How foreign values of the column name their key, since they name none themselves. */
export function foreignKeyId({ format, secretUri }: Pick<ForeignColumn, 'format' | 'secretUri'>): string {
  return secretUri === undefined ? format : `${format} ${secretUri}`;
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
  /** Columns of its targets that are between two formats; none where it is left out. */
  readonly foreign?: readonly ForeignColumn[];
}

export interface KeyStore {
  /** Generation per keyring name: what a refresh compares before it reads more. */
  generations(): Promise<ReadonlyMap<string, number>>;
  /** Undefined when there is no such keyring. */
  findKeyring(name: string): Promise<StoredKeyring | undefined>;
}
