// The 32 bytes of a root key, read strictly and refused when they cannot have come from a random generator. Errors say
// what was expected and where it went wrong, never what was there (I7).
import { decodeHex, indexOfNonHex } from '../../crypto/encoding.js';
import { rootKeyBytes } from '../../crypto/root-key.js';
import { KeyturnError } from '../../errors.js';

export const hexKeyLength = 2 * rootKeyBytes;

/** Longest repeat that is looked for; random bytes repeat one of these with a chance below 2^-180. */
const maxPeriod = 8;

/** Key bytes from 64 hexadecimal character codes. `source` is the URI, for the error. */
export function parseHexKey(digits: Uint8Array, source: string): Buffer {
  if (digits.length !== hexKeyLength) {
    throw refused(source, `expected ${hexKeyLength} hexadecimal characters, got ${digits.length}`);
  }
  const bytes = decodeHex(digits);
  if (bytes === undefined) {
    throw refused(
      source,
      `expected ${hexKeyLength} hexadecimal characters, character ${indexOfNonHex(digits) + 1} is none`,
    );
  }
  return bytes;
}

/** Throws ROOT_KEY_REFUSED, after zeroing them, for bytes that no generator makes. */
export function demandRandomLooking(bytes: Buffer, source: string): void {
  const weakness = weaknessOf(bytes);
  if (weakness === undefined) return;
  bytes.fill(0);
  throw refused(source, `${weakness}; make a new key with: openssl rand -hex 32`);
}

function weaknessOf(bytes: Buffer): string | undefined {
  for (let period = 1; period <= maxPeriod; period++) {
    if (bytes.subarray(period).equals(bytes.subarray(0, -period)))
      return `it repeats a pattern of at most ${maxPeriod} bytes`;
  }
  // Every key printed in our documentation and test vectors counts up like this.
  const step = (bytes.readUInt8(1) - bytes.readUInt8(0)) & 0xff;
  const counts = bytes.every((byte, at) => at === 0 || byte === ((bytes.readUInt8(at - 1) + step) & 0xff));
  if (counts) return 'its bytes count up or down as example keys do';
  // 32 characters of hexadecimal or a passphrase hold far less than 256 bits. Random bytes are all printable with a
  // chance of about 2^-45.
  if (bytes.every((byte) => byte >= 0x20 && byte < 0x7f)) return 'its bytes are printable text, not random bytes';
  return undefined;
}

export function refused(source: string, reason: string): KeyturnError {
  return new KeyturnError('ROOT_KEY_REFUSED', `the root key at ${source} is refused: ${reason}`);
}

export function unavailable(source: string, reason: string): KeyturnError {
  return new KeyturnError('ROOT_KEY_UNAVAILABLE', `the root key at ${source} cannot be read: ${reason}`);
}
