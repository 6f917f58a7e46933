// Root keys in Vault's Transit engine, against a server that speaks its protocol.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { generateDataKey } from '../../../src/crypto/data-key.js';
import { openRootKey } from '../../../src/keys/roots/open-root-key.js';
import { startFakeTransit, transitToken, type FakeTransit } from '../../support/fake-transit.js';
import { describeRemoteContract } from './remote-contract.js';
import { describeRootKeyContract, exampleCluster, exampleRootBytes } from './root-key-contract.js';

let vault: FakeTransit;
let folder: string;

beforeAll(async () => {
  vault = await startFakeTransit();
  folder = await mkdtemp(join(tmpdir(), 'keyturn-vault-'));
});
afterAll(async () => {
  await vault.close();
  await rm(folder, { recursive: true });
});

const env = (changes: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv => ({
  VAULT_ADDR: vault.url,
  VAULT_TOKEN: transitToken,
  ...changes,
});

describeRootKeyContract('vault', (bytes, cluster) => {
  vault.fail(undefined);
  return openRootKey(`vault:transit/${vault.addKey(bytes)}`, { cluster, env: env() });
});

describeRemoteContract('vault', {
  server: () => vault,
  open: (timing) =>
    openRootKey(`vault:transit/${vault.addKey(exampleRootBytes)}`, { cluster: exampleCluster, env: env(), timing }),
  throttled: { status: 429, body: { errors: ['rate limit quota exceeded'] }, headers: { 'retry-after': '1' } },
  revoked: { status: 403, body: { errors: ['permission denied'] } },
  broken: { status: 503, body: { errors: ['Vault is sealed'] } },
});

describe('root keys in Vault', () => {
  const open = (location: string, changes: NodeJS.ProcessEnv = {}): Promise<unknown> =>
    openRootKey(`vault:${location}`, { cluster: exampleCluster, env: env(changes) });

  test('every field that a wrap is bound to goes along as associated data, and nothing secret', async () => {
    vault.fail(undefined);
    const root = await openRootKey(`vault:transit/${vault.addKey(exampleRootBytes)}`, {
      cluster: exampleCluster,
      env: env(),
    });
    await root.wrap(
      3,
      { id: 7, algorithm: 'xaes-256-gcm', purpose: 1, cluster: exampleCluster, scope: exampleCluster },
      generateDataKey(),
    );
    const asked = vault.requests.at(-1);
    expect(asked?.path).toBe('/v1/transit/encrypt/root-1');
    const context = JSON.parse(
      Buffer.from(String(asked?.body['associated_data']), 'base64').toString('utf8'),
    ) as object;
    expect(context).toEqual({
      'keyturn:v1': 'wrap',
      'keyturn:root': '3',
      'keyturn:fingerprint': root.fingerprint.toString('hex'),
      'keyturn:key': '7',
      'keyturn:algorithm': 'xaes-256-gcm',
      'keyturn:purpose': '1',
      'keyturn:cluster': exampleCluster,
      'keyturn:scope': exampleCluster,
      'keyturn:commitment': expect.stringMatching(/^[0-9a-f]{64}$/) as string,
    });
  });

  test('the token may stand in a file, which is read for every call', async () => {
    const path = join(folder, 'token');
    await writeFile(path, 'hvs.expired\n');
    const root = (await open(`transit/${vault.addKey(exampleRootBytes)}`, {
      VAULT_TOKEN: '',
      VAULT_TOKEN_FILE: path,
    })) as { createToken(id: number): Promise<Buffer> };
    await expect(root.createToken(1)).rejects.toMatchObject({ code: 'ROOT_KEY_REFUSED' });
    await writeFile(path, `${transitToken}\n`);
    await expect(root.createToken(1)).resolves.toBeInstanceOf(Buffer);
  });

  test.each(['http://vault.example:8200', 'ftp://127.0.0.1', 'vault.example:8200'])(
    'an address without TLS is refused: %s',
    async (address) => {
      await expect(open('transit/key', { VAULT_ADDR: address })).rejects.toMatchObject({ code: 'ROOT_KEY_REFUSED' });
    },
  );

  test.each([
    ['VAULT_ADDR', { VAULT_ADDR: '' }, 'VAULT_ADDR is not set'],
    ['the token', { VAULT_TOKEN: '' }, 'neither VAULT_TOKEN nor VAULT_TOKEN_FILE is set'],
    ['the file of the token', { VAULT_TOKEN: '', VAULT_TOKEN_FILE: '/nowhere' }, 'cannot be read'],
  ])('without %s it is unavailable, and the error says what to set', async (_, changes, said) => {
    await expect(open('transit/key', changes)).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
      message: expect.stringContaining(said) as string,
    });
  });

  test.each(['', 'key', 'transit/', '/key', 'transit/../sys/seal', 'transit/key?x', 'transit/a b', 'transit//key'])(
    'vault:%s names no key and is refused',
    async (location) => {
      await expect(open(location)).rejects.toMatchObject({ code: 'ROOT_KEY_REFUSED' });
    },
  );

  test('a mount that is not there, and a key that is not there, are refused with what to look at', async () => {
    vault.fail(undefined);
    for (const [location, status] of [
      ['elsewhere/root-1', '404'],
      ['transit/nothing', '400'],
    ] as const) {
      const root = (await open(location)) as { createToken(id: number): Promise<Buffer> };
      await expect(root.createToken(1)).rejects.toMatchObject({
        code: 'ROOT_KEY_REFUSED',
        message: expect.stringContaining(`Vault answered ${status}`) as string,
      });
    }
  });
});
