// Bytes and text: hexadecimal and base64url, strict in both directions. Node's own decoders skip what they do not know
// and take several spellings of the same bytes; here every value has exactly one text.

/**
 * Bytes of hexadecimal digits of either case, given as character codes so that a key read from a file never becomes a
 * string. Undefined for an odd length or any other character.
 */
export function decodeHex(digits: Uint8Array): Buffer | undefined {
  if (digits.length % 2 !== 0) return undefined;
  const bytes = Buffer.alloc(digits.length / 2);
  for (let at = 0; at < digits.length; at += 2) {
    const high = hexDigit(digits[at]);
    const low = hexDigit(digits[at + 1]);
    if (high < 0 || low < 0) {
      bytes.fill(0);
      return undefined;
    }
    bytes[at / 2] = high * 16 + low;
  }
  return bytes;
}

/** Index of the first character code that is no hexadecimal digit, -1 when all are. */
export function indexOfNonHex(digits: Uint8Array): number {
  return digits.findIndex((code) => hexDigit(code) < 0);
}

function hexDigit(code: number | undefined): number {
  if (code === undefined) return -1;
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const lower = code | 0x20;
  return lower >= 0x61 && lower <= 0x66 ? lower - 0x57 : -1;
}

/** Unpadded base64url (RFC 4648 §5). */
export function encodeBase64Url(bytes: Buffer): string {
  return bytes.toString('base64url');
}

/** Undefined unless `text` is exactly what `encodeBase64Url` prints for the bytes it stands for. */
export function decodeBase64Url(text: string): Buffer | undefined {
  const bytes = Buffer.from(text, 'base64url');
  return bytes.toString('base64url') === text ? bytes : undefined;
}

// With the u flag a surrogate escape matches lone surrogates only, never half of a pair.
const loneSurrogate = /[\ud800-\udfff]/u;

/**
 * False for strings with half a surrogate pair: UTF-8 encodes all of these to the same three bytes, so two different
 * strings would be bound alike.
 */
export function isWellFormed(text: string): boolean {
  return !loneSurrogate.test(text);
}
