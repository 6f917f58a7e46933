// A root key in memory: it passes the contract of all root keys, and takes its bytes over.
import { describe, expect, test } from 'vitest';
import { encryptAesGcm } from '../../src/crypto/aes-gcm.js';
import { commitmentOf, generateDataKey } from '../../src/crypto/data-key.js';
import { deriveKey } from '../../src/crypto/key-derivation.js';
import { createRootKey } from '../../src/crypto/root-key.js';
import { uuidToBytes } from '../../src/crypto/uuid.js';
import type { DataKeyIdentity } from '../../src/crypto/value-key.js';
import { describeRootKeyContract, exampleCluster, exampleRootBytes } from '../keys/roots/root-key-contract.js';

describeRootKeyContract('local root key', async (bytes, cluster) => createRootKey(Buffer.from(bytes), cluster));

describe('bytes of a root key', () => {
  test('are zeroed once the key is made', () => {
    const bytes = Buffer.alloc(32, 7);
    createRootKey(bytes, exampleCluster);
    expect(bytes).toEqual(Buffer.alloc(32));
  });

  test('are zeroed also when the key is refused', () => {
    const [short, badCluster] = [Buffer.alloc(31, 7), Buffer.alloc(32, 7)];
    expect(() => createRootKey(short, exampleCluster)).toThrow(
      expect.objectContaining({ code: 'ROOT_KEY_REFUSED', message: 'a root key has 32 bytes, got 31' }),
    );
    expect(() => createRootKey(badCluster, 'nowhere')).toThrow(expect.objectContaining({ code: 'VALUE_INVALID' }));
    expect(short).toEqual(Buffer.alloc(31));
    expect(badCluster).toEqual(Buffer.alloc(32));
  });
});

describe('a wrap that authenticates but lies', () => {
  const identity: DataKeyIdentity = {
    id: 7,
    algorithm: 'xaes-256-gcm',
    purpose: 1,
    cluster: exampleCluster,
    scope: '11111111-1111-4111-8111-111111111111',
  };

  /** What a holder of the root key could make: the wrap of `plaintext` under a commitment of their choice. */
  function forgeWrap(plaintext: Buffer, commitment: Buffer): Buffer {
    const header = Buffer.from('4b570101', 'hex');
    const nonce = Buffer.alloc(12, 5);
    const wrapKey = deriveKey(exampleRootBytes, uuidToBytes(exampleCluster), 'keyturn/v1/wrap');
    const bound = Buffer.concat([
      Buffer.from('keyturn/v1/wrap\0'),
      header,
      Buffer.from('00000001' + '00000007' + '02' + '01', 'hex'),
      uuidToBytes(identity.cluster),
      uuidToBytes(identity.scope),
      commitment,
    ]);
    const { ciphertext, tag } = encryptAesGcm(wrapKey, nonce, bound, plaintext);
    return Buffer.concat([header, nonce, ciphertext, tag]);
  }

  const root = createRootKey(Buffer.from(exampleRootBytes), exampleCluster);
  const material = generateDataKey();
  const bytes = material.export();
  const commitment = commitmentOf(identity, material);

  test('with the right commitment it opens, so the refusals below have one cause each', async () => {
    const key = await root.unwrap(1, identity, commitment, forgeWrap(bytes, commitment));
    expect(key.material.export()).toEqual(bytes);
  });

  test('another key under the commitment of this one is refused', async () => {
    const forged = forgeWrap(generateDataKey().export(), commitment);
    await expect(root.unwrap(1, identity, commitment, forged)).rejects.toMatchObject({
      code: 'UNWRAP_FAILED',
      message: 'data key 7 cannot be unwrapped: the unwrapped key does not match its commitment',
    });
  });

  test('a shortened commitment is refused although the wrap is bound to it', async () => {
    for (const length of [0, 4, 31]) {
      const short = commitment.subarray(0, length);
      await expect(root.unwrap(1, identity, short, forgeWrap(bytes, short))).rejects.toMatchObject({
        code: 'UNWRAP_FAILED',
        message: `data key 7 cannot be unwrapped: its commitment has ${length} bytes instead of 32`,
      });
    }
  });
});
