// From a root key URI to a root key: picks the provider by scheme. A URI is never echoed before its scheme is known,
// since people paste keys where names belong (I7).
import { KeyturnError } from '../../errors.js';
import { awsKmsRootKeyProvider } from './aws-kms.js';
import { envRootKeyProvider } from './env.js';
import { fileRootKeyProvider } from './file.js';
import { pkcs11RootKeyProvider } from './pkcs11.js';
import type { RootKey, RootKeyContext, RootKeyProvider } from './root-key.js';
import { vaultRootKeyProvider } from './vault.js';

const providers: ReadonlyMap<string, RootKeyProvider> = new Map(
  [envRootKeyProvider, fileRootKeyProvider, vaultRootKeyProvider, awsKmsRootKeyProvider, pkcs11RootKeyProvider].map(
    (provider) => [provider.scheme, provider],
  ),
);

export const rootKeySchemes: readonly string[] = [...providers.keys()];

const uriShape = /^([a-z][a-z0-9-]{0,15}):(.*)$/s;
const keyInPlaceOfName = /(?:^|\/)[0-9a-fA-F]{64}$/;

/**
 * Throws ROOT_KEY_REFUSED for an unknown scheme or a key that must not be used, ROOT_KEY_UNAVAILABLE where the key is
 * not there now. Open each URI once: reading `env:` removes the variable from `env`. `others` serve schemes that
 * Keyturn has no provider of its own for.
 */
export async function openRootKey(
  uri: string,
  context: RootKeyContext,
  others: readonly RootKeyProvider[] = [],
): Promise<RootKey> {
  const [, scheme, location] = uriShape.exec(uri) ?? [];
  const known = [...rootKeySchemes, ...others.map((provider) => provider.scheme)].map((name) => `${name}:`).join(', ');
  if (scheme === undefined || location === undefined) {
    throw new KeyturnError('ROOT_KEY_REFUSED', `expected a root key URI that begins with one of ${known}`);
  }
  const provider = providers.get(scheme) ?? others.find((other) => other.scheme === scheme);
  if (provider === undefined) {
    throw new KeyturnError('ROOT_KEY_REFUSED', `root key scheme ${scheme}: is unknown, expected one of ${known}`);
  }
  if (keyInPlaceOfName.test(location)) {
    throw new KeyturnError(
      'ROOT_KEY_REFUSED',
      `expected a name after ${scheme}:, got what looks like a key; a key in an argument is no secret, make a new one`,
    );
  }
  return provider.open(location, context);
}
