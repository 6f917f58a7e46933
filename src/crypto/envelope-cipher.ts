// One value under one data key: plaintext and bound fields to an envelope and back. The nonce comes from the caller,
// so that known answers run through the same code as random ones; only formats call this, with nonces from nonce.ts.
import type { KeyObject } from 'node:crypto';
import { KeyturnError } from '../errors.js';
import { decryptAesGcm, encryptAesGcm, type GcmOutput, gcmTagBytes } from './aes-gcm.js';
import type { AlgorithmName } from './algorithms.js';
import { type BoundFields, encodeAssociatedData } from './associated-data.js';
import {
  type EnvelopeHeader,
  encodeHeader,
  envelopeBytes,
  headerBytes,
  headerOfKey,
  maxPlaintextBytes,
  nonceBytes,
} from './envelope.js';
import type { ValueKey } from './value-key.js';
import { createXaesKey, decryptXaesGcm, encryptXaesGcm } from './xaes-gcm.js';

export interface EnvelopeCipher {
  readonly header: EnvelopeHeader;
  readonly nonceBytes: number;
  /** Throws VALUE_INVALID for a plaintext over the maximum or a nonce of another length. */
  encrypt(plaintext: Uint8Array, fields: BoundFields, nonce: Buffer): Buffer;
  /** `envelope` must carry this key's header: the caller has compared it. */
  decrypt(envelope: Buffer, fields: BoundFields): DecryptResult;
}

/** Two ways to fail, told apart for counters only. */
export type DecryptResult = Buffer | 'MALFORMED' | 'AUTHENTICATION_FAILED';

interface Aead {
  encrypt(nonce: Buffer, associatedData: Buffer, plaintext: Uint8Array): GcmOutput;
  decrypt(nonce: Buffer, associatedData: Buffer, encrypted: GcmOutput): Buffer | undefined;
}

const aeads: Readonly<Record<AlgorithmName, (material: KeyObject) => Aead>> = {
  'aes-256-gcm': (material) => ({
    encrypt: (nonce, associatedData, plaintext) => encryptAesGcm(material, nonce, associatedData, plaintext),
    decrypt: (nonce, associatedData, encrypted) => decryptAesGcm(material, nonce, associatedData, encrypted),
  }),
  'xaes-256-gcm': (material) => {
    const key = createXaesKey(material);
    return {
      encrypt: (nonce, associatedData, plaintext) => encryptXaesGcm(key, nonce, associatedData, plaintext),
      decrypt: (nonce, associatedData, encrypted) => decryptXaesGcm(key, nonce, associatedData, encrypted),
    };
  },
};

export function createEnvelopeCipher(key: ValueKey): EnvelopeCipher {
  const { algorithm } = key;
  const aead = aeads[algorithm](key.material);
  const header = headerOfKey(key);
  const encodedHeader = encodeHeader(header);
  const nonceLength = nonceBytes[algorithm];
  const boundBytes = headerBytes + nonceLength;
  const minBytes = envelopeBytes(0, algorithm);
  const maxBytes = envelopeBytes(maxPlaintextBytes, algorithm);

  return {
    header,
    nonceBytes: nonceLength,
    encrypt(plaintext, fields, nonce) {
      if (plaintext.length > maxPlaintextBytes) {
        throw new KeyturnError(
          'VALUE_INVALID',
          `a value may have ${maxPlaintextBytes} bytes of plaintext, this one has ${plaintext.length}`,
        );
      }
      const envelope = Buffer.allocUnsafe(envelopeBytes(plaintext.length, algorithm));
      envelope.set(encodedHeader, 0);
      envelope.set(nonce, headerBytes);
      const associatedData = encodeAssociatedData(envelope, boundBytes, fields);
      const { ciphertext, tag } = aead.encrypt(nonce, associatedData, plaintext);
      envelope.set(ciphertext, boundBytes);
      envelope.set(tag, boundBytes + ciphertext.length);
      return envelope;
    },
    decrypt(envelope, fields) {
      if (envelope.length < minBytes || envelope.length > maxBytes) return 'MALFORMED';
      const tagAt = envelope.length - gcmTagBytes;
      const plaintext = aead.decrypt(
        envelope.subarray(headerBytes, boundBytes),
        encodeAssociatedData(envelope, boundBytes, fields),
        { ciphertext: envelope.subarray(boundBytes, tagAt), tag: envelope.subarray(tagAt) },
      );
      return plaintext ?? 'AUTHENTICATION_FAILED';
    },
  };
}
