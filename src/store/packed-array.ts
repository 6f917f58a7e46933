// Arrays in PostgreSQL's binary form. The driver sends a Buffer parameter as it is, so packing here halves the bytes of a
// bytea[] (which would travel as hexadecimal text) and saves the driver's quoting. Layout: array_recv in the PostgreSQL
// source: dimensions, null flag, element type, length, lower bound, then length and bytes per element (-1 for NULL).

const headerBytes = 20;
const elementTypes = { bytea: 17, text: 25 } as const;

export function packArray(element: keyof typeof elementTypes, values: readonly (string | Buffer | null)[]): Buffer {
  let length = headerBytes;
  for (const value of values)
    length += 4 + (value === null ? 0 : typeof value === 'string' ? Buffer.byteLength(value) : value.length);
  const packed = Buffer.allocUnsafe(length);
  packed.writeInt32BE(values.length === 0 ? 0 : 1, 0);
  packed.writeInt32BE(values.includes(null) ? 1 : 0, 4);
  packed.writeInt32BE(elementTypes[element], 8);
  packed.writeInt32BE(values.length, 12);
  packed.writeInt32BE(1, 16);
  if (values.length === 0) return packed.subarray(0, 12);
  let at = headerBytes;
  for (const value of values) {
    if (value === null) {
      at = packed.writeInt32BE(-1, at);
    } else if (typeof value === 'string') {
      const written = packed.write(value, at + 4);
      packed.writeInt32BE(written, at);
      at += 4 + written;
    } else {
      packed.writeInt32BE(value.length, at);
      at += 4 + value.copy(packed, at + 4);
    }
  }
  return packed;
}
