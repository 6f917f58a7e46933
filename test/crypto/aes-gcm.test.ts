// AES-256-GCM against Wycheproof and NIST: what is inside our lengths decides, everything outside is refused.
import { createSecretKey } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { decryptAesGcm, encryptAesGcm } from '../../src/crypto/aes-gcm.js';
import { cryptoPaths, type CryptoPath } from '../support/crypto-paths.js';
import { hex, type NistCase, readJsonVectors, readNistVectors } from './vector-files.js';

interface AeadFile {
  readonly testGroups: readonly {
    readonly ivSize: number;
    readonly keySize: number;
    readonly tagSize: number;
    readonly tests: readonly {
      readonly tcId: number;
      readonly key: string;
      readonly iv: string;
      readonly aad: string;
      readonly msg: string;
      readonly ct: string;
      readonly tag: string;
      readonly result: string;
    }[];
  }[];
}

/** The plaintext, undefined for a tag that does not verify, or 'refused' for lengths that are not ours. */
function attempt(
  { openAead }: CryptoPath,
  key: Buffer,
  iv: Buffer,
  aad: Buffer,
  ciphertext: Buffer,
  tag: Buffer,
): Buffer | undefined | 'refused' {
  try {
    return openAead('aes-256-gcm', key).decrypt(iv, aad, { ciphertext, tag });
  } catch {
    return 'refused';
  }
}

const [onNode] = cryptoPaths as [CryptoPath];

describe('AES-256-GCM and Wycheproof', () => {
  const groups = readJsonVectors<AeadFile>('wycheproof/aes_gcm_test.json').testGroups;
  const isOurs = (group: AeadFile['testGroups'][number]): boolean =>
    group.ivSize === 96 && group.tagSize === 128 && group.keySize === 256;

  const ours = groups.filter(isOurs).flatMap((group) => group.tests);

  test.each(cryptoPaths)('the 39 valid cases of our lengths decrypt, and encrypt to the same bytes [$path]', (path) => {
    const valid = ours.filter((one) => one.result === 'valid');
    expect(valid).toHaveLength(39);
    for (const { tcId, key, iv, aad, msg, ct, tag } of valid) {
      expect(attempt(path, hex(key), hex(iv), hex(aad), hex(ct), hex(tag)), `case ${tcId}`).toEqual(hex(msg));
      const encrypted = path.openAead('aes-256-gcm', hex(key)).encrypt(hex(iv), hex(aad), hex(msg));
      expect(encrypted, `case ${tcId}`).toEqual({ ciphertext: hex(ct), tag: hex(tag) });
    }
  });

  test.each(cryptoPaths)('the 27 invalid cases of our lengths do not decrypt [$path]', (path) => {
    const invalid = ours.filter((one) => one.result === 'invalid');
    expect(invalid).toHaveLength(27);
    for (const { tcId, key, iv, aad, ct, tag } of invalid) {
      expect(attempt(path, hex(key), hex(iv), hex(aad), hex(ct), hex(tag)), `case ${tcId}`).toBeUndefined();
    }
  });

  test('every group of other lengths is refused, also where the file calls it valid', () => {
    const others = groups.filter((group) => !isOurs(group)).flatMap((group) => group.tests);
    expect(others).toHaveLength(250);
    for (const { tcId, key, iv, aad, ct, tag } of others) {
      expect(attempt(onNode, hex(key), hex(iv), hex(aad), hex(ct), hex(tag)), `case ${tcId}`).toBe('refused');
    }
  });
});

describe('AES-256-GCM and NIST CAVP', () => {
  const isOurs = ({ values }: NistCase): boolean => values.get('IVlen') === '96' && values.get('Taglen') === '128';
  const open = (path: CryptoPath, { values }: NistCase): Buffer | undefined | 'refused' => {
    const [key, iv, aad, ciphertext, tag] = ['Key', 'IV', 'AAD', 'CT', 'Tag'].map((name) => hex(values.get(name)));
    if (!key || !iv || !aad || !ciphertext || !tag) throw new Error('a case of the file is incomplete');
    return attempt(path, key, iv, aad, ciphertext, tag);
  };

  test.each(cryptoPaths)('375 encryptions give the ciphertext and tag of the file [$path]', ({ openAead }) => {
    const cases = readNistVectors('nist-cavp/gcmEncryptExtIV256.rsp.gz').filter(isOurs);
    expect(cases).toHaveLength(375);
    for (const { values } of cases) {
      const aead = openAead('aes-256-gcm', hex(values.get('Key')));
      const encrypted = aead.encrypt(hex(values.get('IV')), hex(values.get('AAD')), hex(values.get('PT')));
      expect(encrypted).toEqual({ ciphertext: hex(values.get('CT')), tag: hex(values.get('Tag')) });
    }
  });

  test.each(cryptoPaths)('375 decryptions open, of which 191 must fail [$path]', (path) => {
    const cases = readNistVectors('nist-cavp/gcmDecrypt256.rsp.gz').filter(isOurs);
    expect(cases).toHaveLength(375);
    expect(cases.filter((one) => one.mustFail)).toHaveLength(191);
    for (const one of cases) expect(open(path, one)).toEqual(one.mustFail ? undefined : hex(one.values.get('PT')));
  });

  test('other nonce and tag lengths of the NIST files are refused', () => {
    const cases = readNistVectors('nist-cavp/gcmDecrypt256.rsp.gz').filter((one) => !isOurs(one));
    expect(cases).toHaveLength(7500);
    for (const one of cases) expect(open(onNode, one)).toBe('refused');
  });
});

test('encrypting with a nonce of another length is refused with a code', () => {
  const key = createSecretKey(Buffer.alloc(32, 1));
  for (const length of [0, 1, 11, 13, 16, 24]) {
    expect(() => encryptAesGcm(key, Buffer.alloc(length), Buffer.alloc(0), Buffer.alloc(1))).toThrow(
      expect.objectContaining({ code: 'VALUE_INVALID', message: `a GCM nonce has 12 bytes, got ${length}` }),
    );
  }
});

test('decrypting with a tag of another length is refused with a code', () => {
  const key = createSecretKey(Buffer.alloc(32, 1));
  const nonce = Buffer.alloc(12);
  const { ciphertext, tag } = encryptAesGcm(key, nonce, Buffer.alloc(0), Buffer.alloc(1));
  for (const other of [
    Buffer.alloc(0),
    tag.subarray(0, 4),
    tag.subarray(0, 15),
    Buffer.concat([tag, Buffer.alloc(1)]),
  ]) {
    expect(() => decryptAesGcm(key, nonce, Buffer.alloc(0), { ciphertext, tag: other })).toThrow(
      expect.objectContaining({ code: 'VALUE_INVALID', message: `a GCM tag has 16 bytes, got ${other.length}` }),
    );
  }
});
