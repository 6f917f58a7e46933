// XAES-256-GCM against the C2SP specification: subkeys, both single vectors, the run of 10 000.
import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { createXaesKey } from '../../src/crypto/xaes-gcm.js';
import { hex, readJsonVectors } from './vector-files.js';
import { cryptoPaths } from '../support/crypto-paths.js';
import { accumulatedXaesHash } from './xaes-accumulated.js';

interface XaesFile {
  readonly vectors: readonly {
    readonly comment: string;
    readonly key: string;
    readonly nonce_ascii: string;
    readonly Kx: string;
    readonly plaintext_ascii: string;
    readonly aad_ascii: string;
    readonly ciphertext_and_tag: string;
  }[];
  readonly accumulated: { readonly expected: Readonly<Record<string, string>> };
}

const file = readJsonVectors<XaesFile>('xaes/xaes_256_gcm_vectors.json');

describe.each(file.vectors)('XAES-256-GCM, $comment', (vector) => {
  const nonce = Buffer.from(vector.nonce_ascii);
  const associatedData = Buffer.from(vector.aad_ascii);
  const plaintext = Buffer.from(vector.plaintext_ascii);
  const output = hex(vector.ciphertext_and_tag);
  const expected = { ciphertext: output.subarray(0, -16), tag: output.subarray(-16) };

  test('the subkey is the CMAC of the specification', () => {
    const key = createXaesKey(createSecretKey(hex(vector.key)));
    expect(key.derive([nonce]).uses).toEqual([{ key: hex(vector.Kx), nonce: nonce.subarray(12) }]);
  });

  test.each(cryptoPaths)('encrypting gives the bytes of the specification [$path]', ({ openAead }) => {
    expect(openAead('xaes-256-gcm', hex(vector.key)).encrypt(nonce, associatedData, plaintext)).toEqual(expected);
  });

  test.each(cryptoPaths)('decrypting gives the plaintext of the specification [$path]', ({ openAead }) => {
    expect(openAead('xaes-256-gcm', hex(vector.key)).decrypt(nonce, associatedData, expected)).toEqual(plaintext);
  });

  test.each(cryptoPaths)('a changed bit anywhere in nonce, data or output does not decrypt [$path]', ({ openAead }) => {
    const aead = openAead('xaes-256-gcm', hex(vector.key));
    for (const original of [nonce, associatedData, expected.ciphertext, expected.tag]) {
      for (let bit = 0; bit < original.length * 8; bit++) {
        const flipped = Buffer.from(original);
        flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
        const pick = (part: Buffer): Buffer => (part === original ? flipped : part);
        const changed = { ciphertext: pick(expected.ciphertext), tag: pick(expected.tag) };
        expect(aead.decrypt(pick(nonce), pick(associatedData), changed)).toBeUndefined();
      }
    }
  });
});

test('subkeys derived together are those of each nonce alone, and are zeroed when they are released', () => {
  const key = createXaesKey(createSecretKey(Buffer.alloc(32, 7)));
  const nonces = Array.from({ length: 33 }, (_, at) => Buffer.alloc(24, at));
  const together = key.derive(nonces);
  expect(together.uses).toEqual(nonces.map((nonce) => key.derive([nonce]).uses[0]));
  together.release();
  for (const use of together.uses) expect(use.key).toEqual(Buffer.alloc(32));
});

test.each(cryptoPaths)('10 000 accumulated XAES rounds give the hash of the specification [$path]', (path) => {
  expect(accumulatedXaesHash(path, 10_000)).toBe(file.accumulated.expected['10000']);
});

test('XAES keys that are not 32 bytes and nonces that are not 24 are refused', () => {
  for (const length of [16, 24, 31, 33, 64]) {
    expect(() => createXaesKey(createSecretKey(Buffer.alloc(length)))).toThrow(RangeError);
  }
  const key = createXaesKey(createSecretKey(Buffer.alloc(32)));
  for (const length of [0, 12, 23, 25]) {
    expect(() => key.derive([Buffer.alloc(24), Buffer.alloc(length)])).toThrow(
      expect.objectContaining({ code: 'VALUE_INVALID', message: `an XAES nonce has 24 bytes, got ${length}` }),
    );
  }
});
