// The golden envelopes of test/vectors/golden-v1.json with their keys and cells, ready to use.
import { createSecretKey } from 'node:crypto';
import { algorithmNames } from '../../src/crypto/algorithms.js';
import { createValueKey } from '../../src/crypto/data-key.js';
import { encodeRowKey, type RowKeyPart, type RowKeyTag } from '../../src/crypto/row-key.js';
import { tenantBytes, uuidToBytes } from '../../src/crypto/uuid.js';
import type { DataKeyIdentity, KeyPurpose, ValueKey } from '../../src/crypto/value-key.js';
import type { CellAddress, Storage, Stored } from '../../src/formats/format.js';
import { hex, readJsonVectors } from '../crypto/vector-files.js';

interface GoldenFile {
  readonly cluster: string;
  readonly rootKey: string;
  readonly rootId: number;
  readonly fingerprint: string;
  readonly token: string;
  readonly keys: readonly {
    readonly id: number;
    readonly algorithm: string;
    readonly purpose: KeyPurpose;
    readonly scope: string;
    readonly dataKey: string;
    readonly commitment: string;
    readonly wrap: string;
  }[];
  readonly values: readonly {
    readonly name: string;
    readonly keyId: number;
    readonly storage: Storage;
    readonly tenant: string | null;
    readonly target: string;
    readonly column: string;
    readonly row: readonly (readonly [RowKeyTag, string])[] | null;
    readonly plaintext: string;
    readonly nonce: string;
    readonly stored: string;
  }[];
}

export const goldenFile = readJsonVectors<GoldenFile>('golden-v1.json');

export interface GoldenKey {
  readonly identity: DataKeyIdentity;
  readonly dataKey: Buffer;
  readonly commitment: Buffer;
  readonly wrap: Buffer;
}

export const goldenKeys: readonly GoldenKey[] = goldenFile.keys.map((key) => {
  const algorithm = algorithmNames.find((name) => name === key.algorithm);
  if (algorithm === undefined) throw new Error(`the golden file names an unknown algorithm: ${key.algorithm}`);
  const { id, purpose, scope } = key;
  return {
    identity: { id, algorithm, purpose, scope, cluster: goldenFile.cluster },
    dataKey: hex(key.dataKey),
    commitment: hex(key.commitment),
    wrap: hex(key.wrap),
  };
});

export interface GoldenValue {
  readonly name: string;
  readonly key: ValueKey;
  readonly storage: Storage;
  readonly cell: CellAddress;
  readonly plaintext: Buffer;
  readonly nonce: Buffer;
  readonly stored: Stored;
}

const valueKeys = new Map(
  goldenKeys.map(({ identity, dataKey }) => [identity.id, createValueKey(identity, createSecretKey(dataKey))]),
);

export const goldenValues: readonly GoldenValue[] = goldenFile.values.map((value) => {
  const key = valueKeys.get(value.keyId);
  if (key === undefined) throw new Error(`the golden file lacks key ${value.keyId}`);
  return {
    name: value.name,
    key,
    storage: value.storage,
    cell: {
      tenant: tenantBytes(goldenFile.cluster, value.tenant),
      target: uuidToBytes(value.target),
      column: uuidToBytes(value.column),
      row: value.row === null ? undefined : encodeRowKey(value.row.map(([tag, text]): RowKeyPart => ({ tag, text }))),
    },
    plaintext: Buffer.from(value.plaintext),
    nonce: hex(value.nonce),
    stored: value.storage === 'text' ? value.stored : hex(value.stored),
  };
});

/** The same envelope as bytes, whatever it is stored as; lenient on purpose, so that tests can build bad armour. */
export function bytesOf(stored: Stored): Buffer {
  return typeof stored === 'string' ? Buffer.from(stored.slice(4), 'base64url') : stored;
}

/** Bytes in the given storage, without asking our own encoder. */
export function storedAs(bytes: Buffer, storage: Storage): Stored {
  return storage === 'text' ? `kt1.${bytes.toString('base64url')}` : bytes;
}
