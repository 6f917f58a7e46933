// The envelope of format v1: its 12-byte header, its lengths and its text armour. Strict both ways: what parses here
// is exactly what would be written here, everything else is undefined. Reserved algorithms count as unknown.
import { KeyturnError } from '../errors.js';
import { gcmNonceBytes, gcmTagBytes } from './aes-gcm.js';
import { type AlgorithmName, algorithmIds, algorithmOfId } from './algorithms.js';
import { decodeBase64Url, encodeBase64Url } from './encoding.js';
import type { KeyId } from './value-key.js';
import { xaesNonceBytes } from './xaes-gcm.js';

/** Header: magic 2, version 1, algorithm 1, key id 4, key check 4. */
export const headerBytes = 12;
/** "KT" */
export const envelopeMagic: Buffer = Buffer.from([0x4b, 0x54]);
const version = 1;

/** Opens the text form of an envelope. */
export const armourPrefix = 'kt1.';
/** The armoured header: 12 bytes are exactly 16 base64url characters, so it is constant per key. */
export const armouredHeaderLength = armourPrefix.length + 16;

/** Largest plaintext of one value. Rows hold more, but a worker keeps whole slices in memory. */
export const maxPlaintextBytes = 1_048_576;

export const nonceBytes: Readonly<Record<AlgorithmName, number>> = {
  'aes-256-gcm': gcmNonceBytes,
  'xaes-256-gcm': xaesNonceBytes,
};

export interface EnvelopeHeader {
  readonly algorithm: AlgorithmName;
  readonly keyId: number;
  /** First four bytes of the data key commitment, as a number. */
  readonly keyCheck: number;
}

/** Throws VALUE_INVALID where the id is not a number from 1 to 2^32 - 1. */
export function headerOfKey(key: {
  readonly id: KeyId;
  readonly algorithm: AlgorithmName;
  readonly commitment: Buffer;
}): EnvelopeHeader {
  const { id, algorithm, commitment } = key;
  if (typeof id !== 'number' || !Number.isInteger(id) || id < 1 || id > 0xffff_ffff) {
    throw new KeyturnError('VALUE_INVALID', 'an envelope names its key by a whole number from 1 to 4294967295');
  }
  return { algorithm, keyId: id, keyCheck: commitment.readUInt32BE(0) };
}

export function encodeHeader({ algorithm, keyId, keyCheck }: EnvelopeHeader): Buffer {
  const header = Buffer.alloc(headerBytes);
  header.set(envelopeMagic, 0);
  header[2] = version;
  header[3] = algorithmIds[algorithm];
  header.writeUInt32BE(keyId, 4);
  header.writeUInt32BE(keyCheck, 8);
  return header;
}

/** The header that `bytes` begins with; undefined for another magic, version or algorithm, and for key id 0. */
export function parseHeader(bytes: Buffer): EnvelopeHeader | undefined {
  if (bytes.length < headerBytes) return undefined;
  if (bytes[0] !== envelopeMagic[0] || bytes[1] !== envelopeMagic[1] || bytes[2] !== version) return undefined;
  const algorithm = algorithmOfId(bytes.readUInt8(3));
  const keyId = bytes.readUInt32BE(4);
  if (algorithm === undefined || keyId === 0) return undefined;
  return { algorithm, keyId, keyCheck: bytes.readUInt32BE(8) };
}

/** Bytes of the envelope of a plaintext. */
export function envelopeBytes(plaintextBytes: number, algorithm: AlgorithmName): number {
  return headerBytes + nonceBytes[algorithm] + plaintextBytes + gcmTagBytes;
}

/** Characters of the text form of an envelope. */
export function armouredLength(bytes: number): number {
  return armourPrefix.length + Math.ceil((bytes * 4) / 3);
}

export function encodeArmour(envelope: Buffer): string {
  return armourPrefix + encodeBase64Url(envelope);
}

const maxArmouredLength = armouredLength(envelopeBytes(maxPlaintextBytes, 'xaes-256-gcm'));

/** The bytes of an armoured envelope, not yet parsed; undefined unless `text` is their only spelling. */
export function decodeArmour(text: string): Buffer | undefined {
  if (text.length > maxArmouredLength || !text.startsWith(armourPrefix)) return undefined;
  return decodeBase64Url(text.slice(armourPrefix.length));
}

/** The header of an armoured envelope, decoding nothing behind it. */
export function parseArmouredHeader(text: string): EnvelopeHeader | undefined {
  if (text.length < armouredHeaderLength || !text.startsWith(armourPrefix)) return undefined;
  const header = decodeBase64Url(text.slice(armourPrefix.length, armouredHeaderLength));
  return header === undefined ? undefined : parseHeader(header);
}
