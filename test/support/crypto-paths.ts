// The paths to OpenSSL that Keyturn has: node:crypto always, the native one where it was built. What is promised of values is
// tested on each; such a test ends its name with the path.
import { createSecretKey } from 'node:crypto';
import { decryptAesGcm, encryptAesGcm, type GcmOutput } from '../../src/crypto/aes-gcm.js';
import { nodeCiphers, type EnvelopeCipher } from '../../src/crypto/envelope-cipher.js';
import type { AlgorithmName } from '../../src/crypto/algorithms.js';
import { describeCrypto, nativeAddon, type NativeAddon } from '../../src/crypto/native-addon.js';
import { createNativeCiphers } from '../../src/crypto/native-cipher.js';
import type { ValueKey } from '../../src/crypto/value-key.js';
import { createXaesKey } from '../../src/crypto/xaes-gcm.js';
import type { Format } from '../../src/formats/format.js';
import { createKeyturnFormat } from '../../src/formats/keyturn.js';

/** An AEAD under one key, with whatever associated data: what published vectors ask for. */
export interface Aead {
  encrypt(nonce: Buffer, associatedData: Buffer, plaintext: Buffer): GcmOutput;
  /** Undefined when the tag does not match. */
  decrypt(nonce: Buffer, associatedData: Buffer, encrypted: GcmOutput): Buffer | undefined;
}

export interface CryptoPath {
  readonly path: 'node:crypto' | 'native';
  readonly format: Format;
  createCipher(key: ValueKey): EnvelopeCipher;
  openAead(algorithm: AlgorithmName, key: Buffer): Aead;
}

const nodePath: CryptoPath = {
  path: 'node:crypto',
  format: createKeyturnFormat(nodeCiphers),
  createCipher: nodeCiphers.create,
  openAead(algorithm, bytes) {
    const material = createSecretKey(bytes);
    const xaes = algorithm === 'xaes-256-gcm' ? createXaesKey(material) : undefined;
    const useOf = (nonce: Buffer) => {
      const use = xaes === undefined ? { key: material, nonce } : xaes.derive([nonce]).uses[0];
      if (use === undefined) throw new Error('one nonce, no subkey');
      return use;
    };
    return {
      encrypt(nonce, associatedData, plaintext) {
        const use = useOf(nonce);
        return encryptAesGcm(use.key, use.nonce, associatedData, plaintext);
      },
      decrypt(nonce, associatedData, encrypted) {
        const use = useOf(nonce);
        return decryptAesGcm(use.key, use.nonce, associatedData, encrypted);
      },
    };
  },
};

function nativePath(addon: NativeAddon): CryptoPath {
  const ciphers = createNativeCiphers(addon);
  return {
    path: 'native',
    format: createKeyturnFormat(ciphers),
    createCipher: ciphers.create,
    openAead(algorithm, bytes) {
      const key = addon.createKey(algorithm === 'xaes-256-gcm', bytes);
      return {
        encrypt(nonce, associatedData, plaintext) {
          const sealed = Buffer.concat([nonce, Buffer.alloc(plaintext.length + 16)]);
          addon.seal(key, sealed, 0, associatedData, plaintext);
          return { ciphertext: sealed.subarray(nonce.length, -16), tag: sealed.subarray(-16) };
        },
        decrypt(nonce, associatedData, { ciphertext, tag }) {
          const plaintext = Buffer.alloc(ciphertext.length, 0xff);
          if (addon.unseal(key, Buffer.concat([nonce, ciphertext, tag]), 0, associatedData, plaintext))
            return plaintext;
          if (plaintext.some((byte) => byte !== 0)) throw new Error('bytes that nobody authenticated came out');
          return undefined;
        },
      };
    },
  };
}

export const cryptoPaths: readonly CryptoPath[] =
  nativeAddon === undefined ? [nodePath] : [nodePath, nativePath(nativeAddon)];

/** The addon itself. Throws where it is not built: such a test is skipped then. */
export function requireAddon(): NativeAddon {
  if (nativeAddon === undefined) throw new Error(`no addon: ${describeCrypto()}`);
  return nativeAddon;
}
