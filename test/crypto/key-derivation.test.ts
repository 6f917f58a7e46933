// HKDF-SHA-256 against Wycheproof. Ours always gives 32 bytes; a longer or shorter answer shares its beginning.
import { expect, test } from 'vitest';
import { deriveKey } from '../../src/crypto/key-derivation.js';
import { hex, readJsonVectors } from './vector-files.js';

interface HkdfFile {
  readonly testGroups: readonly {
    readonly tests: readonly {
      readonly tcId: number;
      readonly ikm: string;
      readonly salt: string;
      readonly info: string;
      readonly okm: string;
      readonly result: string;
    }[];
  }[];
}

test('derived keys begin as the 83 valid HKDF-SHA-256 answers of Wycheproof do', () => {
  const { testGroups } = readJsonVectors<HkdfFile>('wycheproof/hkdf_sha256_test.json');
  const cases = testGroups.flatMap((group) => group.tests).filter((one) => one.result === 'valid');
  expect(cases).toHaveLength(83);
  for (const { tcId, ikm, salt, info, okm } of cases) {
    const derived = deriveKey(hex(ikm), hex(salt), hex(info)).export();
    const shared = Math.min(32, okm.length / 2);
    expect(derived, `case ${tcId}`).toHaveLength(32);
    expect(derived.subarray(0, shared), `case ${tcId}`).toEqual(hex(okm).subarray(0, shared));
  }
});
