// Root keys in a PKCS#11 token: the built provider, its child process and graphene-pk11, on a SoftHSM token of this file's own.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { openRootKey } from '../../../src/keys/roots/open-root-key.js';
import type { CallTiming } from '../../../src/keys/roots/remote-call.js';
import { ckr, startFaultyToken, type FaultyToken } from '../../support/faulty-token.js';
import { install, type Installed } from '../../support/installed.js';
import { missingForSoftHsm, startSoftHsm, tokenPin, type SoftHsm } from '../../support/softhsm.js';
import { describeRemoteContract } from './remote-contract.js';
import { describeRootKeyContract, exampleCluster, exampleRootBytes } from './root-key-contract.js';

describe.skipIf(missingForSoftHsm() !== undefined)('root keys in a PKCS#11 token', () => {
  let hsm: SoftHsm;
  let token: FaultyToken;
  let installed: Installed;
  let open: typeof openRootKey;
  const labels = new Map<string, string>();

  beforeAll(async () => {
    hsm = startSoftHsm();
    token = startFaultyToken();
    installed = install({ pkcs11: { insteadOf: token.module } });
    ({ openRootKey: open } = await installed.load<{ openRootKey: typeof openRootKey }>('keys/roots/open-root-key.js'));
  });
  afterAll(async () => {
    installed.remove();
    await token.close();
    hsm.close();
  });

  /** No bytes get into the token or out of it: the same bytes stand for the same generated key. */
  const labelOf = (bytes: Buffer): string => {
    const hex = bytes.toString('hex');
    const label = labels.get(hex) ?? `root ${labels.size + 1}`;
    if (!labels.has(hex)) hsm.addKey(label);
    labels.set(hex, label);
    return label;
  };
  const openKey = (uri: string, timing?: CallTiming, cluster = exampleCluster): ReturnType<typeof openRootKey> =>
    open(uri, {
      cluster,
      env: { ...hsm.env, KEYTURN_PKCS11_PIN: tokenPin },
      ...(timing === undefined ? {} : { timing }),
    });

  describeRootKeyContract('pkcs11', (bytes, cluster) => {
    token.fail(undefined);
    return openKey(hsm.uri(labelOf(bytes)), undefined, cluster);
  });

  describeRemoteContract('pkcs11', {
    server: () => token,
    open: (timing) => openKey(hsm.uri(labelOf(exampleRootBytes)), timing),
    throttled: ckr('CKR_SESSION_COUNT'),
    revoked: ckr('CKR_KEY_FUNCTION_NOT_PERMITTED'),
    broken: ckr('CKR_DEVICE_ERROR'),
  });

  test.each([
    ['extractable', { extractable: true }, 'can be read out'],
    ['not sensitive', { sensitive: false }, 'can be read out'],
    ['shorter than 256 bits', { bytes: 16 }, 'expected an AES key of 256 bits'],
  ])('a key that is %s is refused', async (label, traits, words) => {
    hsm.addKey(label, traits);
    await expect(openKey(hsm.uri(label))).rejects.toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: expect.stringContaining(words) as string,
    });
  });

  test('a key that is not there, one that is there twice, and a token that is not there are told apart', async () => {
    await expect(openKey(hsm.uri('nobody'))).rejects.toMatchObject({ code: 'ROOT_KEY_REFUSED' });
    hsm.addKey('twins');
    hsm.addKey('twins');
    await expect(openKey(hsm.uri('twins'))).rejects.toMatchObject({
      code: 'ROOT_KEY_REFUSED',
      message: expect.stringContaining('add id=') as string,
    });
    const impatient = { attempts: 1 };
    await expect(openKey(hsm.uri('root 1', 'another token'), impatient)).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
      message: expect.stringContaining('there is no such token') as string,
    });
  });

  test('a root key whose key was deleted from the token is refused, and what is held goes on', async () => {
    token.fail(undefined);
    hsm.addKey('short-lived');
    const root = await openKey(hsm.uri('short-lived'));
    const sealed = await root.createToken(1);
    hsm.removeKey('short-lived');
    await expect(root.opensToken(1, sealed)).rejects.toMatchObject({ code: 'ROOT_KEY_REFUSED' });
  });

  test('a wrong PIN is sent once, and neither it nor the right one is shown (I7)', async () => {
    const pinFile = join(token.url, 'pin');
    writeFileSync(pinFile, 'wrong-pin\n');
    const uri = `${hsm.uri(labelOf(exampleRootBytes))}&pin-source=file:${pinFile}`;
    for (let attempt = 0; attempt < 3; attempt++) {
      const error: unknown = await openKey(uri).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({
        code: 'ROOT_KEY_REFUSED',
        message: expect.stringContaining('is not tried again') as string,
      });
      expect(JSON.stringify(error, Object.getOwnPropertyNames(error))).not.toMatch(/wrong-pin|pin-of-the-test/);
    }
    writeFileSync(pinFile, `${tokenPin}\n`);
    expect((await openKey(uri)).fingerprint).toEqual((await openKey(hsm.uri(labelOf(exampleRootBytes)))).fingerprint);
  });

  test('a call that never returns from the library holds up neither the event loop nor the next call', async () => {
    token.fail(undefined);
    const root = await openKey(hsm.uri(labelOf(exampleRootBytes)), { timeoutMs: 2_000, attempts: 1 });
    const sealed = await root.createToken(1);
    token.fail('hang', 1);
    let turns = 0;
    const turning = setInterval(() => turns++, 5);
    await expect(root.opensToken(1, sealed)).rejects.toMatchObject({ code: 'ROOT_KEY_UNAVAILABLE' });
    clearInterval(turning);
    expect(turns).toBeGreaterThan(10);
    expect(await root.opensToken(1, sealed)).toBe(true);
  });

  test('without a PIN the token is not asked', async () => {
    await expect(open(hsm.uri('root 1'), { cluster: exampleCluster, env: hsm.env })).rejects.toMatchObject({
      code: 'ROOT_KEY_UNAVAILABLE',
      message: expect.stringContaining('KEYTURN_PKCS11_PIN_FILE') as string,
    });
  });
});
