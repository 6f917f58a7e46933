// Strict text encodings: one text per byte string, everything else undefined.
import { describe, expect, test } from 'vitest';
import { decodeBase64Url, decodeHex, encodeBase64Url, indexOfNonHex, isWellFormed } from '../../src/crypto/encoding.js';

const codes = (text: string): Buffer => Buffer.from(text, 'utf8');

describe('hexadecimal', () => {
  test('digits of either case decode', () => {
    expect(decodeHex(codes('00ffAbCd09'))).toEqual(Buffer.from([0, 255, 0xab, 0xcd, 9]));
    expect(decodeHex(codes(''))).toEqual(Buffer.alloc(0));
  });

  test.each(['0', '00gg00', 'zz', ' 00', '00 ', '0x00', '00\n', '0\u0130', 'à0', '00é', '/0', ':0', '@0', 'G0', '`0'])(
    '%j is not hexadecimal',
    (text) => {
      expect(decodeHex(codes(text))).toBeUndefined();
    },
  );

  test('the first character that is no digit is found by place', () => {
    expect(indexOfNonHex(codes('00fg'))).toBe(3);
    expect(indexOfNonHex(codes('x'))).toBe(0);
    expect(indexOfNonHex(codes('00ff'))).toBe(-1);
  });
});

describe('base64url', () => {
  test('the examples of RFC 4648, without padding', () => {
    const examples = { '': '', f: 'Zg', fo: 'Zm8', foo: 'Zm9v', foob: 'Zm9vYg', fooba: 'Zm9vYmE', foobar: 'Zm9vYmFy' };
    for (const [plain, text] of Object.entries(examples)) {
      expect(encodeBase64Url(Buffer.from(plain))).toBe(text);
      expect(decodeBase64Url(text)).toEqual(Buffer.from(plain));
    }
    expect(decodeBase64Url('-_-_')).toEqual(Buffer.from('fbffbf', 'hex'));
  });

  test.each([
    'Zg==',
    'Zg=',
    'Zh',
    'Zm9',
    'Z',
    'Zm9v\n',
    ' Zm9v',
    'Zm 9v',
    '+/+/',
    'Zm9v!!',
    '!!Zg*==junk',
    'Zm9v.',
    'Zm9\u0176',
  ])('%j is not canonical base64url', (text) => {
    expect(decodeBase64Url(text)).toBeUndefined();
  });
});

test('half a surrogate pair is not well-formed, a whole one is', () => {
  for (const text of ['\ud800', '\udfff', 'a\ud83c', '\udf0da', '\udf0d\ud83c']) expect(isWellFormed(text)).toBe(false);
  for (const text of ['', 'a', 'Zoë', '\ud83c\udf0d', '\ud7ff\ue000']) expect(isWellFormed(text)).toBe(true);
});
