// What a `pkcs11:` URI may say, and what is refused.
import { describe, expect, test } from 'vitest';
import { parsePkcs11Location } from '../../../src/keys/roots/pkcs11-uri.js';

const module = 'module-path=/usr/lib/softhsm/libsofthsm2.so';

describe('pkcs11: URIs', () => {
  test('token, object, id, module and the file of the PIN are read, percent-encoding undone', () => {
    expect(
      parsePkcs11Location(
        `token=Key%20store;serial=ab1;object=gr%C3%BCn;id=%01%ff;type=secret-key?${module}&pin-source=file:///run/pin`,
      ),
    ).toEqual({
      token: { token: 'Key store', serial: 'ab1', manufacturer: undefined, model: undefined },
      object: 'grün',
      id: Buffer.from([1, 255]),
      modulePath: '/usr/lib/softhsm/libsofthsm2.so',
      pinFile: '/run/pin',
    });
  });

  test('a PIN in the URI is refused with the places for it, and not echoed (I7)', () => {
    for (const uri of [`token=a;object=b?${module}&pin-value=8642`, `token=a;object=b;pin-value=8642?${module}`]) {
      expect(() => parsePkcs11Location(uri)).toThrow(/change that PIN.*KEYTURN_PKCS11_PIN_FILE/);
      expect(() => parsePkcs11Location(uri)).not.toThrow(/8642/);
    }
  });

  test.each([
    ['', 'not supported'],
    [`object=b?${module}`, 'which token'],
    [`token=a?${module}`, 'which key'],
    ['token=a;object=b', 'absolute path'],
    ['token=a;object=b?module-path=lib.so', 'absolute path'],
    [`token=a;object=b;slot-id=0?${module}`, 'not supported'],
    [`token=a;token=b;object=b?${module}`, 'twice'],
    [`token=;object=b?${module}`, 'is empty'],
    [`token=a;object=%2?${module}`, 'two hexadecimal digits'],
    [`token=a;object=b;type=private?${module}`, 'secret key'],
    [`token=a;object=b?${module}&pin-source=|cat /run/pin`, 'no program is run'],
    [`token=a;object=b?${module}?x`, 'expected pkcs11:'],
  ])('%j is refused', (location, words) => {
    expect(() => parsePkcs11Location(location)).toThrow(
      expect.objectContaining({ code: 'ROOT_KEY_REFUSED', message: expect.stringContaining(words) as string }) as Error,
    );
  });
});
