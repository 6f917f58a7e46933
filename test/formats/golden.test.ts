// Golden envelopes: what was stored once opens for ever, and the same nonce gives the same bytes.
import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { commitmentOf } from '../../src/crypto/data-key.js';
import { encodeArmour } from '../../src/crypto/envelope.js';
import { createRootKey } from '../../src/crypto/root-key.js';
import { keyturnFormat } from '../../src/formats/keyturn.js';
import { hex } from '../crypto/vector-files.js';
import { cryptoPaths } from '../support/crypto-paths.js';
import { goldenFile, goldenKeys, goldenValues } from './golden.js';

describe.each(goldenValues)('golden envelope: $name', ({ key, cell, storage, plaintext, nonce, stored }) => {
  test('names its key without being opened', () => {
    expect(keyturnFormat.nameKey(stored)).toBe(key.id);
  });

  test.each(cryptoPaths)('decrypts to its plaintext [$path]', ({ format }) => {
    expect(format.decrypt(stored, cell, key)).toEqual(plaintext);
  });

  test.each(cryptoPaths)('is made again byte for byte from its plaintext and nonce [$path]', ({ createCipher }) => {
    const envelopes = createCipher(key).encrypt([{ plaintext, fields: cell }], [nonce]);
    expect(storage === 'text' ? envelopes.map(encodeArmour) : envelopes).toEqual([stored]);
  });

  test('has the length that was foretold', () => {
    expect(stored).toHaveLength(keyturnFormat.storedLength(plaintext.length, key.algorithm, storage));
  });
});

test('golden envelopes cover each algorithm in each storage, row bound and column bound', () => {
  const seen = goldenValues.map(
    ({ key, storage, cell }) => `${key.algorithm}/${storage}/${cell.row === undefined ? 'column' : 'row'}`,
  );
  expect([...new Set(seen)].sort()).toEqual([
    'aes-256-gcm/bytes/column',
    'aes-256-gcm/bytes/row',
    'aes-256-gcm/text/column',
    'aes-256-gcm/text/row',
    'xaes-256-gcm/bytes/column',
    'xaes-256-gcm/bytes/row',
    'xaes-256-gcm/text/column',
    'xaes-256-gcm/text/row',
  ]);
});

test('the golden root key opens its token and unwraps every golden data key', async () => {
  const root = createRootKey(hex(goldenFile.rootKey), goldenFile.cluster);
  expect(root.fingerprint).toEqual(hex(goldenFile.fingerprint));
  expect(await root.opensToken(goldenFile.rootId, hex(goldenFile.token))).toBe(true);
  for (const { identity, dataKey, commitment, wrap } of goldenKeys) {
    expect(commitmentOf(identity, createSecretKey(dataKey))).toEqual(commitment);
    const key = await root.unwrap(goldenFile.rootId, identity, commitment, wrap);
    expect(key.material.export()).toEqual(dataKey);
  }
  expect(goldenKeys).toHaveLength(2);
});
