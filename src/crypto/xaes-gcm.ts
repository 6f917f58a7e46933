// XAES-256-GCM (C2SP): the first half of a 24-byte nonce derives a subkey by CMAC-AES-256, the second half is the nonce
// of AES-256-GCM under it. Long enough nonces that random ones never repeat in practice.
import { createCipheriv, type KeyObject } from 'node:crypto';
import { KeyturnError } from '../errors.js';
import type { GcmUse } from './aes-gcm.js';

export const xaesNonceBytes = 24;
const subkeyNonceBytes = 12;
const blockBytes = 16;
/** Two blocks of CMAC output. */
const subkeyBytes = 2 * blockBytes;

/** A key prepared for many values. */
export interface XaesKey {
  /** Derives for many nonces in one call: one at a time costs six times as much. Throws VALUE_INVALID for a nonce of another length. */
  derive(nonces: readonly Buffer[]): XaesSubkeys;
}

/** What GCM takes for each of the nonces, in their order. */
export interface XaesSubkeys {
  readonly uses: readonly GcmUse[];
  /** Zeroes the subkeys; they must not be used after. */
  release(): void;
}

/** Throws where `material` is not 32 bytes. */
export function createXaesKey(material: KeyObject): XaesKey {
  // For scanners: this is ECB as the block function inside CMAC (SP 800-38B), over two distinct blocks per nonce that no
  // one else sees. It never touches a plaintext. One cipher lives as long as the key: making one costs four times its use.
  const blockCipher = createCipheriv('aes-256-ecb', material, null);
  blockCipher.setAutoPadding(false);
  const mask = doubled(blockCipher.update(Buffer.alloc(blockBytes)));
  return {
    derive(nonces) {
      const blocks = Buffer.alloc(nonces.length * subkeyBytes);
      for (const [index, nonce] of nonces.entries()) {
        demandNonce(nonce);
        writeCmacInputs(blocks, index * subkeyBytes, mask, nonce);
      }
      const subkeys = blockCipher.update(blocks);
      return {
        uses: nonces.map((nonce, index) => ({
          key: subkeys.subarray(index * subkeyBytes, (index + 1) * subkeyBytes),
          nonce: nonce.subarray(subkeyNonceBytes),
        })),
        release: () => subkeys.fill(0),
      };
    },
  };
}

/** Both CMAC inputs are one full block: counter u16, 'X', 0, nonce half; each is masked with K1. */
function writeCmacInputs(blocks: Buffer, at: number, mask: Buffer, nonce: Buffer): void {
  for (let half = 0; half < 2; half++) {
    const start = at + half * blockBytes;
    blocks[start] = byteAt(mask, 0);
    blocks[start + 1] = byteAt(mask, 1) ^ (half + 1);
    blocks[start + 2] = byteAt(mask, 2) ^ 0x58;
    blocks[start + 3] = byteAt(mask, 3);
    for (let byte = 0; byte < subkeyNonceBytes; byte++)
      blocks[start + 4 + byte] = byteAt(nonce, byte) ^ byteAt(mask, 4 + byte);
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
