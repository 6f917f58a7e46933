// Data keys: what a commitment covers, and that a key never prints itself.
import { createPublicKey, createSecretKey, generateKeyPairSync } from 'node:crypto';
import { format, inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { commitmentOf, createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import type { DataKeyIdentity } from '../../src/crypto/value-key.js';

const identity: DataKeyIdentity = {
  id: 7,
  algorithm: 'xaes-256-gcm',
  purpose: 1,
  cluster: '00112233-4455-6677-8899-aabbccddeeff',
  scope: '11111111-1111-4111-8111-111111111111',
};

test('a generated data key has 32 bytes and is never the same twice', () => {
  const made = new Set(Array.from({ length: 100 }, () => generateDataKey().export().toString('hex')));
  expect(made.size).toBe(100);
  expect([...made].every((hex) => hex.length === 64 && hex !== '0'.repeat(64))).toBe(true);
});

describe('commitments', () => {
  const material = createSecretKey(Buffer.alloc(32, 7));

  test('the same key with the same identity has the same commitment', () => {
    expect(commitmentOf(identity, material)).toEqual(
      commitmentOf({ ...identity }, createSecretKey(Buffer.alloc(32, 7))),
    );
  });

  test.each<[string, DataKeyIdentity]>([
    ['id', { ...identity, id: 8 }],
    ['algorithm', { ...identity, algorithm: 'aes-256-gcm' }],
    ['purpose', { ...identity, purpose: 2 }],
    ['cluster', { ...identity, cluster: '00112233-4455-6677-8899-aabbccddeefe' }],
    ['scope', { ...identity, scope: '11111111-1111-4111-8111-111111111112' }],
  ])('another %s gives another commitment (I2)', (_, changed) => {
    expect(commitmentOf(changed, material)).not.toEqual(commitmentOf(identity, material));
  });

  test('keys that are not 32 secret bytes have no commitment', () => {
    for (const length of [1, 16, 31, 33, 64]) {
      expect(() => commitmentOf(identity, createSecretKey(Buffer.alloc(length)))).toThrow(
        expect.objectContaining({
          code: 'VALUE_INVALID',
          message: `a data key is a secret key of 32 bytes, got a secret key of ${length}`,
        }),
      );
    }
    const publicKey = createPublicKey(generateKeyPairSync('ed25519').privateKey);
    expect(() => createValueKey(identity, publicKey)).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
  });

  test('ids outside 1 to 2^32 - 1 are refused', () => {
    for (const id of [0, -1, 1.5, 2 ** 32, Number.NaN]) {
      expect(() => commitmentOf({ ...identity, id }, material)).toThrow(
        expect.objectContaining({ code: 'VALUE_INVALID' }),
      );
    }
  });
});

test('a data key prints its id and algorithm, whatever prints it (I7)', () => {
  const bytes = Buffer.from('a1b2c3d4'.repeat(8), 'hex');
  const key = createValueKey(identity, createSecretKey(bytes));
  const printed = [
    inspect(key, { depth: 9, showHidden: true }),
    inspect({ key }, { depth: 9, showHidden: true }),
    format('%s %o %O %j', key, key, key, key),
    JSON.stringify({ key }),
    `${inspect(key.material, { showHidden: true })} ${JSON.stringify(key.material)}`,
  ].join('\n');
  expect(JSON.stringify(key)).toBe('{"id":7,"algorithm":"xaes-256-gcm"}');
  expect(inspect(key)).toBe('data key 7 (xaes-256-gcm)');
  const parts = [bytes, key.commitment].flatMap((secret) => [
    secret.toString('hex', 0, 8),
    secret.toString('base64', 0, 6),
  ]);
  for (const part of [...parts, inspect(bytes).slice(8, 40)]) expect(printed).not.toContain(part);
});
