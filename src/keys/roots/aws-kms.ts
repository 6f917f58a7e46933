// Root keys in AWS KMS: `aws-kms:arn:aws:kms:REGION:ACCOUNT:key/ID`. The key stays there; every wrap carries what it is bound
// to as encryption context, which KMS authenticates and CloudTrail shows. The SDK is loaded when such a key is opened and
// not before; credentials and endpoint come from where the SDK looks for them.
import type { KMSClient } from '@aws-sdk/client-kms';
import { KeyturnError } from '../../errors.js';
import { refused } from './key-bytes.js';
import { createProviderRootKey, type ProviderCipher } from './provider-root-key.js';
import { createRemoteCall, RemoteCallFailed, type RemoteCall, type RemoteFailure } from './remote-call.js';
import type { RootKeyProvider } from './root-key.js';

/** A key, not an alias: an alias can be pointed at another key, and what it wrapped would no longer open. */
const keyArn = /^arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:key\/[A-Za-z0-9-]+$/;

type Kms = typeof import('@aws-sdk/client-kms');

export const awsKmsRootKeyProvider: RootKeyProvider = {
  scheme: 'aws-kms',
  async open(arn, { cluster, timing }) {
    const region = keyArn.exec(arn)?.[1];
    if (region === undefined)
      throw refused(
        'aws-kms:',
        'expected aws-kms: and the ARN of a key (arn:aws:kms:REGION:ACCOUNT:key/ID), not of an alias',
      );
    const source = `aws-kms:${arn}`;
    const kms = await loadSdk(source);
    // One attempt: retries are ours, so that every provider behaves alike.
    const client = new kms.KMSClient({ region, maxAttempts: 1 });
    return createProviderRootKey(
      source,
      cluster,
      createKmsCipher(kms, client, arn, createRemoteCall({ ...timing, source })),
    );
  },
};

async function loadSdk(source: string): Promise<Kms> {
  try {
    return await import('@aws-sdk/client-kms');
  } catch (error) {
    if (!(error instanceof Error && 'code' in error && error.code === 'ERR_MODULE_NOT_FOUND')) throw error;
    throw new KeyturnError(
      'ROOT_KEY_UNAVAILABLE',
      `the root key at ${source} needs the package @aws-sdk/client-kms, which is not installed; run: npm install @aws-sdk/client-kms`,
    );
  }
}

function createKmsCipher(kms: Kms, client: KMSClient, arn: string, call: RemoteCall): ProviderCipher {
  async function send<T>(attempt: (signal: AbortSignal) => Promise<T>): Promise<T | undefined> {
    return call(async (signal) => {
      try {
        return await attempt(signal);
      } catch (error) {
        throw new RemoteCallFailed(failureOf(error, signal));
      }
    });
  }

  return {
    async encrypt(plaintext, context) {
      const answer = await send((abortSignal) =>
        client.send(new kms.EncryptCommand({ KeyId: arn, Plaintext: plaintext, EncryptionContext: context }), {
          abortSignal,
        }),
      );
      if (answer?.CiphertextBlob === undefined)
        throw new KeyturnError('ROOT_KEY_UNAVAILABLE', `the root key at aws-kms:${arn} answered without a ciphertext`);
      return Buffer.from(answer.CiphertextBlob);
    },
    async decrypt(ciphertext, context) {
      const answer = await send((abortSignal) =>
        client.send(new kms.DecryptCommand({ KeyId: arn, CiphertextBlob: ciphertext, EncryptionContext: context }), {
          abortSignal,
        }),
      );
      // A view, so that zeroing it leaves no second copy.
      const plaintext = answer?.Plaintext;
      return plaintext === undefined
        ? undefined
        : Buffer.from(plaintext.buffer, plaintext.byteOffset, plaintext.byteLength);
    },
  };
}

const wrongCiphertext = new Set(['InvalidCiphertextException', 'IncorrectKeyException']);
const throttling = new Set([
  'ThrottlingException',
  'LimitExceededException',
  'RequestLimitExceeded',
  'TooManyRequestsException',
]);
const withdrawn = new Set([
  'AccessDeniedException',
  'DisabledException',
  'ExpiredTokenException',
  'InvalidKeyUsageException',
  'InvalidSignatureException',
  'KMSInvalidStateException',
  'NotFoundException',
  'UnrecognizedClientException',
]);

/** By the name of the exception alone: its words may quote what was sent. */
function failureOf(error: unknown, signal: AbortSignal): RemoteFailure {
  if (signal.aborted) return { kind: 'away', reason: 'KMS did not answer in time' };
  const name = error instanceof Error ? error.name : 'unknown error';
  if (wrongCiphertext.has(name)) return { kind: 'wrong_ciphertext' };
  if (throttling.has(name)) return { kind: 'throttled', reason: `KMS answered ${name}` };
  if (withdrawn.has(name))
    return { kind: 'refused', reason: `KMS answered ${name}; look at the key's state and at its policy` };
  if (name === 'CredentialsProviderError') return { kind: 'refused', reason: 'the SDK found no credentials' };
  return { kind: 'away', reason: `KMS failed with ${name}` };
}
