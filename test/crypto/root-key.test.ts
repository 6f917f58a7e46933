// A root key in memory: it passes the contract of all root keys, and takes its bytes over.
import { describe, expect, test } from 'vitest';
import { createRootKey } from '../../src/crypto/root-key.js';
import { describeRootKeyContract, exampleCluster } from '../keys/roots/root-key-contract.js';

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
