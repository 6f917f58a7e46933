// Root key providers whose package is optional, where it is not installed: each names it and the command that installs it.
import { afterAll, beforeAll, expect, test } from 'vitest';
import type { openRootKey } from '../../../src/keys/roots/open-root-key.js';
import { install, type Installed } from '../../support/installed.js';
import { exampleCluster } from './root-key-contract.js';

let installed: Installed;

beforeAll(() => {
  installed = install({ without: ['@aws-sdk/client-kms'] });
});
afterAll(() => installed.remove());

test.each([
  ['aws-kms:arn:aws:kms:eu-central-1:123456789012:key/absent', '@aws-sdk/client-kms'],
  ['pkcs11:token=any;object=any?module-path=/usr/lib/any.so', 'graphene-pk11'],
])('%s without its package is unavailable and says what to install', async (uri, name) => {
  const { openRootKey: open } = await installed.load<{ openRootKey: typeof openRootKey }>(
    'keys/roots/open-root-key.js',
  );
  await expect(open(uri, { cluster: exampleCluster, env: { KEYTURN_PKCS11_PIN: '1234' } })).rejects.toMatchObject({
    code: 'ROOT_KEY_UNAVAILABLE',
    message: expect.stringContaining(`run: npm install ${name}`) as string,
  });
});
