// The types of encrypted properties: each has one canonical form in bytes, so that equal values compare equal and a value
// comes back as what it was.
import { isUtf8 } from 'node:buffer';
import { isWellFormed } from '../crypto/encoding.js';
import { KeyturnError } from '../errors.js';

export const valueTypes = ['string', 'number', 'bigint', 'boolean', 'date', 'json', 'buffer'] as const;

export type ValueType = (typeof valueTypes)[number];

/** Throws VALUE_INVALID for a value of another type, or one that would not come back as it was. */
export function encodeValue(type: ValueType, value: unknown, title: string): Buffer {
  switch (type) {
    case 'string':
      if (typeof value === 'string' && isWellFormed(value)) return Buffer.from(value, 'utf8');
      break;
    case 'number':
      if (typeof value === 'number' && Number.isFinite(value))
        return Buffer.from(Object.is(value, -0) ? '0' : String(value));
      break;
    case 'bigint':
      if (typeof value === 'bigint') return Buffer.from(value.toString());
      break;
    case 'boolean':
      if (typeof value === 'boolean') return Buffer.from(String(value));
      break;
    case 'date':
      if (value instanceof Date && !Number.isNaN(value.getTime())) return Buffer.from(value.toISOString());
      break;
    case 'json': {
      const text = canonicalJson(value, title);
      if (isWellFormed(text)) return Buffer.from(text, 'utf8');
      break;
    }
    case 'buffer':
      if (value instanceof Uint8Array) return Buffer.from(value);
      break;
  }
  throw new KeyturnError('VALUE_INVALID', `expected ${expected[type]} for ${title}, got ${seen(value)}`, {
    property: title,
  });
}

/** Throws VALUE_INVALID for bytes that another type has written. */
export function decodeValue(type: ValueType, bytes: Buffer, title: string): unknown {
  if (type === 'buffer') return bytes;
  const text = isUtf8(bytes) ? bytes.toString('utf8') : undefined;
  if (text !== undefined) {
    switch (type) {
      case 'string':
        return text;
      case 'number':
        if (text !== '' && Number.isFinite(Number(text))) return Number(text);
        break;
      case 'bigint':
        if (/^-?\d+$/.test(text)) return BigInt(text);
        break;
      case 'boolean':
        if (text === 'true' || text === 'false') return text === 'true';
        break;
      case 'date':
        if (!Number.isNaN(Date.parse(text))) return new Date(text);
        break;
      case 'json':
        try {
          return JSON.parse(text) as unknown;
        } catch {
          break;
        }
    }
  }
  throw new KeyturnError(
    'VALUE_INVALID',
    `the value of ${title} decrypted, but it holds no ${type}; declare the type it was written with`,
    { property: title },
  );
}

const expected: Readonly<Record<ValueType, string>> = {
  string: 'a string without half surrogate pairs',
  number: 'a finite number',
  bigint: 'a bigint',
  boolean: 'a boolean',
  date: 'a valid Date',
  json: 'a value that JSON can hold',
  buffer: 'a Buffer',
};

function seen(value: unknown): string {
  if (value instanceof Date) return 'an invalid Date';
  if (value instanceof Uint8Array) return 'bytes';
  return typeof value === 'function' ? 'an SQL expression, which cannot be encrypted' : `a ${typeof value}`;
}

/** Keys sorted, so that equal documents are equal text. */
function canonicalJson(value: unknown, title: string): string {
  let text: string | undefined;
  try {
    text = JSON.stringify(value, (_, member: unknown) =>
      typeof member === 'object' && member !== null && !Array.isArray(member)
        ? Object.fromEntries(Object.entries(member).sort(([one], [other]) => (one < other ? -1 : 1)))
        : member,
    );
  } catch {
    text = undefined;
  }
  if (text !== undefined) return text;
  throw new KeyturnError('VALUE_INVALID', `expected ${expected.json} for ${title}, got ${seen(value)}`, {
    property: title,
  });
}
