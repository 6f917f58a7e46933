// The associated data of a value: what binds an envelope to its cell (I2) and authenticates its header and nonce (I1).
// Profiles 0 (column) and 1 (row) of docs/format.md; this is the hot path, hence one buffer and plain copies.
import { KeyturnError } from '../errors.js';
import { labelBytes } from './label.js';
import { uuidBytes } from './uuid.js';

/** The fields a value is bound to: UUIDs of 16 bytes and, with profile 1, the encoded row key. */
export interface BoundFields {
  readonly tenant: Buffer;
  readonly target: Buffer;
  readonly column: Buffer;
  readonly row: Buffer | undefined;
}

const label = labelBytes('aad');
const columnProfile = 0;
const rowProfile = 1;
/** Two bytes of length before each field. */
const lengthBytes = 2;
const maxRowBytes = 65_535;

/** Label and profile, which stand before header and nonce; the fields stand behind them. */
export const leadBytes = label.length + 1;

/**
 * `envelope` begins with header and nonce, together `boundBytes` long; they stand in the associated data in that order.
 * The answer is valid until the next call. Throws VALUE_INVALID where a field has the wrong length.
 */
export function encodeAssociatedData(envelope: Buffer, boundBytes: number, fields: BoundFields): Buffer {
  const length = boundFieldsBytes(fields) + boundBytes;
  const data = scratchOf(length);
  data[label.length] = profileOf(fields);
  envelope.copy(data, leadBytes, 0, boundBytes);
  writeFields(data, fields, leadBytes + boundBytes);
  return data.subarray(0, length);
}

/** Bytes of the associated data without header and nonce. Throws VALUE_INVALID where a field has the wrong length. */
export function boundFieldsBytes({ tenant, target, column, row }: BoundFields): number {
  if (tenant.length !== uuidBytes || target.length !== uuidBytes || column.length !== uuidBytes) {
    throw new KeyturnError('VALUE_INVALID', 'tenant, target and column of a cell must be UUIDs of 16 bytes each');
  }
  const rowLength = row === undefined ? 0 : lengthBytes + row.length;
  if (rowLength > lengthBytes + maxRowBytes) {
    throw new KeyturnError('VALUE_INVALID', `a row key may take ${maxRowBytes} bytes, got ${rowLength - lengthBytes}`);
  }
  return leadBytes + lengthBytes + 3 * (lengthBytes + uuidBytes) + rowLength;
}

/** Writes the associated data without header and nonce, for who puts them in after `leadBytes`; answers where it ends. */
export function writeBoundFields(data: Buffer, fields: BoundFields, at: number): number {
  data.set(label, at);
  data[at + label.length] = profileOf(fields);
  return writeFields(data, fields, at + leadBytes);
}

function profileOf({ row }: BoundFields): number {
  return row === undefined ? columnProfile : rowProfile;
}

function writeFields(data: Buffer, { tenant, target, column, row }: BoundFields, start: number): number {
  let at = data.writeUInt16BE(row === undefined ? 3 : 4, start);
  at = writeField(data, tenant, at);
  at = writeField(data, target, at);
  at = writeField(data, column, at);
  return row === undefined ? at : writeField(data, row, at);
}

// Associated data is made three times per reencrypted value and read at once: one buffer serves all calls of a thread,
// instead of a new one for the collector each time. It holds ids and lengths, nothing secret.
let scratch = newScratch(1_024);

function newScratch(bytes: number): Buffer {
  const made = Buffer.alloc(bytes);
  made.set(label, 0);
  return made;
}

function scratchOf(length: number): Buffer {
  if (length > scratch.length) scratch = newScratch(2 * length);
  return scratch;
}

function writeField(data: Buffer, field: Buffer, at: number): number {
  const start = data.writeUInt16BE(field.length, at);
  data.set(field, start);
  return start + field.length;
}
