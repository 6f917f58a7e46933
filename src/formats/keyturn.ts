// Keyturn's own format, version 1 (docs/format.md), as the Format interface: which key a value names, decrypting,
// encrypting, and the same questions in SQL. Header, lengths and cryptography live in crypto/.
import {
  armouredHeaderLength,
  armouredLength,
  armourPrefix,
  decodeArmour,
  encodeArmour,
  encodeHeader,
  envelopeBytes,
  envelopeMagic,
  headerBytes,
  headerOfKey,
  parseArmouredHeader,
  parseHeader,
} from '../crypto/envelope.js';
import { nodeCiphers, type CipherSuite, type EnvelopeCipher, type EnvelopeValue } from '../crypto/envelope-cipher.js';
import { algorithmNames } from '../crypto/algorithms.js';
import { nativeAddon } from '../crypto/native-addon.js';
import { createNativeCiphers } from '../crypto/native-cipher.js';
import { takeNonceBytes, takeNonces } from '../crypto/nonce.js';
import type { ValueKey } from '../crypto/value-key.js';
import type { DecryptFailure, Format, PlainCell, Reencrypted, Storage, Stored, StoredCell } from './format.js';

function nameKey(stored: Stored): number | undefined {
  const header = typeof stored === 'string' ? parseArmouredHeader(stored) : parseHeader(stored);
  return header?.keyId;
}

/** The envelope where `cipher` may try it, or why not. */
function envelopeFor(cipher: EnvelopeCipher, stored: Stored): Buffer | DecryptFailure {
  const envelope = typeof stored === 'string' ? decodeArmour(stored) : stored;
  const header = envelope && parseHeader(envelope);
  if (header === undefined || envelope === undefined) return 'MALFORMED';
  // With magic and version, parsed above, these cover all twelve bytes. The tag covers them too; checking first
  // tells a wrong key under this id from tampering.
  if (header.algorithm !== cipher.header.algorithm) return 'ALGORITHM_DIFFERS';
  if (header.keyId !== cipher.header.keyId || header.keyCheck !== cipher.header.keyCheck) return 'KEY_CHECK_DIFFERS';
  return cipher.fits(envelope) ? envelope : 'MALFORMED';
}

/** Those of the values that `cipher` may try, with their positions; of the others, what is wrong with them. */
function sort(
  cipher: EnvelopeCipher,
  values: readonly StoredCell[],
): { readonly tried: (EnvelopeValue & { readonly at: number })[]; readonly failures: (DecryptFailure | undefined)[] } {
  const tried: (EnvelopeValue & { readonly at: number })[] = [];
  const failures = values.map(({ stored, cell }, at) => {
    const envelope = envelopeFor(cipher, stored);
    if (!Buffer.isBuffer(envelope)) return envelope;
    tried.push({ at, envelope, fields: cell });
    return undefined;
  });
  return { tried, failures };
}

type Cryptography = Required<Pick<Format, 'decryptAll' | 'encryptAll'>> & Pick<Format, 'reencryptAll'>;

/** The same bytes whatever the ciphers. */
function cryptographyOn<Cipher extends EnvelopeCipher>(suite: CipherSuite<Cipher>): Cryptography {
  // Cipher state goes when its key goes.
  const ciphers = new WeakMap<ValueKey, Cipher>();

  function cipherOf(key: ValueKey): Cipher {
    const held = ciphers.get(key);
    if (held !== undefined) return held;
    const cipher = suite.create(key);
    ciphers.set(key, cipher);
    return cipher;
  }

  function decryptAll(values: readonly StoredCell[], key: ValueKey): readonly (Buffer | DecryptFailure)[] {
    const cipher = cipherOf(key);
    const { tried, failures } = sort(cipher, values);
    const results = failures.map((failure): Buffer | DecryptFailure => failure ?? 'AUTHENTICATION_FAILED');
    for (const [index, plaintext] of cipher.decrypt(tried).entries()) {
      const at = tried[index]?.at;
      if (at !== undefined && plaintext !== undefined) results[at] = plaintext;
    }
    return results;
  }

  function encryptAll(values: readonly PlainCell[], key: ValueKey, storage: Storage): readonly Stored[] {
    const cipher = cipherOf(key);
    const envelopes = cipher.encrypt(
      values.map(({ plaintext, cell }) => ({ plaintext, fields: cell })),
      takeNonces(values.length, cipher.nonceBytes),
    );
    return storage === 'text' ? envelopes.map(encodeArmour) : envelopes;
  }

  const { reencrypt } = suite;
  if (reencrypt === undefined) return { decryptAll, encryptAll };
  return {
    decryptAll,
    encryptAll,
    reencryptAll(values, fromKey, toKey, storage) {
      const [from, to] = [cipherOf(fromKey), cipherOf(toKey)];
      const { tried, failures } = sort(from, values);
      const results = failures.map((failure): Reencrypted => ({ failure: failure ?? 'AUTHENTICATION_FAILED' }));
      const nonces = takeNonceBytes(tried.length * to.nonceBytes);
      for (const [index, result] of reencrypt(from, to, tried, nonces).entries()) {
        const at = tried[index]?.at;
        if (at === undefined) continue;
        results[at] = Buffer.isBuffer(result)
          ? { replacement: storage === 'text' ? encodeArmour(result) : result }
          : { failure: result };
      }
      return results;
    },
  };
}

/** The format on the given ciphers. */
export function createKeyturnFormat<Cipher extends EnvelopeCipher>(suite: CipherSuite<Cipher>): Format {
  const cryptography = cryptographyOn(suite);
  const { decryptAll, encryptAll } = cryptography;
  return {
    ...inNameAndSql,
    ...cryptography,
    decrypt: (stored, cell, key) => decryptAll([{ stored, cell }], key)[0] ?? 'MALFORMED',
    encrypt(plaintext, cell, key, storage) {
      const [stored] = encryptAll([{ plaintext, cell }], key, storage);
      if (stored === undefined) throw new Error('one value was encrypted to none');
      return stored;
    },
  };
}

/** What needs no key material. */
const inNameAndSql: Omit<Format, 'decrypt' | 'encrypt' | 'decryptAll' | 'encryptAll' | 'reencryptAll'> = {
  name: 'keyturn',
  bindsCell: true,
  algorithms: algorithmNames,

  nameKey,

  storedLength(plaintextBytes, algorithm, storage) {
    const bytes = envelopeBytes(plaintextBytes, algorithm);
    return storage === 'text' ? armouredLength(bytes) : bytes;
  },

  sqlNamesKey(expression, storage, key) {
    const header = encodeHeader(headerOfKey(key));
    return storage === 'text'
      ? `(left((${expression}), ${armouredHeaderLength}) = '${encodeArmour(header)}' COLLATE "C")`
      : `(substring((${expression}) FROM 1 FOR ${headerBytes}) = ${sqlBytes(header)})`;
  },

  sqlHasMagic(expression, storage) {
    return storage === 'text'
      ? `(left((${expression}), ${armourPrefix.length}) = '${armourPrefix}' COLLATE "C")`
      : `(substring((${expression}) FROM 1 FOR ${envelopeMagic.length}) = ${sqlBytes(envelopeMagic)})`;
  },

  sqlCountMagic(expression) {
    const opening = `"${armourPrefix}`;
    return `((length((${expression})) - length(replace((${expression}), '${opening}', ''))) / ${opening.length})`;
  },

  sqlHeader(expression, storage) {
    return storage === 'text'
      ? `left((${expression}), ${armouredHeaderLength}) COLLATE "C"`
      : `substring((${expression}) FROM 1 FOR ${headerBytes})`;
  },

  keyOfHeader(header) {
    const expected = typeof header === 'string' ? armouredHeaderLength : headerBytes;
    return header.length === expected ? nameKey(header) : undefined;
  },
};

export const keyturnFormat: Format =
  nativeAddon === undefined ? createKeyturnFormat(nodeCiphers) : createKeyturnFormat(createNativeCiphers(nativeAddon));

// `decode` and not a '\x…' literal: its meaning does not depend on standard_conforming_strings. Collation "C" above:
// a column with a collation that ignores case would take the header of one key for that of another.
function sqlBytes(bytes: Buffer): string {
  return `decode('${bytes.toString('hex')}', 'hex')`;
}
