// The arithmetic of the audit chain (docs/audit.md): the bytes of a record, the link that binds it to all records before
// it, and the seal that an audit key puts on a link. The database computes links too, in a trigger; this is the other,
// independent reading of the same page.
import { createHash, createHmac, type KeyObject } from 'node:crypto';
import { labelBytes } from './label.js';

export const linkBytes = 32;

/** What the first record is linked to. */
export const chainStart = Buffer.alloc(linkBytes);

/** One audit record as it is hashed. `before` and `after` are JSON, as the text that was written. */
export interface ChainedRecord {
  readonly id: bigint;
  /** Microseconds since 1970-01-01 UTC. */
  readonly atMicros: bigint;
  readonly actor: string;
  readonly action: string;
  readonly object: string;
  readonly reason: string | undefined;
  readonly before: string | undefined;
  readonly after: string | undefined;
}

/** No two records encode alike: numbers have a fixed length, every text states its own, and absent is not empty. */
export function encodeRecord(record: ChainedRecord): Buffer {
  const { id, atMicros, actor, action, object, reason, before, after } = record;
  return Buffer.concat([
    int64(id),
    int64(atMicros),
    ...[actor, action, object, reason, before, after].flatMap((text) => encodeField(text)),
  ]);
}

function encodeField(text: string | undefined): readonly Buffer[] {
  if (text === undefined) return [Buffer.from([0])];
  const bytes = Buffer.from(text, 'utf8');
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return [Buffer.from([1]), length, bytes];
}

/** 32 bytes over the record, its number, and through `previous` over every record before it. */
export function linkOf(n: bigint, previous: Buffer, record: ChainedRecord): Buffer {
  return createHash('sha256')
    .update(labelBytes('audit'))
    .update(int64(n))
    .update(previous)
    .update(encodeRecord(record))
    .digest();
}

/** What only a holder of the audit key can say: at this time, link `n` was `hash`. */
export function sealOf(key: KeyObject, seal: { n: bigint; hash: Buffer; sealedAtMicros: bigint }): Buffer {
  return createHmac('sha256', key)
    .update(labelBytes('audit-seal'))
    .update(int64(seal.n))
    .update(seal.hash)
    .update(int64(seal.sealedAtMicros))
    .digest();
}

function int64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigInt64BE(value);
  return bytes;
}
