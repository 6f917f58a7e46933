// Values under one data key: plaintext and bound fields to an envelope and back, many at a time. Nonces come from the caller,
// so that known answers run through the same code as random ones; only formats call this, with nonces from nonce.ts.
import type { KeyObject } from 'node:crypto';
import { KeyturnError } from '../errors.js';
import { decryptAesGcm, encryptAesGcm, type GcmUse, gcmTagBytes } from './aes-gcm.js';
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
import { createXaesKey } from './xaes-gcm.js';

export interface EnvelopeCipher {
  readonly header: EnvelopeHeader;
  readonly nonceBytes: number;
  /** One nonce for each value. Throws VALUE_INVALID for a plaintext over the maximum or a nonce of another length. */
  encrypt(values: readonly PlainValue[], nonces: readonly Buffer[]): readonly Buffer[];
  /** Whether so many bytes can be an envelope of this algorithm. */
  fits(envelope: Buffer): boolean;
  /** Undefined where the tag does not match. Each envelope must fit and carry this key's header: the caller has compared it. */
  decrypt(values: readonly EnvelopeValue[]): readonly (Buffer | undefined)[];
}

/** The ciphers of one path to OpenSSL: that of node:crypto here, the native one in native-cipher.ts. */
export interface CipherSuite<Cipher extends EnvelopeCipher> {
  create(key: ValueKey): Cipher;
  /**
   * Opens each value under `from`, encrypts it under `to` with a nonce of its own, opens that again and compares. The
   * values must fit and carry the header of `from`, as for decrypting. `nonces`: one behind the other.
   */
  reencrypt?(
    from: Cipher,
    to: Cipher,
    values: readonly EnvelopeValue[],
    nonces: Buffer,
  ): readonly (Buffer | ReencryptFailure)[];
}

/** The tag of the value did not match, or what was made of it did not open to the same plaintext. */
export type ReencryptFailure = 'AUTHENTICATION_FAILED' | 'VERIFICATION_FAILED';

export interface PlainValue {
  readonly plaintext: Uint8Array;
  readonly fields: BoundFields;
}

export interface EnvelopeValue {
  readonly envelope: Buffer;
  readonly fields: BoundFields;
}

/** What GCM takes for each of some nonces; to be released after use. */
type DeriveUses = (nonces: readonly Buffer[]) => { readonly uses: readonly GcmUse[]; release(): void };

const derivations: Readonly<Record<AlgorithmName, (material: KeyObject) => DeriveUses>> = {
  'aes-256-gcm': (material) => (nonces) => ({
    uses: nonces.map((nonce) => ({ key: material, nonce })),
    release: () => undefined,
  }),
  'xaes-256-gcm': (material) => createXaesKey(material).derive,
};

export const nodeCiphers: CipherSuite<EnvelopeCipher> = { create: createNodeCipher };

function createNodeCipher(key: ValueKey): EnvelopeCipher {
  const { algorithm } = key;
  const derive = derivations[algorithm](key.material);
  const header = headerOfKey(key);
  const encodedHeader = encodeHeader(header);
  const nonceLength = nonceBytes[algorithm];
  const boundBytes = headerBytes + nonceLength;
  const minBytes = envelopeBytes(0, algorithm);
  const maxBytes = envelopeBytes(maxPlaintextBytes, algorithm);

  function encryptOne(use: GcmUse, nonce: Buffer, { plaintext, fields }: PlainValue): Buffer {
    const envelope = Buffer.allocUnsafe(envelopeBytes(plaintext.length, algorithm));
    envelope.set(encodedHeader, 0);
    envelope.set(nonce, headerBytes);
    const associatedData = encodeAssociatedData(envelope, boundBytes, fields);
    const { ciphertext, tag } = encryptAesGcm(use.key, use.nonce, associatedData, plaintext);
    envelope.set(ciphertext, boundBytes);
    envelope.set(tag, boundBytes + ciphertext.length);
    return envelope;
  }

  function decryptOne({ key: valueKey, nonce }: GcmUse, { envelope, fields }: EnvelopeValue): Buffer | undefined {
    const tagAt = envelope.length - gcmTagBytes;
    const associatedData = encodeAssociatedData(envelope, boundBytes, fields);
    const encrypted = { ciphertext: envelope.subarray(boundBytes, tagAt), tag: envelope.subarray(tagAt) };
    return decryptAesGcm(valueKey, nonce, associatedData, encrypted);
  }

  return {
    header,
    nonceBytes: nonceLength,
    encrypt(values, nonces) {
      for (const { plaintext } of values) demandPlaintext(plaintext);
      const { uses, release } = derive(nonces);
      try {
        return values.map((value, at) => encryptOne(each(uses, at), each(nonces, at), value));
      } finally {
        release();
      }
    },
    fits: ({ length }) => length >= minBytes && length <= maxBytes,
    decrypt(values) {
      const { uses, release } = derive(values.map(({ envelope }) => envelope.subarray(headerBytes, boundBytes)));
      try {
        return values.map((value, at) => decryptOne(each(uses, at), value));
      } finally {
        release();
      }
    },
  };
}

/** Nonces and what is derived from them stand in the order of the values; a value without one must not be encrypted. */
export function each<T>(list: readonly T[], at: number): T {
  const found = list[at];
  if (found === undefined) throw new Error(`value ${at} has no nonce of its own`);
  return found;
}

/** Throws VALUE_INVALID. */
export function demandPlaintext(plaintext: Uint8Array): void {
  if (plaintext.length <= maxPlaintextBytes) return;
  throw new KeyturnError(
    'VALUE_INVALID',
    `a value may have ${maxPlaintextBytes} bytes of plaintext, this one has ${plaintext.length}`,
  );
}
