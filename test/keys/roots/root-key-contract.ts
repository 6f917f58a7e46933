// The contract of every root key, wherever its bytes are kept. A provider's test calls this with a way to open one.
import { createSecretKey } from 'node:crypto';
import { format, inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { commitmentOf, generateDataKey } from '../../../src/crypto/data-key.js';
import type { DataKeyIdentity } from '../../../src/crypto/value-key.js';
import type { RootKey } from '../../../src/keys/roots/root-key.js';

export const exampleCluster = '00112233-4455-6677-8899-aabbccddeeff';
const otherCluster = '00112233-4455-6677-8899-aabbccddeefe';

/** Not random, but random-looking: no provider may refuse it. */
export const exampleRootBytes = Buffer.from('9f3c5ab81e7d02c64fb1e8937ad560224cc19bf0683e17d5ab40928ef6711d3a', 'hex');
const otherRootBytes = Buffer.from('17d5ab40928ef6711d3a9f3c5ab81e7d02c64fb1e8937ad560224cc19bf0683e', 'hex');

const identity: DataKeyIdentity = {
  id: 7,
  algorithm: 'xaes-256-gcm',
  purpose: 1,
  cluster: exampleCluster,
  scope: '11111111-1111-4111-8111-111111111111',
};

export function describeRootKeyContract(
  name: string,
  open: (bytes: Buffer, cluster: string) => Promise<RootKey>,
): void {
  describe(`contract of root keys: ${name}`, () => {
    const openExample = (): Promise<RootKey> => open(exampleRootBytes, exampleCluster);

    test('a wrapped data key unwraps to the same key', async () => {
      const material = generateDataKey();
      const blob = await (await openExample()).wrap(1, identity, material);
      const key = await (await openExample()).unwrap(1, identity, commitmentOf(identity, material), blob);
      expect(key.material.export()).toEqual(material.export());
      expect([key.id, key.algorithm]).toEqual([7, 'xaes-256-gcm']);
      expect(key.commitment).toEqual(commitmentOf(identity, material));
    });

    test('wrapping one data key twice gives two wraps, neither showing the key (I7)', async () => {
      const root = await openExample();
      const material = generateDataKey();
      const [first, second] = [await root.wrap(1, identity, material), await root.wrap(1, identity, material)];
      expect(first).not.toEqual(second);
      expect(first.includes(material.export().subarray(0, 8))).toBe(false);
    });

    test('a wrap opens for no other identity, root number, commitment or root key (I2)', async () => {
      const root = await openExample();
      const material = generateDataKey();
      const commitment = commitmentOf(identity, material);
      const blob = await root.wrap(1, identity, material);
      const changed: Partial<DataKeyIdentity>[] = [
        { id: 8 },
        { algorithm: 'aes-256-gcm' },
        { purpose: 2 },
        { cluster: otherCluster },
        { scope: otherCluster },
      ];
      const [otherRoot, otherPlace] = [
        await open(otherRootBytes, exampleCluster),
        await open(exampleRootBytes, otherCluster),
      ];
      const results = await Promise.allSettled([
        ...changed.flatMap((part) => {
          const other = { ...identity, ...part };
          return [root.unwrap(1, other, commitment, blob), root.unwrap(1, other, commitmentOf(other, material), blob)];
        }),
        root.unwrap(2, identity, commitment, blob),
        root.unwrap(1, identity, commitmentOf(identity, generateDataKey()), blob),
        root.unwrap(1, identity, commitment.subarray(0, 4), blob),
        root.unwrap(1, identity, Buffer.alloc(0), blob),
        otherRoot.unwrap(1, identity, commitment, blob),
        otherPlace.unwrap(1, identity, commitment, blob),
      ]);
      expect(results).toHaveLength(16);
      for (const result of results) {
        expect(result).toMatchObject({ status: 'rejected', reason: { code: 'UNWRAP_FAILED' } });
      }
    });

    test('an altered wrap is refused: every bit, every length', async () => {
      const root = await openExample();
      const material = generateDataKey();
      const commitment = commitmentOf(identity, material);
      const blob = await root.wrap(1, identity, material);
      const altered: Buffer[] = Array.from({ length: blob.length * 8 }, (_, bit) => {
        const copy = Buffer.from(blob);
        copy.writeUInt8(copy.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3);
        return copy;
      });
      for (let kept = 0; kept < blob.length; kept++) altered.push(blob.subarray(0, kept));
      for (const more of [1, 16, 1_000_000]) altered.push(Buffer.concat([blob, Buffer.alloc(more)]));
      for (const one of altered) {
        await expect(root.unwrap(1, identity, commitment, one)).rejects.toMatchObject({ code: 'UNWRAP_FAILED' });
      }
    });

    test('what is no data key cannot be wrapped', async () => {
      const root = await openExample();
      for (const length of [16, 31, 33]) {
        await expect(root.wrap(1, identity, createSecretKey(Buffer.alloc(length)))).rejects.toMatchObject({
          code: 'VALUE_INVALID',
        });
      }
      for (const rootId of [0, -1, 1.5, 2 ** 32]) {
        await expect(root.wrap(rootId, identity, generateDataKey())).rejects.toMatchObject({ code: 'VALUE_INVALID' });
      }
    });

    test('the verification token opens under its root key and number alone', async () => {
      const root = await openExample();
      const token = await root.createToken(1);
      expect(await (await openExample()).opensToken(1, token)).toBe(true);
      expect(await root.opensToken(2, token)).toBe(false);
      expect(await (await open(otherRootBytes, exampleCluster)).opensToken(1, token)).toBe(false);
      expect(await (await open(exampleRootBytes, otherCluster)).opensToken(1, token)).toBe(false);
      for (let at = 0; at < token.length; at++) {
        const copy = Buffer.from(token);
        copy.writeUInt8(copy.readUInt8(at) ^ 1, at);
        expect(await root.opensToken(1, copy)).toBe(false);
        expect(await root.opensToken(1, token.subarray(0, at))).toBe(false);
      }
    });

    test('the fingerprint tells keys and clusters apart and stays the same for one', async () => {
      const root = await openExample();
      expect(root.fingerprint).toHaveLength(32);
      expect(root.shortFingerprint).toBe(root.fingerprint.toString('hex').slice(0, 16));
      expect((await openExample()).fingerprint).toEqual(root.fingerprint);
      expect((await open(otherRootBytes, exampleCluster)).fingerprint).not.toEqual(root.fingerprint);
      expect((await open(exampleRootBytes, otherCluster)).fingerprint).not.toEqual(root.fingerprint);
    });

    test('a root key prints its short fingerprint and nothing of its bytes (I7)', async () => {
      const root = await openExample();
      const printed = `${inspect(root, { depth: 9, showHidden: true })} ${format('%s %o %j', root, root, root)}`;
      expect(printed).toContain(root.shortFingerprint);
      const bytes = inspect(exampleRootBytes).slice(8, 32);
      for (const part of [exampleRootBytes.toString('hex', 0, 8), exampleRootBytes.toString('base64', 0, 6), bytes]) {
        expect(printed).not.toContain(part);
      }
    });
  });
}
