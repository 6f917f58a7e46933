// A root key that never leaves its provider (wrap method 0x04 of docs/format.md): the provider encrypts and decrypts, and
// everything a wrap is bound to goes along as context. What comes back is believed only when it matches the commitment.
import { createHash, createSecretKey, type KeyObject, randomFillSync, timingSafeEqual } from 'node:crypto';
import { inspect } from 'node:util';
import { commitmentOf, createValueKey, dataKeyBytes } from '../../crypto/data-key.js';
import { labelBytes } from '../../crypto/label.js';
import { demandRootId, tokenSecretBytes, unwrapFailed } from '../../crypto/root-key.js';
import { uuidToBytes } from '../../crypto/uuid.js';
import type { DataKeyIdentity, ValueKey } from '../../crypto/value-key.js';
import type { RootKey } from './root-key.js';

/** What the ciphertext is bound to, by name; every value is short, printable and no secret. */
export type BindingContext = Readonly<Record<string, string>>;

/** The context as bytes, for providers that authenticate bytes: names in one order give one text. */
export function contextBytes(context: BindingContext): Buffer {
  const sorted = Object.fromEntries(Object.entries(context).toSorted(([a], [b]) => (a < b ? -1 : 1)));
  return Buffer.from(JSON.stringify(sorted), 'utf8');
}

/** What a provider must do. Both throw ROOT_KEY_UNAVAILABLE (away) or ROOT_KEY_REFUSED (withdrawn). */
export interface ProviderCipher {
  encrypt(plaintext: Buffer, context: BindingContext): Promise<Buffer>;
  /** Undefined unless this key made the ciphertext, with the same context. The result is zeroed after use. */
  decrypt(ciphertext: Buffer, context: BindingContext): Promise<Buffer | undefined>;
}

/** "KW", version 1, method 4: by the provider. */
const wrapHeader = Buffer.from([0x4b, 0x57, 0x01, 0x04]);
const maxCiphertextBytes = 8_192;

/**
 * `name` tells the key apart from every other, for ever: an ARN, or a kind, a place and a key name. The fingerprint is made
 * of it and of the cluster; that it is really the same key is shown by the verification token.
 */
export function createProviderRootKey(name: string, cluster: string, cipher: ProviderCipher): RootKey {
  return new ProviderRootKey(name, cluster, cipher);
}

class ProviderRootKey implements RootKey {
  readonly fingerprint: Buffer;
  readonly shortFingerprint: string;
  readonly #cluster: string;
  readonly #cipher: ProviderCipher;

  constructor(name: string, cluster: string, cipher: ProviderCipher) {
    this.#cluster = cluster;
    this.#cipher = cipher;
    this.fingerprint = createHash('sha256')
      .update(labelBytes('kek-fingerprint'))
      .update(uuidToBytes(cluster))
      .update(name, 'utf8')
      .digest();
    this.shortFingerprint = this.fingerprint.toString('hex', 0, 8);
  }

  async wrap(rootId: number, identity: DataKeyIdentity, material: KeyObject): Promise<Buffer> {
    const context = this.#wrapContext(rootId, identity, commitmentOf(identity, material));
    const bytes = material.export();
    try {
      return Buffer.concat([wrapHeader, await this.#cipher.encrypt(bytes, context)]);
    } finally {
      bytes.fill(0);
    }
  }

  async unwrap(rootId: number, identity: DataKeyIdentity, commitment: Buffer, blob: Buffer): Promise<ValueKey> {
    const body = blob.subarray(wrapHeader.length);
    if (
      !blob.subarray(0, wrapHeader.length).equals(wrapHeader) ||
      body.length === 0 ||
      body.length > maxCiphertextBytes
    )
      throw unwrapFailed(rootId, identity, 'its wrap is not a version 1 wrap by method 4');
    const bytes = await this.#cipher.decrypt(body, this.#wrapContext(rootId, identity, commitment));
    if (bytes === undefined)
      throw unwrapFailed(rootId, identity, `root key ${this.shortFingerprint} does not open its wrap`);
    try {
      if (bytes.length !== dataKeyBytes)
        throw unwrapFailed(rootId, identity, `the unwrapped key has ${bytes.length} bytes instead of ${dataKeyBytes}`);
      const key = createValueKey(identity, createSecretKey(bytes));
      if (key.commitment.length !== commitment.length || !timingSafeEqual(key.commitment, commitment))
        throw unwrapFailed(rootId, identity, 'the unwrapped key does not match its commitment');
      return key;
    } finally {
      bytes.fill(0);
    }
  }

  async createToken(rootId: number): Promise<Buffer> {
    const secret = randomFillSync(Buffer.alloc(tokenSecretBytes));
    return this.#cipher.encrypt(secret, this.#tokenContext(rootId));
  }

  async opensToken(rootId: number, token: Buffer): Promise<boolean> {
    if (token.length === 0 || token.length > maxCiphertextBytes) return false;
    const secret = await this.#cipher.decrypt(token, this.#tokenContext(rootId));
    secret?.fill(0);
    return secret?.length === tokenSecretBytes;
  }

  /** The fields that method 1 authenticates, by name: what cannot be said in context would not be bound. */
  #wrapContext(rootId: number, identity: DataKeyIdentity, commitment: Buffer): BindingContext {
    return {
      ...this.#context(rootId, 'wrap'),
      'keyturn:key': String(identity.id),
      'keyturn:algorithm': identity.algorithm,
      'keyturn:purpose': String(identity.purpose),
      'keyturn:cluster': identity.cluster,
      'keyturn:scope': identity.scope,
      'keyturn:commitment': commitment.toString('hex'),
    };
  }

  #tokenContext(rootId: number): BindingContext {
    return { ...this.#context(rootId, 'token'), 'keyturn:cluster': this.#cluster };
  }

  #context(rootId: number, use: string): BindingContext {
    demandRootId(rootId);
    return {
      'keyturn:v1': use,
      'keyturn:root': String(rootId),
      'keyturn:fingerprint': this.fingerprint.toString('hex'),
    };
  }

  toJSON(): { fingerprint: string } {
    return { fingerprint: this.shortFingerprint };
  }

  toString(): string {
    return `root key ${this.shortFingerprint}`;
  }

  [inspect.custom](): string {
    return this.toString();
  }
}
