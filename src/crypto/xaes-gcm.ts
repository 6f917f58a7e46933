// XAES-256-GCM (C2SP): the first half of a 24-byte nonce derives a subkey by CMAC-AES-256, the second half is the nonce
// of AES-256-GCM under it. Long enough nonces that random ones never repeat in practice.
import { createCipheriv, type KeyObject } from 'node:crypto';
import { KeyturnError } from '../errors.js';
import { decryptAesGcm, encryptAesGcm, type GcmOutput } from './aes-gcm.js';

export const xaesNonceBytes = 24;
const subkeyNonceBytes = 12;
const blockBytes = 16;

/** A key prepared for many values. */
export interface XaesKey {
  /** The 32-byte key for one nonce; the caller zeroes it. */
  subkey(nonce: Buffer): Buffer;
}

/** Throws where `material` is not 32 bytes. */
export function createXaesKey(material: KeyObject): XaesKey {
  // For scanners: this is ECB as the block function inside CMAC (SP 800-38B), over two distinct blocks that no one else
  // sees. It never touches a plaintext. One cipher lives as long as the key: making one costs four times its use.
  const blockCipher = createCipheriv('aes-256-ecb', material, null);
  blockCipher.setAutoPadding(false);
  const mask = doubled(blockCipher.update(Buffer.alloc(blockBytes)));
  const blocks = Buffer.alloc(2 * blockBytes);
  // Both CMAC inputs are one full block: counter u16, 'X', 0, nonce half; each is masked with K1.
  for (const [index, counter] of [1, 2].entries()) {
    blocks.set([0, counter, 0x58, 0], index * blockBytes);
    for (let at = 0; at < 4; at++) exclusiveOr(blocks, index * blockBytes + at, byteAt(mask, at));
  }
  return {
    subkey(nonce) {
      for (let at = 0; at < subkeyNonceBytes; at++) {
        const masked = byteAt(nonce, at) ^ byteAt(mask, 4 + at);
        blocks[4 + at] = masked;
        blocks[blockBytes + 4 + at] = masked;
      }
      return blockCipher.update(blocks);
    },
  };
}

export function encryptXaesGcm(key: XaesKey, nonce: Buffer, associatedData: Buffer, plaintext: Uint8Array): GcmOutput {
  demandNonce(nonce);
  const subkey = key.subkey(nonce);
  try {
    return encryptAesGcm(subkey, nonce.subarray(subkeyNonceBytes), associatedData, plaintext);
  } finally {
    subkey.fill(0);
  }
}

/** Undefined when the tag does not match. */
export function decryptXaesGcm(
  key: XaesKey,
  nonce: Buffer,
  associatedData: Buffer,
  encrypted: GcmOutput,
): Buffer | undefined {
  demandNonce(nonce);
  const subkey = key.subkey(nonce);
  try {
    return decryptAesGcm(subkey, nonce.subarray(subkeyNonceBytes), associatedData, encrypted);
  } finally {
    subkey.fill(0);
  }
}

/** Twice the block in GF(2^128): the step from L to K1 in CMAC. */
function doubled(block: Buffer): Buffer {
  const result = Buffer.alloc(blockBytes);
  let carry = 0;
  for (let at = blockBytes - 1; at >= 0; at--) {
    const shifted = (byteAt(block, at) << 1) | carry;
    result[at] = shifted & 0xff;
    carry = shifted >> 8;
  }
  exclusiveOr(result, blockBytes - 1, carry * 0x87);
  return result;
}

function exclusiveOr(bytes: Buffer, at: number, value: number): void {
  bytes[at] = byteAt(bytes, at) ^ value;
}

/** Callers stay within the buffer; the zero only satisfies the type. */
function byteAt(bytes: Buffer, at: number): number {
  return bytes[at] ?? 0;
}

function demandNonce(nonce: Buffer): void {
  if (nonce.length !== xaesNonceBytes) {
    throw new KeyturnError('VALUE_INVALID', `an XAES nonce has ${xaesNonceBytes} bytes, got ${nonce.length}`);
  }
}
