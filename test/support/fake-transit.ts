// The Transit engine of Vault, as far as a root key needs it: encrypt and decrypt with associated data, over its real HTTP
// protocol. Its errors quote what was sent, as the real ones may.
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { startFaultyServer, type FakeAnswer, type FaultyServer } from './faulty-server.js';

export const transitToken = 'hvs.test-token';

export interface FakeTransit extends FaultyServer {
  /** Adds a key to the mount `transit`; bytes that were given before keep their name. */
  addKey(bytes: Buffer): string;
}

export async function startFakeTransit(): Promise<FakeTransit> {
  const keys = new Map<string, Buffer>();
  const refuse = (status: number, ...errors: string[]): FakeAnswer => ({ status, body: { errors } });

  const server = await startFaultyServer(({ path, headers, body }) => {
    if (headers['x-vault-token'] !== transitToken) return refuse(403, 'permission denied');
    const [, mount, verb, name = ''] = /^\/v1\/([^/]+)\/(encrypt|decrypt)\/([^/]+)$/.exec(path) ?? [];
    if (mount !== 'transit') return refuse(404, `no handler for route ${path}`);
    const key = keys.get(name);
    if (key === undefined) return refuse(400, 'encryption key not found');
    const associatedData = Buffer.from(String(body['associated_data'] ?? ''), 'base64');
    if (verb === 'encrypt') {
      const nonce = randomBytes(12);
      const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(associatedData);
      const sealed = Buffer.concat([
        nonce,
        cipher.update(Buffer.from(String(body['plaintext']), 'base64')),
        cipher.final(),
        cipher.getAuthTag(),
      ]);
      return { status: 200, body: { data: { ciphertext: `vault:v1:${sealed.toString('base64')}`, key_version: 1 } } };
    }
    const sealed = /^vault:v1:(.+)$/.exec(String(body['ciphertext']))?.[1];
    if (sealed === undefined) return refuse(400, `invalid ciphertext: ${String(body['ciphertext'])}`);
    const bytes = Buffer.from(sealed, 'base64');
    if (bytes.length < 28) return refuse(400, 'invalid ciphertext: too short');
    try {
      const cipher = createDecipheriv('aes-256-gcm', key, bytes.subarray(0, 12), { authTagLength: 16 });
      cipher.setAAD(associatedData).setAuthTag(bytes.subarray(-16));
      const plaintext = Buffer.concat([cipher.update(bytes.subarray(12, -16)), cipher.final()]);
      return { status: 200, body: { data: { plaintext: plaintext.toString('base64') } } };
    } catch {
      return refuse(400, 'cipher: message authentication failed');
    }
  });
  return {
    ...server,
    addKey(bytes) {
      const known = [...keys].find(([, key]) => key.equals(bytes))?.[0];
      const name = known ?? `root-${keys.size + 1}`;
      keys.set(name, Buffer.from(bytes));
      return name;
    },
  };
}
