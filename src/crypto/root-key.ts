// A root key held in memory: derives its subkeys, wraps and unwraps data keys (method 0x01 of docs/format.md), makes
// and opens the verification token. It keeps subkeys only and never shows them.
import { createHmac, createSecretKey, type KeyObject, randomFillSync, timingSafeEqual } from 'node:crypto';
import { inspect } from 'node:util';
import { KeyturnError } from '../errors.js';
import { decryptAesGcm, encryptAesGcm, gcmNonceBytes, gcmTagBytes } from './aes-gcm.js';
import { commitmentBytes, commitmentOf, createValueKey, dataKeyBytes, encodeIdentity } from './data-key.js';
import { deriveKey } from './key-derivation.js';
import { labelBytes, labelText } from './label.js';
import { uuidToBytes } from './uuid.js';
import type { DataKeyIdentity, ValueKey } from './value-key.js';

export const rootKeyBytes = 32;

/** "KW", version 1, method 1: AES-256-GCM under the wrap subkey. Method 4 is keys/roots/provider-root-key.ts, every other unknown. */
const wrapHeader = Buffer.from([0x4b, 0x57, 0x01, 0x01]);
const wrapBytes = wrapHeader.length + gcmNonceBytes + dataKeyBytes + gcmTagBytes;
export const tokenSecretBytes = 32;
const tokenBytes = gcmNonceBytes + tokenSecretBytes + gcmTagBytes;

/**
 * What a root key can do, wherever it is kept. Its bytes are never asked for, so a KMS or an HSM can stand behind it;
 * asynchronous for the same reason.
 */
export interface RootKey {
  /** 32 bytes; tells root keys apart without giving an oracle for guessing them. */
  readonly fingerprint: Buffer;
  /** The first 8 bytes as 16 hexadecimal characters, for people. */
  readonly shortFingerprint: string;
  /** `rootId` is the number of this root key in the control schema; it is bound into the wrap. */
  wrap(rootId: number, identity: DataKeyIdentity, material: KeyObject): Promise<Buffer>;
  /** Throws UNWRAP_FAILED unless `blob` opens and holds the very key that `identity` and `commitment` describe. */
  unwrap(rootId: number, identity: DataKeyIdentity, commitment: Buffer, blob: Buffer): Promise<ValueKey>;
  /** A token only this root key opens; stored, it tells at boot whether the right root key was given. */
  createToken(rootId: number): Promise<Buffer>;
  opensToken(rootId: number, token: Buffer): Promise<boolean>;
}

/**
 * Takes the 32 bytes over: they are zeroed before this returns, also when it throws. `cluster` is the UUID of the
 * installation; the same bytes give other subkeys in another cluster.
 */
export function createRootKey(bytes: Buffer, cluster: string): RootKey {
  try {
    if (bytes.length !== rootKeyBytes) {
      throw new KeyturnError('ROOT_KEY_REFUSED', `a root key has ${rootKeyBytes} bytes, got ${bytes.length}`);
    }
    const clusterId = uuidToBytes(cluster);
    const fingerprint = createHmac('sha256', deriveKey(bytes, clusterId, labelText('kcv')))
      .update(labelBytes('kek-fingerprint'))
      .update(clusterId)
      .digest();
    return new HeldRootKey(deriveKey(bytes, clusterId, labelText('wrap')), fingerprint, clusterId);
  } finally {
    bytes.fill(0);
  }
}

class HeldRootKey implements RootKey {
  readonly fingerprint: Buffer;
  readonly shortFingerprint: string;
  readonly #wrapKey: KeyObject;
  readonly #cluster: Buffer;

  constructor(wrapKey: KeyObject, fingerprint: Buffer, cluster: Buffer) {
    this.#wrapKey = wrapKey;
    this.#cluster = cluster;
    this.fingerprint = fingerprint;
    this.shortFingerprint = fingerprint.toString('hex', 0, 8);
  }

  async wrap(rootId: number, identity: DataKeyIdentity, material: KeyObject): Promise<Buffer> {
    const associatedData = wrapAssociatedData(rootId, identity, commitmentOf(identity, material));
    const bytes = material.export();
    try {
      return Buffer.concat([wrapHeader, encryptWithNonce(this.#wrapKey, associatedData, bytes)]);
    } finally {
      bytes.fill(0);
    }
  }

  async unwrap(rootId: number, identity: DataKeyIdentity, commitment: Buffer, blob: Buffer): Promise<ValueKey> {
    if (blob.length !== wrapBytes || !blob.subarray(0, wrapHeader.length).equals(wrapHeader)) {
      throw unwrapFailed(rootId, identity, `its wrap is not a version 1 wrap of ${wrapBytes} bytes by method 1`);
    }
    if (commitment.length !== commitmentBytes) {
      throw unwrapFailed(
        rootId,
        identity,
        `its commitment has ${commitment.length} bytes instead of ${commitmentBytes}`,
      );
    }
    const associatedData = wrapAssociatedData(rootId, identity, commitment);
    const bytes = decryptWithNonce(this.#wrapKey, associatedData, blob.subarray(wrapHeader.length));
    if (bytes === undefined) {
      throw unwrapFailed(rootId, identity, `root key ${this.shortFingerprint} does not open its wrap`);
    }
    try {
      const key = createValueKey(identity, createSecretKey(bytes));
      if (!timingSafeEqual(key.commitment, commitment)) {
        throw unwrapFailed(rootId, identity, 'the unwrapped key does not match its commitment');
      }
      return key;
    } finally {
      bytes.fill(0);
    }
  }

  async createToken(rootId: number): Promise<Buffer> {
    const secret = Buffer.alloc(tokenSecretBytes);
    return encryptWithNonce(this.#wrapKey, this.#tokenAssociatedData(rootId), randomFillSync(secret));
  }

  async opensToken(rootId: number, token: Buffer): Promise<boolean> {
    if (token.length !== tokenBytes) return false;
    return decryptWithNonce(this.#wrapKey, this.#tokenAssociatedData(rootId), token) !== undefined;
  }

  #tokenAssociatedData(rootId: number): Buffer {
    return Buffer.concat([labelBytes('token'), this.#cluster, encodeRootId(rootId), this.fingerprint]);
  }

  toJSON(): { fingerprint: string } {
    return { fingerprint: this.shortFingerprint };
  }

  toString(): string {
    return `root key ${this.shortFingerprint}`;
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

function wrapAssociatedData(rootId: number, identity: DataKeyIdentity, commitment: Buffer): Buffer {
  return Buffer.concat([labelBytes('wrap'), wrapHeader, encodeRootId(rootId), encodeIdentity(identity), commitment]);
}

/** Throws VALUE_INVALID unless it is a u32 from 1. */
export function demandRootId(rootId: number): void {
  if (!Number.isInteger(rootId) || rootId < 1 || rootId > 0xffff_ffff) {
    throw new KeyturnError('VALUE_INVALID', 'a root key id is a whole number from 1 to 4294967295');
  }
}

function encodeRootId(rootId: number): Buffer {
  demandRootId(rootId);
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(rootId, 0);
  return bytes;
}

/** Nonce, ciphertext, tag. Wraps are few, so a random 96-bit nonce never repeats under one root key. */
function encryptWithNonce(key: KeyObject, associatedData: Buffer, plaintext: Buffer): Buffer {
  const nonce = randomFillSync(Buffer.alloc(gcmNonceBytes));
  const { ciphertext, tag } = encryptAesGcm(key, nonce, associatedData, plaintext);
  return Buffer.concat([nonce, ciphertext, tag]);
}

function decryptWithNonce(key: KeyObject, associatedData: Buffer, body: Buffer): Buffer | undefined {
  const tagAt = body.length - gcmTagBytes;
  return decryptAesGcm(key, body.subarray(0, gcmNonceBytes), associatedData, {
    ciphertext: body.subarray(gcmNonceBytes, tagAt),
    tag: body.subarray(tagAt),
  });
}

export function unwrapFailed(rootId: number, identity: DataKeyIdentity, reason: string): KeyturnError {
  return new KeyturnError('UNWRAP_FAILED', `data key ${identity.id} cannot be unwrapped: ${reason}`, {
    keyId: identity.id,
    rootId,
  });
}
