// The row field of associated data: a primary key, encoded so that no two keys share an encoding. The text of each
// part is PostgreSQL's own (`pk::text`), never a driver's: drivers turn integers and UUIDs into types of their own.
import { KeyturnError } from '../errors.js';
import { isWellFormed } from './encoding.js';

/** `int` is smallint to bigint (widening a column must not break its data), `text` also varchar, `bytes` is bytea. */
export type RowKeyTag = 'int' | 'uuid' | 'text' | 'bytes';

export interface RowKeyPart {
  readonly tag: RowKeyTag;
  /** `pk::text` as PostgreSQL prints it. */
  readonly text: string;
}

/** Longest field that a two-byte length can announce. */
const maxFieldBytes = 65_535;

// Only the spelling that PostgreSQL prints is taken: `007` or an upper-case UUID from an application would be bound as
// another row than the one a worker reads.
const canonicalText: Readonly<Record<RowKeyTag, RegExp | undefined>> = {
  int: /^(?:0|-?[1-9][0-9]*)$/,
  uuid: /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/,
  text: undefined,
  bytes: /^\\x(?:[0-9a-f]{2})*$/,
};

const tagBytes: Readonly<Record<RowKeyTag, Buffer>> = {
  int: lengthPrefixed('int'),
  uuid: lengthPrefixed('uuid'),
  text: lengthPrefixed('text'),
  bytes: lengthPrefixed('bytes'),
};

/**
 * Per key column, in key order: length u16, tag, length u16, text in UTF-8. Throws VALUE_INVALID for an empty key, for
 * text that is not what PostgreSQL prints for the tag, and for what two-byte lengths cannot hold.
 */
export function encodeRowKey(parts: readonly RowKeyPart[]): Buffer {
  if (parts.length === 0) throw new KeyturnError('VALUE_INVALID', 'a row key needs at least one column, got none');
  let length = 0;
  for (const { tag, text } of parts) {
    if (!isWellFormed(text) || canonicalText[tag]?.test(text) === false) {
      throw new KeyturnError('VALUE_INVALID', `a ${tag} key column must hold the text that PostgreSQL prints for it`);
    }
    length += tagBytes[tag].length + 2 + checkedLength(Buffer.byteLength(text));
  }
  const field = Buffer.allocUnsafe(checkedLength(length));
  let at = 0;
  for (const { tag, text } of parts) {
    at += tagBytes[tag].copy(field, at);
    const written = field.write(text, at + 2);
    at = field.writeUInt16BE(written, at) + written;
  }
  return field;
}

function checkedLength(bytes: number): number {
  if (bytes > maxFieldBytes) {
    throw new KeyturnError(
      'VALUE_INVALID',
      `a row key may take ${maxFieldBytes} bytes, this one takes ${bytes} or more`,
    );
  }
  return bytes;
}

function lengthPrefixed(tag: RowKeyTag): Buffer {
  return Buffer.from([0, tag.length, ...Buffer.from(tag)]);
}
