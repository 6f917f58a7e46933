// Root keys in the Transit engine of Vault or OpenBao: `vault:MOUNT/KEY`. The key stays there; a wrap is one encrypt call,
// an unwrap one decrypt call, both with associated data. Address from VAULT_ADDR, token from VAULT_TOKEN or the file that
// VAULT_TOKEN_FILE names, read again for every call, so that an agent may renew it.
import { readFile } from 'node:fs/promises';
import { Secret } from '../../crypto/secret.js';
import { refused, unavailable } from './key-bytes.js';
import { contextBytes, createProviderRootKey, type BindingContext, type ProviderCipher } from './provider-root-key.js';
import { createRemoteCall, RemoteCallFailed, type RemoteCall, type RemoteFailure } from './remote-call.js';
import type { RootKeyContext, RootKeyProvider } from './root-key.js';

/** Mount path and key name, as Vault takes them. */
const locationShape = /^([A-Za-z0-9_.-]+(?:\/[A-Za-z0-9_.-]+)*)\/([A-Za-z0-9_.-]+)$/;
const ciphertextShape = /^vault:v[1-9]\d{0,8}:[A-Za-z0-9+/]+={0,2}$/;
const loopback = new Set(['localhost', '127.0.0.1', '[::1]']);
const maxAnswerBytes = 65_536;

export const vaultRootKeyProvider: RootKeyProvider = {
  scheme: 'vault',
  async open(location, context) {
    const source = `vault:${location}`;
    const [, mount, key] = locationShape.exec(location) ?? [];
    if (mount === undefined || key === undefined || location.split('/').some((part) => /^\.+$/.test(part)))
      throw refused('vault:', 'expected vault:MOUNT/KEY, such as vault:transit/keyturn');
    const address = addressOf(context, source);
    const token = tokenReader(context, source);
    await token();
    const call = createRemoteCall({ ...context.timing, source });
    const cipher = createTransitCipher({ address, mount, key, token, call });
    return createProviderRootKey(`vault:${mount}/${key}`, context.cluster, cipher);
  },
};

/** Over the network in TLS only. */
function addressOf({ env }: RootKeyContext, source: string): URL {
  const value = env['VAULT_ADDR'];
  if (value === undefined || value === '')
    throw unavailable(source, 'VAULT_ADDR is not set; set it to https://HOST:8200');
  if (!URL.canParse(value)) throw refused(source, 'VAULT_ADDR is not a URL; set it to https://HOST:8200');
  const address = new URL(value);
  if (address.protocol === 'https:' || (address.protocol === 'http:' && loopback.has(address.hostname))) return address;
  throw refused(source, 'VAULT_ADDR must begin with https://; http:// is for the loopback address alone');
}

/** VAULT_TOKEN stays in the environment, unlike a root key: a second root key may need it. */
function tokenReader({ env }: RootKeyContext, source: string): () => Promise<Secret> {
  const direct = env['VAULT_TOKEN'];
  if (direct !== undefined && direct !== '') {
    const token = new Secret(direct);
    return async () => token;
  }
  const path = env['VAULT_TOKEN_FILE'];
  if (path === undefined || path === '')
    throw unavailable(
      source,
      'neither VAULT_TOKEN nor VAULT_TOKEN_FILE is set; give the token of a role that may encrypt and decrypt with this key',
    );
  return async () => {
    let content: string;
    try {
      content = (await readFile(path, 'utf8')).trim();
    } catch {
      throw unavailable(source, `VAULT_TOKEN_FILE points at ${path}, which cannot be read`);
    }
    if (!/^[\x21-\x7e]+$/.test(content))
      throw unavailable(source, `VAULT_TOKEN_FILE points at ${path}, which holds no token`);
    return new Secret(content);
  };
}

function createTransitCipher(transit: {
  address: URL;
  mount: string;
  key: string;
  token: () => Promise<Secret>;
  call: RemoteCall;
}): ProviderCipher {
  async function ask(verb: 'encrypt' | 'decrypt', body: object): Promise<Record<string, unknown> | undefined> {
    const token = await transit.token();
    const base = transit.address.href.replace(/\/$/, '');
    return transit.call(async (signal) => {
      const response = await fetch(`${base}/v1/${transit.mount}/${verb}/${transit.key}`, {
        method: 'POST',
        headers: { 'content-type': 'application/json', 'x-vault-token': token.expose(), 'x-vault-request': 'true' },
        body: JSON.stringify(body),
        // A token must not follow a redirection to another host.
        redirect: 'error',
        signal,
      });
      const text = await response.text();
      if (!response.ok) throw new RemoteCallFailed(failureOf(verb, response));
      return dataOf(text);
    });
  }

  return {
    async encrypt(plaintext, context) {
      const data = await ask('encrypt', { plaintext: plaintext.toString('base64'), ...bound(context) });
      const ciphertext = data?.['ciphertext'];
      if (typeof ciphertext !== 'string' || !ciphertextShape.test(ciphertext))
        throw unavailable(`vault:${transit.mount}/${transit.key}`, 'Vault answered encrypt without a ciphertext');
      return Buffer.from(ciphertext, 'latin1');
    },
    async decrypt(ciphertext, context) {
      const text = ciphertext.toString('latin1');
      if (!ciphertextShape.test(text)) return undefined;
      const data = await ask('decrypt', { ciphertext: text, ...bound(context) });
      const plaintext = data?.['plaintext'];
      return typeof plaintext === 'string' ? Buffer.from(plaintext, 'base64') : undefined;
    },
  };
}

/** As associated data, and for keys with derivation as their context too. */
function bound(context: BindingContext): { associated_data: string; context: string } {
  const encoded = contextBytes(context).toString('base64');
  return { associated_data: encoded, context: encoded };
}

/** By status alone: Vault's words may quote what was sent. */
function failureOf(verb: 'encrypt' | 'decrypt', { status, headers }: Response): RemoteFailure {
  if (status === 400 && verb === 'decrypt') return { kind: 'wrong_ciphertext' };
  if (status === 429) {
    const seconds = Number(headers.get('retry-after') ?? Number.NaN);
    return {
      kind: 'throttled',
      afterMs: Number.isFinite(seconds) ? seconds * 1_000 : undefined,
      reason: 'Vault answered 429, too many requests',
    };
  }
  if (status === 403)
    return {
      kind: 'refused',
      reason: 'Vault answered 403; renew the token, or give its role update on encrypt and decrypt of this key',
    };
  if (status === 404) return { kind: 'refused', reason: 'Vault answered 404; there is no such mount' };
  if (status === 400)
    return { kind: 'refused', reason: 'Vault answered 400; the key must be of type aes256-gcm96 and exist' };
  return { kind: 'away', reason: `Vault answered ${status}` };
}

function dataOf(text: string): Record<string, unknown> {
  if (text.length > maxAnswerBytes) throw new RemoteCallFailed({ kind: 'away', reason: 'Vault answered too much' });
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw new RemoteCallFailed({ kind: 'away', reason: 'Vault answered no JSON' });
  }
  const data = typeof parsed === 'object' && parsed !== null && 'data' in parsed ? parsed.data : undefined;
  if (typeof data !== 'object' || data === null)
    throw new RemoteCallFailed({ kind: 'away', reason: 'Vault answered without data' });
  return { ...data };
}
