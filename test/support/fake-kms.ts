// AWS KMS, as far as a root key needs it: Encrypt and Decrypt in the JSON 1.1 protocol that the real SDK speaks, with the
// exceptions it expects.
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { startFaultyServer, type FakeAnswer, type FaultyServer } from './faulty-server.js';

export interface FakeKms extends FaultyServer {
  /** The ARN of a key; bytes that were given before keep theirs. */
  addKey(bytes: Buffer): string;
}

/** As KMS answers with an exception. */
export function kmsException(type: string): FakeAnswer {
  return { status: 400, body: { __type: type, message: `${type}: as the test wants it` } };
}

export async function startFakeKms(): Promise<FakeKms> {
  const keys = new Map<string, Buffer>();

  const server = await startFaultyServer(({ headers, body }) => {
    if (!/^AWS4-HMAC-SHA256 Credential=/.test(headers.authorization ?? ''))
      return kmsException('AccessDeniedException');
    const arn = String(body['KeyId']);
    const key = keys.get(arn);
    if (key === undefined) return kmsException('NotFoundException');
    const context = Object.entries((body['EncryptionContext'] ?? {}) as Record<string, string>).toSorted(([a], [b]) =>
      a < b ? -1 : 1,
    );
    const associatedData = Buffer.from(JSON.stringify(context), 'utf8');
    if (headers['x-amz-target'] === 'TrentService.Encrypt') {
      const nonce = randomBytes(12);
      const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(associatedData);
      const plaintext = Buffer.from(String(body['Plaintext']), 'base64');
      const sealed = Buffer.concat([nonce, cipher.update(plaintext), cipher.final(), cipher.getAuthTag()]);
      return { status: 200, body: { CiphertextBlob: sealed.toString('base64'), KeyId: arn } };
    }
    if (headers['x-amz-target'] !== 'TrentService.Decrypt') return kmsException('UnsupportedOperationException');
    const bytes = Buffer.from(String(body['CiphertextBlob']), 'base64');
    if (bytes.length < 28) return kmsException('InvalidCiphertextException');
    try {
      const cipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12), { authTagLength: 16 });
      cipher.setAAD(associatedData).setAuthTag(bytes.subarray(-16));
      const plaintext = Buffer.concat([cipher.update(bytes.subarray(12, -16)), cipher.final()]);
      return { status: 200, body: { Plaintext: plaintext.toString('base64'), KeyId: arn } };
    } catch {
      return kmsException('InvalidCiphertextException');
    }
  });
  return {
    ...server,
    addKey(bytes) {
      const known = [...keys].find(([, key]) => key.equals(bytes))?.[0];
      const arn = known ?? `arn:aws:kms:eu-central-1:123456789012:key/root-${keys.size + 1}`;
      keys.set(arn, Buffer.from(bytes));
      return arn;
    },
  };
}
