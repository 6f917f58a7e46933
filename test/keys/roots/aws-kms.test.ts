// Root keys in AWS KMS: the real SDK, against a server that speaks its protocol.
import { afterAll, beforeAll, describe, expect, test, vi } from 'vitest';
import { openRootKey } from '../../../src/keys/roots/open-root-key.js';
import { kmsException, startFakeKms, type FakeKms } from '../../support/fake-kms.js';
import { describeRemoteContract } from './remote-contract.js';
import { describeRootKeyContract, exampleCluster, exampleRootBytes } from './root-key-contract.js';

let kms: FakeKms;

beforeAll(async () => {
  kms = await startFakeKms();
  // The SDK looks for these itself.
  vi.stubEnv('AWS_ENDPOINT_URL_KMS', kms.url);
  vi.stubEnv('AWS_ACCESS_KEY_ID', 'test-access-key-id');
  vi.stubEnv('AWS_SECRET_ACCESS_KEY', 'test-secret-access-key');
});
afterAll(async () => {
  vi.unstubAllEnvs();
  await kms.close();
});

describeRootKeyContract('aws-kms', (bytes, cluster) => {
  kms.fail(undefined);
  return openRootKey(`aws-kms:${kms.addKey(bytes)}`, { cluster, env: {} });
});

describeRemoteContract('aws-kms', {
  server: () => kms,
  open: (timing) =>
    openRootKey(`aws-kms:${kms.addKey(exampleRootBytes)}`, { cluster: exampleCluster, env: {}, timing }),
  throttled: kmsException('ThrottlingException'),
  revoked: kmsException('DisabledException'),
  broken: { ...kmsException('KMSInternalException'), status: 500 },
});

describe('root keys in AWS KMS', () => {
  test('what a wrap is bound to is its encryption context', async () => {
    kms.fail(undefined);
    const root = await openRootKey(`aws-kms:${kms.addKey(exampleRootBytes)}`, { cluster: exampleCluster, env: {} });
    await root.createToken(5);
    expect(kms.requests.at(-1)?.body['EncryptionContext']).toEqual({
      'keyturn:v1': 'token',
      'keyturn:root': '5',
      'keyturn:fingerprint': root.fingerprint.toString('hex'),
      'keyturn:cluster': exampleCluster,
    });
  });

  test.each(['', 'alias/keyturn', 'arn:aws:kms:eu-central-1:123456789012:alias/keyturn', 'arn:aws:s3:::bucket'])(
    '%j is no ARN of a key and is refused',
    async (arn) => {
      await expect(openRootKey(`aws-kms:${arn}`, { cluster: exampleCluster, env: {} })).rejects.toMatchObject({
        code: 'ROOT_KEY_REFUSED',
      });
    },
  );
});
