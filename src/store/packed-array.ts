// Arrays in PostgreSQL's binary form. The driver sends a Buffer parameter as it is, so packing here halves the bytes of a
// bytea[] (which would travel as hexadecimal text) and saves the driver's quoting. Layout: array_recv in the PostgreSQL
// source: dimensions, null flag, element type, length, lower bound, then length and bytes per element (-1 for NULL).

const headerBytes = 20;
const elementTypes = { bytea: 17, text: 25 } as const;

type Element = keyof typeof elementTypes;

/** An array under construction: what was added is packed at once, so that no list of values is kept. */
export interface ArrayPacker {
  add(value: string | Buffer | null): void;
  /** Whether all that was added is NULL. */
  isAllNull(): boolean;
  /** The packed array; nothing may be added after. */
  finish(): Buffer;
}

/** The room made at once for values like the first; more only as they come, since the first may be the longest by far. */
const mostFirstBytes = 262_144;

/** `expected`: how many values will be added, so that room for them is made once. */
export function createArrayPacker(element: Element, expected: number): ArrayPacker {
  let packed = Buffer.allocUnsafe(headerBytes);
  let at = headerBytes;
  let length = 0;
  let nulls = 0;

  function demandRoom(bytes: number): void {
    if (at + bytes <= packed.length) return;
    const likely = at === headerBytes ? Math.min(expected * bytes, mostFirstBytes) : packed.length;
    const larger = Buffer.allocUnsafe(at + Math.max(bytes, likely));
    larger.set(packed.subarray(0, at));
    packed = larger;
  }

  return {
    add(value) {
      length++;
      if (value === null) {
        nulls++;
        demandRoom(4);
        at = packed.writeInt32BE(-1, at);
        return;
      }
      const bytes = typeof value === 'string' ? Buffer.byteLength(value) : value.length;
      demandRoom(4 + bytes);
      at = packed.writeInt32BE(bytes, at);
      if (typeof value === 'string') packed.write(value, at);
      else packed.set(value, at);
      at += bytes;
    },
    isAllNull: () => nulls === length,
    finish() {
      packed.writeInt32BE(length === 0 ? 0 : 1, 0);
      packed.writeInt32BE(nulls === 0 ? 0 : 1, 4);
      packed.writeInt32BE(elementTypes[element], 8);
      packed.writeInt32BE(length, 12);
      packed.writeInt32BE(1, 16);
      return packed.subarray(0, length === 0 ? 12 : at);
    },
  };
}

export function packArray(element: Element, values: readonly (string | Buffer | null)[]): Buffer {
  const packer = createArrayPacker(element, values.length);
  for (const value of values) packer.add(value);
  return packer.finish();
}
