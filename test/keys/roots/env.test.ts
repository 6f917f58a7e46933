// Root keys from the environment, and choosing a provider by URI.
import { describe, expect, test } from 'vitest';
import { openRootKey, rootKeySchemes } from '../../../src/keys/roots/open-root-key.js';
import { describeRootKeyContract, exampleCluster, exampleRootBytes } from './root-key-contract.js';

const good = exampleRootBytes.toString('hex');

function openFrom(value: string | undefined): Promise<unknown> {
  return openRootKey('env:ROOT', { cluster: exampleCluster, env: { ROOT: value } });
}

describeRootKeyContract('env', (bytes, cluster) =>
  openRootKey('env:KEYTURN_ROOT_KEY', { cluster, env: { KEYTURN_ROOT_KEY: bytes.toString('hex') } }),
);

describe('root keys from the environment', () => {
  test('the variable is gone once read, others stay', async () => {
    const env: NodeJS.ProcessEnv = { ROOT: good, OTHER: 'kept' };
    await openRootKey('env:ROOT', { cluster: exampleCluster, env });
    expect(env).toEqual({ OTHER: 'kept' });
  });

  test('the variable is gone also when its value is refused', async () => {
    const env: NodeJS.ProcessEnv = { ROOT: 'no key' };
    await expect(openRootKey('env:ROOT', { cluster: exampleCluster, env })).rejects.toMatchObject({
      code: 'ROOT_KEY_REFUSED',
    });
    expect(env).toEqual({});
  });

  test('capitals name the same key', async () => {
    const [lower, upper] = await Promise.all([good, good.toUpperCase()].map(openFrom));
    expect(upper).toMatchObject({ fingerprint: (lower as { fingerprint: Buffer }).fingerprint });
  });

  test.each([undefined, ''])('a variable that is %j is unavailable, and the error says what to set', async (value) => {
    await expect(openFrom(value)).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
      message: 'the root key at env:ROOT cannot be read: the variable is not set; set it to 64 hexadecimal characters',
    });
  });

  test.each([
    ['63 digits', good.slice(1), 'got 63'],
    ['65 digits', `${good}0`, 'got 65'],
    ['a newline behind', `${good}\n`, 'got 65'],
    ['a 0x before', `0x${good.slice(2)}`, 'character 2 is none'],
    ['a letter beyond f', `${good.slice(0, 40)}g${good.slice(41)}`, 'character 41 is none'],
    ['a letter that is a digit modulo 256', `${good.slice(0, 62)}\u0130`, 'character 63 is none'],
  ])('%s is refused with its length or place, never its value (I7)', async (_, value, seen) => {
    const error: unknown = await openFrom(value).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: expect.stringContaining(`expected 64 hexadecimal characters, `) as unknown,
    });
    expect(String(error)).toContain(seen);
    expect(String(error)).not.toContain(value.slice(2, 10));
  });
});

describe('weak root keys', () => {
  const counting = (start: number, step: number): string =>
    Buffer.from(Array.from({ length: 32 }, (_, at) => (start + at * step) & 0xff)).toString('hex');

  test.each([
    ['all zero', '00'.repeat(32), 'repeats a pattern'],
    ['one byte repeated', 'a7'.repeat(32), 'repeats a pattern'],
    ['two bytes repeated', 'a75c'.repeat(16), 'repeats a pattern'],
    ['three bytes repeated and cut', '9f3c5a'.repeat(11).slice(0, 64), 'repeats a pattern'],
    ['eight bytes repeated', '9f3c5ab81e7d02c6'.repeat(4), 'repeats a pattern'],
    ['the example key of the format page', counting(0, 1), 'count up or down'],
    ['the data key of the format page', counting(0x20, 1), 'count up or down'],
    ['bytes that count down over zero', counting(16, -1), 'count up or down'],
    ['bytes in steps of seven', counting(3, 7), 'count up or down'],
    ['a passphrase', Buffer.from('correct horse battery staple 123').toString('hex'), 'printable text'],
  ])('%s is refused with the way to make a new one', async (_, value, reason) => {
    const error: unknown = await openFrom(value).catch((thrown: unknown) => thrown);
    expect(error).toMatchObject({ code: 'ROOT_KEY_REFUSED' });
    expect(String(error)).toContain(reason);
    expect(String(error)).toContain('openssl rand -hex 32');
    expect(String(error)).not.toContain(value.slice(0, 16));
  });

  test('a repeat of nine bytes is beyond what is looked for, and accepted', async () => {
    await expect(openFrom('9f3c5ab81e7d02c64f'.repeat(4).slice(0, 64))).resolves.toHaveProperty('fingerprint');
  });
});

describe('root key URIs', () => {
  const context = { cluster: exampleCluster, env: {} };

  test('an unknown scheme is refused, naming the known ones', async () => {
    await expect(openRootKey('tpm:root', context)).rejects.toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: 'root key scheme tpm: is unknown, expected one of env:, file:, vault:, aws-kms:, pkcs11:',
    });
    expect(rootKeySchemes).toEqual(['env', 'file', 'vault', 'aws-kms', 'pkcs11']);
  });

  test.each(['', good, 'ENV:ROOT', 'env', ':ROOT', 'my key: 1', `${good}:x`])(
    '%j has no scheme and is refused without being echoed (I7)',
    async (uri) => {
      await expect(openRootKey(uri, context)).rejects.toMatchObject({
        code: 'ROOT_KEY_REFUSED',
        message: 'expected a root key URI that begins with one of env:, file:, vault:, aws-kms:, pkcs11:',
      });
    },
  );

  test.each([`env:${good}`, `file:${good}`, `file:/etc/${good.toUpperCase()}`])(
    'a key in the place of a name is refused and not echoed: case %#',
    async (uri) => {
      const error: unknown = await openRootKey(uri, context).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({ code: 'ROOT_KEY_REFUSED' });
      expect(String(error).toLowerCase()).not.toContain(good.slice(0, 8));
      expect(String(error)).toContain('looks like a key');
    },
  );

  test.each(['env:', 'env:A B', 'env:1A', 'env:A-B', 'env:A=B'])('%j names no variable and is refused', async (uri) => {
    await expect(openRootKey(uri, context)).rejects.toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: 'the root key at env: is refused: expected the name of an environment variable after env:',
    });
  });
});
