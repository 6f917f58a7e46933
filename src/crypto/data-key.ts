// Data keys: made, given their identity, and committed to. A commitment covers the key and everything it is bound to,
// so a writer of the key table without a root key can neither swap, introduce nor re-scope a key.
import { createHmac, createSecretKey, type KeyObject, randomFillSync } from 'node:crypto';
import { inspect } from 'node:util';
import { KeyturnError } from '../errors.js';
import { type AlgorithmName, algorithmIds } from './algorithms.js';
import { labelBytes } from './label.js';
import { uuidToBytes } from './uuid.js';
import type { DataKeyIdentity, KeyId, ValueKey } from './value-key.js';

export const dataKeyBytes = 32;
export const commitmentBytes = 32;

const commitmentLabel = labelBytes('dek-commit');

export function generateDataKey(): KeyObject {
  // alloc, not allocUnsafe: the shared pool would keep a copy of the key beside other data.
  const bytes = Buffer.alloc(dataKeyBytes);
  try {
    return createSecretKey(randomFillSync(bytes));
  } finally {
    bytes.fill(0);
  }
}

/** The identity as commitment and wrap hold it: id u32, algorithm u8, purpose u8, cluster, scope. */
export function encodeIdentity({ id, algorithm, purpose, cluster, scope }: DataKeyIdentity): Buffer {
  if (!Number.isInteger(id) || id < 1 || id > 0xffff_ffff) {
    throw new KeyturnError('VALUE_INVALID', 'a data key id is a whole number from 1 to 4294967295');
  }
  const start = Buffer.alloc(6);
  start.writeUInt32BE(id, 0);
  start.writeUInt8(algorithmIds[algorithm], 4);
  start.writeUInt8(purpose, 5);
  return Buffer.concat([start, uuidToBytes(cluster), uuidToBytes(scope)]);
}

/** 32 bytes. Throws VALUE_INVALID unless `material` is a secret key of exactly 32 bytes. */
export function commitmentOf(identity: DataKeyIdentity, material: KeyObject): Buffer {
  // HMAC fills shorter keys up with zeros, so two keys of different lengths could share a commitment. Only secret keys
  // have a symmetric size.
  if (material.symmetricKeySize !== dataKeyBytes) {
    throw new KeyturnError(
      'VALUE_INVALID',
      `a data key is a secret key of ${dataKeyBytes} bytes, got a ${material.type} key of ${material.symmetricKeySize ?? 0}`,
    );
  }
  return createHmac('sha256', material).update(commitmentLabel).update(encodeIdentity(identity)).digest();
}

export function createValueKey(identity: DataKeyIdentity, material: KeyObject): ValueKey {
  return new DataKey(identity.id, identity.algorithm, commitmentOf(identity, material), material);
}

/** A class for one reason: however it is printed, only id and algorithm appear (I7). */
class DataKey implements ValueKey {
  readonly id: KeyId;
  readonly algorithm: AlgorithmName;
  readonly commitment: Buffer;
  readonly material: KeyObject;

  constructor(id: KeyId, algorithm: AlgorithmName, commitment: Buffer, material: KeyObject) {
    this.id = id;
    this.algorithm = algorithm;
    this.commitment = commitment;
    this.material = material;
  }

  toJSON(): { id: KeyId; algorithm: AlgorithmName } {
    return { id: this.id, algorithm: this.algorithm };
  }

  toString(): string {
    return `data key ${this.id} (${this.algorithm})`;
  }

  [inspect.custom](): string {
    return this.toString();
  }
}
