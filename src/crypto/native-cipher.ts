// Envelopes on the native batch path. Of one value, associated data is encoded here; of many to reencrypt, envelopes and
// fields are packed and go over in one call, and no plaintext comes back.
import { KeyturnError } from '../errors.js';
import { boundFieldsBytes, encodeAssociatedData, leadBytes, writeBoundFields } from './associated-data.js';
import {
  encodeHeader,
  envelopeBytes,
  headerBytes,
  headerOfKey,
  maxPlaintextBytes,
  nonceBytes,
  type EnvelopeHeader,
} from './envelope.js';
import {
  demandPlaintext,
  each,
  type CipherSuite,
  type EnvelopeCipher,
  type EnvelopeValue,
  type PlainValue,
  type ReencryptFailure,
} from './envelope-cipher.js';
import { nativeOutcomes, type NativeAddon, type NativeKey } from './native-addon.js';
import type { ValueKey } from './value-key.js';

interface NativeCipher extends EnvelopeCipher {
  readonly key: NativeKey;
  readonly encodedHeader: Buffer;
}

export function createNativeCiphers(addon: NativeAddon): CipherSuite<NativeCipher> {
  return {
    create: (key) => createNativeCipher(addon, key),
    reencrypt(from, to, values, nonces) {
      const { packed, lengths } = pack(values);
      const surplus = to.nonceBytes - from.nonceBytes;
      const sizes = values.map(({ envelope }) => envelope.length + surplus);
      const replacements = Buffer.allocUnsafe(sizes.reduce((sum, size) => sum + size, 0));
      const outcomes = new Uint8Array(values.length);
      addon.reencrypt(from.key, to.key, to.encodedHeader, leadBytes, nonces, packed, lengths, replacements, outcomes);
      let at = 0;
      return sizes.map((size, index) => {
        at += size;
        return failureOf(outcomes[index]) ?? replacements.subarray(at - size, at);
      });
    },
  };
}

function failureOf(outcome: number | undefined): ReencryptFailure | undefined {
  if (outcome === nativeOutcomes.reencrypted) return undefined;
  return outcome === nativeOutcomes.authenticationFailed ? 'AUTHENTICATION_FAILED' : 'VERIFICATION_FAILED';
}

function pack(values: readonly EnvelopeValue[]): { readonly packed: Buffer; readonly lengths: Uint32Array } {
  const lengths = new Uint32Array(values.length * 2);
  let total = 0;
  for (const [index, { envelope, fields }] of values.entries()) {
    const fieldsBytes = boundFieldsBytes(fields);
    lengths[index * 2] = envelope.length;
    lengths[index * 2 + 1] = fieldsBytes;
    total += envelope.length + fieldsBytes;
  }
  const packed = Buffer.allocUnsafe(total);
  let at = 0;
  for (const { envelope, fields } of values) {
    packed.set(envelope, at);
    at = writeBoundFields(packed, fields, at + envelope.length);
  }
  return { packed, lengths };
}

function createNativeCipher(addon: NativeAddon, valueKey: ValueKey): NativeCipher {
  const { algorithm } = valueKey;
  const header: EnvelopeHeader = headerOfKey(valueKey);
  const encodedHeader = encodeHeader(header);
  const key = importKey(addon, valueKey);
  const nonceLength = nonceBytes[algorithm];
  const boundBytes = headerBytes + nonceLength;
  const minBytes = envelopeBytes(0, algorithm);
  const maxBytes = envelopeBytes(maxPlaintextBytes, algorithm);

  function encryptOne({ plaintext, fields }: PlainValue, nonce: Buffer): Buffer {
    if (nonce.length !== nonceLength)
      throw new KeyturnError('VALUE_INVALID', `a nonce has ${nonceLength} bytes here, got ${nonce.length}`);
    const envelope = Buffer.allocUnsafe(envelopeBytes(plaintext.length, algorithm));
    envelope.set(encodedHeader, 0);
    envelope.set(nonce, headerBytes);
    addon.seal(key, envelope, headerBytes, encodeAssociatedData(envelope, boundBytes, fields), plaintext);
    return envelope;
  }

  function decryptOne({ envelope, fields }: EnvelopeValue): Buffer | undefined {
    // Not from the pool: a plaintext shares its memory with nothing else.
    const plaintext = Buffer.allocUnsafeSlow(envelope.length - minBytes);
    const associatedData = encodeAssociatedData(envelope, boundBytes, fields);
    return addon.unseal(key, envelope, headerBytes, associatedData, plaintext) ? plaintext : undefined;
  }

  return {
    key,
    header,
    encodedHeader,
    nonceBytes: nonceLength,
    encrypt(values, nonces) {
      for (const { plaintext } of values) demandPlaintext(plaintext);
      return values.map((value, at) => encryptOne(value, each(nonces, at)));
    },
    fits: ({ length }) => length >= minBytes && length <= maxBytes,
    decrypt: (values) => values.map(decryptOne),
  };
}

/** Throws a RangeError where the material is not 32 bytes. */
function importKey(addon: NativeAddon, { algorithm, material }: ValueKey): NativeKey {
  const exported = material.export();
  try {
    return addon.createKey(algorithm === 'xaes-256-gcm', exported);
  } finally {
    exported.fill(0);
  }
}
