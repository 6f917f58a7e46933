// A data key in usable form: one KeyObject, its identity and its commitment. It prints ids only; formats keep their own
// cipher state per ValueKey.
import type { KeyObject } from 'node:crypto';
import type { AlgorithmName } from './algorithms.js';

/** Ours are numbers (u32, from one sequence); formats of other systems may name keys by text. */
export type KeyId = number | string;

/** Purpose byte of the commitment: 1 value, 2 blind index, 3 audit, 4 tenant KEK (docs/format.md). */
export type KeyPurpose = 1 | 2 | 3 | 4;

/** What a data key is bound to; covered by its commitment and by its wraps. UUIDs as lower-case text. */
export interface DataKeyIdentity {
  readonly id: number;
  readonly algorithm: AlgorithmName;
  readonly purpose: KeyPurpose;
  readonly cluster: string;
  readonly scope: string;
}

export interface ValueKey {
  readonly id: KeyId;
  readonly algorithm: AlgorithmName;
  /** 32 bytes; its first 4 are the key check of every envelope. */
  readonly commitment: Buffer;
  readonly material: KeyObject;
}
