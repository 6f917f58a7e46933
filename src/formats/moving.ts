// A column between Keyturn's format and a foreign one, as one Format: it reads both and writes one. A value is ours only
// if all twelve header bytes are those of a key of the keyring; what else carries our magic goes to a foreign format only
// where that authenticates, and is an error otherwise (I8). The foreign values name their key by a text id.
import {
  armouredHeaderLength,
  armourPrefix,
  encodeArmour,
  encodeHeader,
  envelopeMagic,
  headerBytes,
  headerOfKey,
} from '../crypto/envelope.js';
import type { ForeignFormat } from './foreign.js';
import type { Format, Storage, Stored, ValueKeyName } from './format.js';
import { keyturnFormat } from './keyturn.js';

export interface Move {
  /** Undefined where this process does not know the format: no value of it can be read, and none is called damaged. */
  readonly foreign: ForeignFormat | undefined;
  readonly foreignKeyId: string;
  readonly writes: 'own' | 'foreign';
  /** Every key of the keyring, whatever its state. */
  readonly ownKeys: readonly ValueKeyName[];
}

const versionedMagic = Buffer.concat([envelopeMagic, Buffer.from([1])]);

/** Stands for every foreign value where values are grouped by header; no envelope begins like it. */
const foreignHeader = 'foreign';

export function movingFormat({ foreign, foreignKeyId, writes, ownKeys }: Move): Format {
  const headers = ownKeys.map((key) => ({ id: key.id, header: encodeHeader(headerOfKey(key)) }));
  const ownIds = new Map(headers.map(({ id, header }) => [header.toString('hex'), id]));
  const ownTexts = new Map(headers.map(({ id, header }) => [encodeArmour(header), id]));

  function ownKeyOf(stored: Stored): ReturnType<Format['nameKey']> {
    return typeof stored === 'string'
      ? ownTexts.get(stored.slice(0, armouredHeaderLength))
      : ownIds.get(stored.toString('hex', 0, headerBytes));
  }

  function isForeign(stored: Stored): boolean {
    if (foreign === undefined) return !hasMagic(stored);
    return (foreign.authenticates || !hasMagic(stored)) && foreign.isValue(stored);
  }

  function sqlIsForeign(expression: string, storage: Storage): string {
    const own = ownKeys.map((key) => keyturnFormat.sqlNamesKey(expression, storage, key));
    const isMarked = sqlHasVersionedMagic(expression, storage);
    const parts = [
      ...own.map((names) => `NOT ${names}`),
      ...(foreign?.authenticates === true ? [] : [`NOT ${isMarked}`]),
      ...(foreign === undefined ? [] : [foreign.sqlIsValue(expression, storage)]),
    ];
    return `(${parts.join(' AND ')})`;
  }

  // Values of two formats are not reencrypted at a stroke.
  const { reencryptAll: _, ...ours } = keyturnFormat;
  return {
    ...ours,
    bindsCell: writes === 'own',
    ...(writes === 'foreign' ? { writeKeyId: foreignKeyId } : {}),
    nameKey: (stored) => ownKeyOf(stored) ?? (isForeign(stored) ? foreignKeyId : keyturnFormat.nameKey(stored)),
    decrypt: (stored, cell, key) =>
      key.id === foreignKeyId
        ? (foreign?.decrypt(stored, key.material) ?? 'MALFORMED')
        : keyturnFormat.decrypt(stored, cell, key),
    decryptAll: (values, key) =>
      key.id === foreignKeyId
        ? values.map(({ stored }) => foreign?.decrypt(stored, key.material) ?? 'MALFORMED')
        : (keyturnFormat.decryptAll?.(values, key) ?? []),
    encrypt: (plaintext, cell, key, storage) =>
      key.id === foreignKeyId && foreign !== undefined
        ? foreign.encrypt(plaintext, key.material, storage)
        : keyturnFormat.encrypt(plaintext, cell, key, storage),
    encryptAll: (values, key, storage) =>
      key.id === foreignKeyId && foreign !== undefined
        ? values.map(({ plaintext }) => foreign.encrypt(plaintext, key.material, storage))
        : (keyturnFormat.encryptAll?.(values, key, storage) ?? []),
    storedLength: (plaintextBytes, algorithm, storage) =>
      writes === 'foreign' && foreign !== undefined
        ? foreign.storedLength(plaintextBytes, storage)
        : keyturnFormat.storedLength(plaintextBytes, algorithm, storage),
    sqlNamesKey: (expression, storage, key) =>
      key.id === foreignKeyId ? sqlIsForeign(expression, storage) : keyturnFormat.sqlNamesKey(expression, storage, key),
    sqlHeader(expression, storage) {
      const marker = storage === 'text' ? `'${foreignHeader}'` : `decode('${markerBytes.toString('hex')}', 'hex')`;
      return `CASE WHEN ${sqlIsForeign(expression, storage)} THEN ${marker} ELSE ${keyturnFormat.sqlHeader(expression, storage)} END`;
    },
    keyOfHeader(header) {
      const isMarker = typeof header === 'string' ? header === foreignHeader : header.equals(markerBytes);
      return isMarker ? foreignKeyId : keyturnFormat.keyOfHeader(header);
    },
  };
}

const markerBytes = Buffer.from(foreignHeader, 'utf8');

/** Two bytes alone begin too many values of others; with the version behind them, next to none. */
function hasMagic(stored: Stored): boolean {
  return typeof stored === 'string'
    ? stored.startsWith(armourPrefix)
    : stored.subarray(0, versionedMagic.length).equals(versionedMagic);
}

function sqlHasVersionedMagic(expression: string, storage: Storage): string {
  return storage === 'text'
    ? keyturnFormat.sqlHasMagic(expression, storage)
    : `(substring((${expression}) FROM 1 FOR ${versionedMagic.length}) = decode('${versionedMagic.toString('hex')}', 'hex'))`;
}
