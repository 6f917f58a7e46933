// What kind of ciphertext a column seems to hold, told from a sample of its values without any key. Envelopes and messages
// with a magic of their own are known; the rest is a guess from lengths and from how even the bytes are.
import { keyturnFormat } from './keyturn.js';
import type { Stored } from './format.js';

export type Recognised =
  | 'keyturn'
  | 'fernet'
  | 'pgcrypto'
  /** Base64 or hex whose bytes come in blocks of sixteen: what typeorm-encrypted and most CBC code leaves. */
  | 'cbc'
  /** Base64, hex or bytes long enough for nonce and tag: AES-GCM by the look of it. */
  | 'gcm';

export interface Recognition {
  readonly found: Recognised;
  /** Told by a magic, and not guessed. */
  readonly isCertain: boolean;
  /** Of the values sampled, those that fit. */
  readonly fitting: number;
  readonly sampled: number;
}

/** So many values of one kind are needed before a guess is made. */
const minGuessed = 4;
const blockBytes = 16;
/** Nonce of twelve, tag of sixteen. */
const minGcmBytes = 28;

/** Undefined where the values are no ciphertext by any sign. */
export function recognise(values: readonly Stored[]): Recognition | undefined {
  const marked = ['keyturn', 'fernet', 'pgcrypto'] as const;
  for (const found of marked) {
    const fitting = values.filter((value) => hasMagic(found, value)).length;
    // One among many is a value that was moved by hand; it is worth a look.
    if (fitting > 0) return { found, isCertain: true, fitting, sampled: values.length };
  }
  return guess(values);
}

function hasMagic(found: 'keyturn' | 'fernet' | 'pgcrypto', value: Stored): boolean {
  switch (found) {
    case 'keyturn':
      return keyturnFormat.nameKey(value) !== undefined;
    case 'fernet':
      return typeof value === 'string' && isFernet(value);
    case 'pgcrypto':
      return typeof value === 'string'
        ? value.startsWith('-----BEGIN PGP MESSAGE-----')
        : value.length > 40 && (value[0] === 0xc3 || value[0] === 0x8c) && value[2] === 4;
  }
}

/** Version, time and nonce, blocks, tag; see the Fernet specification. */
function isFernet(value: string): boolean {
  if (!/^gAAAA[\w-]+={0,2}$/.test(value)) return false;
  const length = Buffer.from(value, 'base64url').length;
  return length >= 73 && (length - 57) % blockBytes === 0;
}

function guess(values: readonly Stored[]): Recognition | undefined {
  const decoded = values.map(bytesOf).filter((bytes) => bytes !== undefined);
  // A column of ciphertext holds little else.
  if (decoded.length < minGuessed || decoded.length < values.length * 0.9) return undefined;
  const lengths = new Set(decoded.map((bytes) => bytes.length));
  if (lengths.size === 1 && digestBytes.has(decoded[0]?.length ?? 0)) return undefined;
  if (!isEven(Buffer.concat(decoded))) return undefined;
  const fitting = decoded.length;
  const sampled = values.length;
  if (decoded.every((bytes) => bytes.length >= 2 * blockBytes && bytes.length % blockBytes === 0))
    return { found: 'cbc', isCertain: false, fitting, sampled };
  if (decoded.every((bytes) => bytes.length >= minGcmBytes))
    return { found: 'gcm', isCertain: false, fitting, sampled };
  return undefined;
}

/** MD5, SHA-1, SHA-2: all of one length. */
const digestBytes = new Set([16, 20, 28, 32, 48, 64]);

/** Images and archives are as even as ciphertext. */
const compressedMagics = ['ffd8ff', '89504e47', '1f8b', '504b0304', '25504446', '52494646', '28b52ffd', '425a68'];

function bytesOf(value: Stored): Buffer | undefined {
  if (typeof value !== 'string') {
    const start = value.toString('hex', 0, 4);
    return compressedMagics.some((magic) => start.startsWith(magic)) ? undefined : value;
  }
  if (/^(?:[0-9a-f]{2})+$/i.test(value)) return Buffer.from(value, 'hex');
  if (/^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/.test(value))
    return Buffer.from(value, 'base64');
  return undefined;
}

/** Whether bytes are spread as those of a cipher are: every value about as often, half of them above 127. */
function isEven(bytes: Buffer): boolean {
  if (bytes.length < 128) return false;
  const counts = new Uint32Array(256);
  for (const byte of bytes) counts[byte] = (counts[byte] ?? 0) + 1;
  const high = counts.subarray(128).reduce((sum, count) => sum + count, 0) / bytes.length;
  let entropy = 0;
  for (const count of counts) if (count > 0) entropy -= (count / bytes.length) * Math.log2(count / bytes.length);
  return high > 0.4 && high < 0.6 && entropy > 0.9 * Math.log2(Math.min(256, bytes.length));
}
