// Header and armour: what is written is what parses, and nothing else does.
import { describe, expect, test } from 'vitest';
import {
  armouredLength,
  decodeArmour,
  encodeArmour,
  encodeHeader,
  envelopeBytes,
  maxPlaintextBytes,
  parseArmouredHeader,
  parseHeader,
} from '../../src/crypto/envelope.js';

describe('headers', () => {
  const header = { algorithm: 'aes-256-gcm', keyId: 0xffff_ffff, keyCheck: 0x8000_0001 } as const;

  test('a header is twelve bytes and parses to itself', () => {
    expect(encodeHeader(header).toString('hex')).toBe('4b540101ffffffff80000001');
    expect(parseHeader(encodeHeader(header))).toEqual(header);
    expect(parseArmouredHeader(encodeArmour(encodeHeader(header)))).toEqual(header);
  });

  test('of all values of the first four bytes only those of algorithms 1 and 2 parse', () => {
    const accepted: string[] = [];
    for (let at = 0; at < 4; at++) {
      for (let value = 0; value < 256; value++) {
        const bytes = encodeHeader(header);
        bytes[at] = value;
        if (parseHeader(bytes) !== undefined) accepted.push(bytes.toString('hex', 0, 4));
      }
    }
    expect([...new Set(accepted)].sort()).toEqual(['4b540101', '4b540102']);
  });
});

test('an envelope is 40 or 52 bytes longer than its plaintext', () => {
  expect([envelopeBytes(0, 'aes-256-gcm'), envelopeBytes(100, 'xaes-256-gcm')]).toEqual([40, 152]);
});

test('armour has the length foretold, and over the maximum it is not decoded', () => {
  for (let length = 0; length < 100; length++) {
    expect(encodeArmour(Buffer.alloc(length, 255))).toHaveLength(armouredLength(length));
  }
  const largest = Buffer.alloc(envelopeBytes(maxPlaintextBytes, 'xaes-256-gcm'));
  expect(decodeArmour(encodeArmour(largest))?.equals(largest)).toBe(true); // toEqual takes seconds on a megabyte
  expect(decodeArmour(encodeArmour(Buffer.concat([largest, Buffer.alloc(3)])))).toBeUndefined();
});
