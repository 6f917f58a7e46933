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
import { createEnvelopeCipher, type EnvelopeCipher } from '../crypto/envelope-cipher.js';
import { algorithmNames } from '../crypto/algorithms.js';
import { takeNonces } from '../crypto/nonce.js';
import type { ValueKey } from '../crypto/value-key.js';
import type { CellAddress, DecryptFailure, Format, PlainCell, Storage, Stored, StoredCell } from './format.js';

// Cipher state goes when its key goes.
const ciphers = new WeakMap<ValueKey, EnvelopeCipher>();

function cipherOf(key: ValueKey): EnvelopeCipher {
  const held = ciphers.get(key);
  if (held !== undefined) return held;
  const cipher = createEnvelopeCipher(key);
  ciphers.set(key, cipher);
  return cipher;
}

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

function decryptAll(values: readonly StoredCell[], key: ValueKey): readonly (Buffer | DecryptFailure)[] {
  const cipher = cipherOf(key);
  const envelopes = values.map(({ stored }) => envelopeFor(cipher, stored));
  const tried: { at: number; envelope: Buffer; fields: CellAddress }[] = [];
  for (const [at, { cell }] of values.entries()) {
    const envelope = envelopes[at];
    if (Buffer.isBuffer(envelope)) tried.push({ at, envelope, fields: cell });
  }
  const results = envelopes;
  for (const [index, plaintext] of cipher.decrypt(tried).entries()) {
    const at = tried[index]?.at;
    if (at !== undefined) results[at] = plaintext ?? 'AUTHENTICATION_FAILED';
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

export const keyturnFormat: Format = {
  name: 'keyturn',
  bindsCell: true,
  algorithms: algorithmNames,

  nameKey,

  decrypt: (stored, cell, key) => decryptAll([{ stored, cell }], key)[0] ?? 'MALFORMED',
  encrypt(plaintext, cell, key, storage) {
    const [stored] = encryptAll([{ plaintext, cell }], key, storage);
    if (stored === undefined) throw new Error('one value was encrypted to none');
    return stored;
  },
  decryptAll,
  encryptAll,

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

// `decode` and not a '\x…' literal: its meaning does not depend on standard_conforming_strings. Collation "C" above:
// a column with a collation that ignores case would take the header of one key for that of another.
function sqlBytes(bytes: Buffer): string {
  return `decode('${bytes.toString('hex')}', 'hex')`;
}
