// Symmetric OpenPGP messages as PostgreSQL's pgcrypto writes and reads them, after RFC 4880: packets (§4.2), passphrase to
// key (§3.7), session key (§5.3), integrity-protected data with its modification detection code (§5.13, §5.14), and
// within it compressed (§5.6) or literal (§5.9) data. AES only; messages without the detection code are not read.
import { createCipheriv, createDecipheriv, createHash, randomBytes } from 'node:crypto';
import { inflateRawSync, inflateSync } from 'node:zlib';
import { maxPlaintextBytes } from './envelope.js';

export type OpenPgpFailure = 'MALFORMED' | 'AUTHENTICATION_FAILED';

const tags = { sessionKey: 3, compressed: 8, literal: 11, protectedData: 18 } as const;
const ciphers: Readonly<Record<number, { readonly name: string; readonly keyBytes: number }>> = {
  7: { name: 'aes-128-cfb', keyBytes: 16 },
  8: { name: 'aes-192-cfb', keyBytes: 24 },
  9: { name: 'aes-256-cfb', keyBytes: 32 },
};
const digests: Readonly<Record<number, string>> = {
  1: 'md5',
  2: 'sha1',
  8: 'sha256',
  9: 'sha384',
  10: 'sha512',
  11: 'sha224',
};
const blockBytes = 16;
const noIv = Buffer.alloc(blockBytes);
/** A block of random bytes, the last two again. */
const prefixBytes = blockBytes + 2;
/** The packet of the detection code: its two header bytes and a SHA-1. */
const detectionHeader = Buffer.from([0xd3, 0x14]);
const detectionBytes = detectionHeader.length + 20;
/** Literal data has a header of its own, and compression rarely makes a value longer. */
const maxInflatedBytes = maxPlaintextBytes + 1024;

interface Packet {
  readonly tag: number;
  readonly body: Buffer;
}

/** Undefined where the bytes are no whole packets. */
function readPackets(bytes: Buffer): readonly Packet[] | undefined {
  const packets: Packet[] = [];
  let at = 0;
  while (at < bytes.length) {
    const first = bytes.readUInt8(at++);
    if ((first & 0x80) === 0) return undefined;
    const isNew = (first & 0x40) !== 0;
    const body = isNew ? readNewBody(bytes, at) : readOldBody(bytes, at, first & 3);
    if (body === undefined) return undefined;
    packets.push({ tag: isNew ? first & 0x3f : (first >> 2) & 0x0f, body: body.bytes });
    at = body.end;
  }
  return packets;
}

type Body = { readonly bytes: Buffer; readonly end: number } | undefined;

function readOldBody(bytes: Buffer, at: number, lengthType: number): Body {
  if (lengthType === 3) return { bytes: bytes.subarray(at), end: bytes.length };
  const lengthBytes = 1 << lengthType;
  if (at + lengthBytes > bytes.length) return undefined;
  return cut(bytes, at + lengthBytes, bytes.readUIntBE(at, lengthBytes));
}

/** A body may come in parts, each with a length that is a power of two; the last has an ordinary one. */
function readNewBody(bytes: Buffer, start: number): Body {
  const parts: Buffer[] = [];
  let at = start;
  for (;;) {
    const first = bytes[at];
    if (first === undefined) return undefined;
    const isPart = first >= 224 && first < 255;
    let length: number;
    if (first < 192) [length, at] = [first, at + 1];
    else if (isPart) [length, at] = [2 ** (first & 0x1f), at + 1];
    else if (first < 224) {
      const second = bytes[at + 1];
      if (second === undefined) return undefined;
      [length, at] = [((first - 192) << 8) + second + 192, at + 2];
    } else {
      if (at + 5 > bytes.length) return undefined;
      [length, at] = [bytes.readUInt32BE(at + 1), at + 5];
    }
    const part = cut(bytes, at, length);
    if (part === undefined) return undefined;
    parts.push(part.bytes);
    at = part.end;
    if (!isPart) return { bytes: parts.length === 1 ? part.bytes : Buffer.concat(parts), end: at };
  }
}

function cut(bytes: Buffer, at: number, length: number): Body {
  return at + length > bytes.length ? undefined : { bytes: bytes.subarray(at, at + length), end: at + length };
}

interface SessionKey {
  readonly cipher: string;
  readonly key: Buffer;
}

/** From the body of a session key packet; undefined for what this reader does not know. */
function deriveSessionKey(body: Buffer, passphrase: Buffer): SessionKey | undefined {
  const cipher = ciphers[body[1] ?? 0];
  const derived = cipher && deriveKey(body, passphrase, cipher.keyBytes);
  if (body[0] !== 4 || cipher === undefined || derived === undefined) return undefined;
  const wrapped = body.subarray(derived.end);
  if (wrapped.length === 0) return { cipher: cipher.name, key: derived.key };
  const opened = createDecipheriv(cipher.name, derived.key, noIv).update(wrapped);
  const own = ciphers[opened[0] ?? 0];
  return own !== undefined && opened.length === own.keyBytes + 1
    ? { cipher: own.name, key: opened.subarray(1) }
    : undefined;
}

/** String to key (§3.7.1): simple, salted, or salted and iterated. */
function deriveKey(
  body: Buffer,
  passphrase: Buffer,
  keyBytes: number,
): { readonly key: Buffer; readonly end: number } | undefined {
  const kind = body[2];
  const digest = digests[body[3] ?? 0];
  const end = kind === 0 ? 4 : kind === 1 ? 12 : kind === 3 ? 13 : undefined;
  if (digest === undefined || end === undefined || body.length < end) return undefined;
  const unit = Buffer.concat([kind === 0 ? Buffer.alloc(0) : body.subarray(4, 12), passphrase]);
  const count = kind === 3 ? Math.max(countOf(body.readUInt8(12)), unit.length) : unit.length;
  return { key: stretch(digest, unit, count, keyBytes), end };
}

function countOf(coded: number): number {
  return (16 + (coded & 15)) << ((coded >> 4) + 6);
}

/** `count` bytes of `unit` over and over through the digest; where it is too short, once more behind a zero byte. */
function stretch(digest: string, unit: Buffer, count: number, keyBytes: number): Buffer {
  const many = unit.length === 0 ? unit : Buffer.concat(Array(Math.ceil(8192 / unit.length)).fill(unit) as Buffer[]);
  const parts: Buffer[] = [];
  for (let round = 0, made = 0; made < keyBytes; round++) {
    const hash = createHash(digest).update(Buffer.alloc(round));
    for (let left = unit.length === 0 ? 0 : count; left > 0; left -= many.length)
      hash.update(left < many.length ? many.subarray(0, left) : many);
    const part = hash.digest();
    parts.push(part);
    made += part.length;
  }
  many.fill(0);
  return Buffer.concat(parts).subarray(0, keyBytes);
}

/** The data of a message. Never throws for any bytes. */
export function decryptOpenPgp(message: Buffer, passphrase: Buffer): Buffer | OpenPgpFailure {
  const packets = readPackets(message);
  const [session, data] = packets ?? [];
  if (packets?.length !== 2 || session?.tag !== tags.sessionKey || data?.tag !== tags.protectedData) return 'MALFORMED';
  if (data.body[0] !== 1 || data.body.length < 1 + prefixBytes + detectionBytes) return 'MALFORMED';
  const sessionKey = deriveSessionKey(session.body, passphrase);
  // A wrapped session key that opens to no key: the passphrase is another, or the packet was changed.
  if (sessionKey === undefined) return session.body[0] === 4 ? 'AUTHENTICATION_FAILED' : 'MALFORMED';
  const opened = createDecipheriv(sessionKey.cipher, sessionKey.key, noIv).update(data.body.subarray(1));
  try {
    const covered = opened.subarray(0, -20);
    if (
      !covered.subarray(-2).equals(detectionHeader) ||
      !createHash('sha1').update(covered).digest().equals(opened.subarray(-20))
    )
      return 'AUTHENTICATION_FAILED';
    return readData(opened.subarray(prefixBytes, -detectionBytes)) ?? 'MALFORMED';
  } finally {
    opened.fill(0);
    sessionKey.key.fill(0);
  }
}

function readData(bytes: Buffer): Buffer | undefined {
  const [packet, ...more] = readPackets(bytes) ?? [];
  if (packet === undefined || more.length > 0) return undefined;
  if (packet.tag === tags.compressed) return readCompressed(packet.body);
  return packet.tag === tags.literal ? readLiteral(packet.body) : undefined;
}

function readCompressed(body: Buffer): Buffer | undefined {
  const inflate = { 1: inflateRawSync, 2: inflateSync }[body[0] ?? 0];
  if (inflate === undefined) return undefined;
  let inflated: Buffer;
  try {
    inflated = inflate(body.subarray(1), { maxOutputLength: maxInflatedBytes });
  } catch {
    return undefined;
  }
  const [packet, ...more] = readPackets(inflated) ?? [];
  const data = packet?.tag === tags.literal && more.length === 0 ? readLiteral(packet.body) : undefined;
  inflated.fill(0);
  return data;
}

/** Kind of data, file name, time, and then the data itself. */
function readLiteral(body: Buffer): Buffer | undefined {
  const start = 2 + (body[1] ?? 0) + 4;
  return body.length < start ? undefined : Buffer.from(body.subarray(start));
}

const writtenCipher = 9;
const writtenDigest = 8;
/** 65 536 bytes through the digest, the least that pgcrypto itself uses. */
const writtenCount = 0x60;

/** `isText`: pgcrypto gives text back only for data that was written as text. */
export function encryptOpenPgp(data: Uint8Array, passphrase: Buffer, isText: boolean): Buffer {
  const sessionBody = Buffer.concat([
    Buffer.from([4, writtenCipher, 3, writtenDigest]),
    randomBytes(8),
    Buffer.from([writtenCount]),
  ]);
  const session = deriveSessionKey(sessionBody, passphrase);
  if (session === undefined) throw new Error('the packet that was written is not one that is read');
  const block = randomBytes(blockBytes);
  const literal = Buffer.concat([Buffer.from([isText ? 0x74 : 0x62, 0, 0, 0, 0, 0]), data]);
  const covered = Buffer.concat([block, block.subarray(-2), writePacket(tags.literal, literal), detectionHeader]);
  const opened = Buffer.concat([covered, createHash('sha1').update(covered).digest()]);
  const closed = createCipheriv(session.cipher, session.key, noIv).update(opened);
  for (const secret of [literal, covered, opened, session.key]) secret.fill(0);
  return Buffer.concat([
    writePacket(tags.sessionKey, sessionBody),
    writePacket(tags.protectedData, Buffer.concat([Buffer.from([1]), closed])),
  ]);
}

function writePacket(tag: number, body: Buffer): Buffer {
  const header = Buffer.alloc(6);
  header[0] = 0xc0 | tag;
  header[1] = 0xff;
  header.writeUInt32BE(body.length, 2);
  return Buffer.concat([header, body]);
}

/** Bytes of the message of `dataBytes`. */
export function openPgpLength(dataBytes: number): number {
  return 6 + 13 + 6 + 1 + prefixBytes + 6 + 6 + dataBytes + detectionBytes;
}

const armourBegin = '-----BEGIN PGP MESSAGE-----';
const armourEnd = '-----END PGP MESSAGE-----';
const armourLine = 76;

export { armourBegin as openPgpArmourBegin };

/** The bytes of an armoured message (§6.2); undefined for another text or a wrong checksum. */
export function readOpenPgpArmour(text: string): Buffer | undefined {
  const lines = text.trimEnd().split(/\r?\n/);
  const blank = lines.indexOf('');
  if (lines[0] !== armourBegin || lines.at(-1) !== armourEnd || blank < 1) return undefined;
  const inner = lines.slice(blank + 1, -1);
  const last = inner.at(-1);
  const checksum = last?.startsWith('=') === true ? last.slice(1) : undefined;
  const encoded = (checksum === undefined ? inner : inner.slice(0, -1)).join('');
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.toString('base64') !== encoded) return undefined;
  return checksum === undefined || checksum === checksumOf(bytes) ? bytes : undefined;
}

export function writeOpenPgpArmour(bytes: Buffer): string {
  const lines = bytes.toString('base64').match(new RegExp(`.{1,${armourLine}}`, 'g')) ?? [];
  return [armourBegin, '', ...lines, `=${checksumOf(bytes)}`, armourEnd, ''].join('\n');
}

export function openPgpArmourLength(bytes: number): number {
  const encoded = Math.ceil(bytes / 3) * 4;
  return armourBegin.length + 2 + encoded + Math.ceil(encoded / armourLine) + 6 + armourEnd.length + 1;
}

/** CRC-24 (§6.1). */
function checksumOf(bytes: Buffer): string {
  let crc = 0xb704ce;
  for (const byte of bytes) {
    crc ^= byte << 16;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 0x800000) === 0 ? crc << 1 : (crc << 1) ^ 0x1864cfb;
  }
  const three = Buffer.alloc(3);
  three.writeUIntBE(crc & 0xffffff, 0, 3);
  return three.toString('base64');
}
