// The worked examples of format v1 with every intermediate value, agreed with an independent implementation.
import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { type AlgorithmName, algorithmOfId } from '../../src/crypto/algorithms.js';
import { encodeAssociatedData } from '../../src/crypto/associated-data.js';
import { commitmentOf, createValueKey } from '../../src/crypto/data-key.js';
import { encodeArmour, encodeHeader, headerBytes, headerOfKey } from '../../src/crypto/envelope.js';
import { deriveKey } from '../../src/crypto/key-derivation.js';
import { createRootKey } from '../../src/crypto/root-key.js';
import { encodeRowKey, type RowKeyTag } from '../../src/crypto/row-key.js';
import { uuidToBytes } from '../../src/crypto/uuid.js';
import type { DataKeyIdentity, KeyPurpose } from '../../src/crypto/value-key.js';
import { keyturnFormat } from '../../src/formats/keyturn.js';
import { cryptoPaths } from '../support/crypto-paths.js';
import { hex, readJsonVectors } from '../crypto/vector-files.js';

interface ExampleFile {
  readonly ids: Readonly<Record<'cluster' | 'scope' | 'tenant' | 'dataset' | 'column', string>>;
  readonly K0_hex: string;
  readonly kek_id: number;
  readonly wrap_subkey_hex: string;
  readonly kcv_subkey_hex: string;
  readonly kek_fingerprint_hex: string;
  readonly values: readonly {
    readonly name: string;
    readonly alg: number;
    readonly key_id: number;
    readonly purpose: KeyPurpose;
    readonly dek_hex: string;
    readonly commitment_hex: string;
    readonly header_hex: string;
    readonly nonce_hex: string;
    readonly profile: number;
    readonly row_key: readonly (readonly [RowKeyTag, string])[] | null;
    readonly row_field_hex: string | null;
    readonly aad_hex: string;
    readonly plaintext_utf8: string;
    readonly bytea_hex: string;
    readonly text: string;
  }[];
  readonly wraps: readonly {
    readonly method: number;
    readonly key_id: number;
    readonly dek_hex: string;
    readonly blob_hex: string;
  }[];
}

const file = readJsonVectors<ExampleFile>('keyturn/format_v1_examples.json');
const { cluster, scope } = file.ids;

function identityOf(id: number, algorithm: AlgorithmName, purpose: KeyPurpose): DataKeyIdentity {
  return { id, algorithm, purpose, cluster, scope };
}

function addressOf(row: (typeof file.values)[number]['row_key']) {
  return {
    tenant: uuidToBytes(file.ids.tenant),
    target: uuidToBytes(file.ids.dataset),
    column: uuidToBytes(file.ids.column),
    row: row === null ? undefined : encodeRowKey(row.map(([tag, text]) => ({ tag, text }))),
  };
}

/** Algorithm 3 and padding are reserved: the rest is what format v1 writes today. */
const isBuilt = ({ alg, profile }: (typeof file.values)[number]): boolean => alg <= 2 && profile <= 1;
const built = file.values.filter(isBuilt);
const reserved = file.values.filter((value) => !isBuilt(value));

test('the example file holds three values that are built and two that are reserved', () => {
  expect([built.length, reserved.length]).toEqual([3, 2]);
});

describe.each(built)('format example: $name', (example) => {
  const algorithm = algorithmOfId(example.alg);
  if (algorithm === undefined) throw new Error('a built example has a known algorithm');
  const key = createValueKey(
    identityOf(example.key_id, algorithm, example.purpose),
    createSecretKey(hex(example.dek_hex)),
  );
  const cell = addressOf(example.row_key);
  const nonce = hex(example.nonce_hex);
  const envelope = hex(example.bytea_hex);

  test('commitment and header', () => {
    expect(key.commitment).toEqual(hex(example.commitment_hex));
    expect(encodeHeader(headerOfKey(key))).toEqual(hex(example.header_hex));
  });

  test('row field and associated data', () => {
    expect(cell.row ?? null).toEqual(example.row_field_hex === null ? null : hex(example.row_field_hex));
    expect(encodeAssociatedData(envelope, headerBytes + nonce.length, cell)).toEqual(hex(example.aad_hex));
  });

  test.each(cryptoPaths)('encrypting with the nonce of the example [$path]', ({ createCipher }) => {
    const value = { plaintext: Buffer.from(example.plaintext_utf8), fields: cell };
    expect(createCipher(key).encrypt([value], [nonce])).toEqual([envelope]);
    expect(encodeArmour(envelope)).toBe(example.text);
  });

  test.each(cryptoPaths)('decrypting from both storages [$path]', ({ format }) => {
    expect(format.decrypt(envelope, cell, key)).toEqual(Buffer.from(example.plaintext_utf8));
    expect(format.decrypt(example.text, cell, key)).toEqual(Buffer.from(example.plaintext_utf8));
  });
});

describe.each(reserved)('reserved example: $name', (example) => {
  // A key with the example's bytes and id, so that nothing but the reserved part stands in the way.
  const key = createValueKey(
    identityOf(example.key_id, 'xaes-256-gcm', example.purpose),
    createSecretKey(hex(example.dek_hex)),
  );

  test.each(cryptoPaths)('is refused in both storages [$path]', ({ format }) => {
    const expected = example.alg > 2 ? 'MALFORMED' : 'AUTHENTICATION_FAILED';
    const cell = addressOf(example.row_key);
    expect(format.decrypt(hex(example.bytea_hex), cell, key)).toBe(expected);
    expect(format.decrypt(example.text, cell, key)).toBe(expected);
  });
});

test('an envelope of a reserved algorithm names no key', () => {
  const committed = reserved.filter((example) => example.alg === 3);
  expect(committed).toHaveLength(1);
  for (const { text, bytea_hex } of committed) {
    expect(keyturnFormat.nameKey(text)).toBeUndefined();
    expect(keyturnFormat.nameKey(hex(bytea_hex))).toBeUndefined();
  }
});

describe('root key of the examples', () => {
  test('subkeys and fingerprint', () => {
    const salt = uuidToBytes(cluster);
    expect(deriveKey(hex(file.K0_hex), salt, 'keyturn/v1/wrap').export()).toEqual(hex(file.wrap_subkey_hex));
    expect(deriveKey(hex(file.K0_hex), salt, 'keyturn/v1/kcv').export()).toEqual(hex(file.kcv_subkey_hex));
    const root = createRootKey(hex(file.K0_hex), cluster);
    expect(root.fingerprint).toEqual(hex(file.kek_fingerprint_hex));
    expect(root.shortFingerprint).toBe(file.kek_fingerprint_hex.slice(0, 16));
  });

  test('the wrap by method 1 opens, those by reserved methods are refused', async () => {
    const root = createRootKey(hex(file.K0_hex), cluster);
    const results: [number, string][] = [];
    for (const { method, key_id, dek_hex, blob_hex } of file.wraps) {
      const identity = identityOf(key_id, 'xaes-256-gcm', 1);
      const commitment = commitmentOf(identity, createSecretKey(hex(dek_hex)));
      const result = await root.unwrap(file.kek_id, identity, commitment, hex(blob_hex)).then(
        (key) => key.material.export().toString('hex'),
        (error: { code?: string }) => error.code ?? 'no code',
      );
      results.push([method, result]);
    }
    expect(results).toEqual([
      [1, file.wraps[0]?.dek_hex],
      [2, 'UNWRAP_FAILED'],
      [3, 'UNWRAP_FAILED'],
    ]);
  });
});
