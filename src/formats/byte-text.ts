// Bytes as text in foreign formats, base64 or hexadecimal: how many bytes a text stands for, in TypeScript and in SQL,
// and the strict way to them.
import { decodeHex } from '../crypto/encoding.js';

export type ByteText = 'base64' | 'hex';

const shapes: Readonly<Record<ByteText, RegExp>> = {
  base64: /^[A-Za-z0-9+/]+={0,2}$/,
  hex: /^[0-9A-Fa-f]+$/,
};

/** Bytes that `text` stands for by its shape; undefined where it is no such text. */
export function lengthOfByteText(text: string, kind: ByteText): number | undefined {
  if (!shapes[kind].test(text)) return undefined;
  if (kind === 'hex') return text.length % 2 === 0 ? text.length / 2 : undefined;
  const padding = text.endsWith('==') ? 2 : text.endsWith('=') ? 1 : 0;
  return text.length % 4 === 0 ? (text.length / 4) * 3 - padding : undefined;
}

/** SQL integer, NULL for what is no such text; PostgreSQL's regular expressions take the same shapes. */
export function sqlLengthOfByteText(expression: string, kind: ByteText): string {
  const isShaped = `(${expression}) COLLATE "C" ~ '${shapes[kind].source}'`;
  const length = `length(${expression})`;
  return kind === 'hex'
    ? `CASE WHEN ${isShaped} AND ${length} % 2 = 0 THEN ${length} / 2 END`
    : `CASE WHEN ${isShaped} AND ${length} % 4 = 0 THEN ${length} / 4 * 3 - (${length} - length(rtrim(${expression}, '='))) END`;
}

/** Undefined unless `text` spells its bytes in the one way there is; hexadecimal digits may be of either case. */
export function decodeByteText(text: string, kind: ByteText): Buffer | undefined {
  if (lengthOfByteText(text, kind) === undefined) return undefined;
  if (kind === 'hex') return decodeHex(Buffer.from(text, 'latin1'));
  const bytes = Buffer.from(text, 'base64');
  return bytes.toString('base64') === text ? bytes : undefined;
}

export function textLength(bytes: number, kind: ByteText): number {
  return kind === 'hex' ? bytes * 2 : Math.ceil(bytes / 3) * 4;
}
