import { createCipheriv, createHash, randomBytes } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { recognise } from '../../src/formats/recognise.js';
import { configText } from '../../src/rotation/target-text.js';

function many(make: (at: number) => string | Buffer): (string | Buffer)[] {
  return Array.from({ length: 40 }, (_, at) => make(at));
}

/** What typeorm-encrypted stores by default: nonce and blocks in base64. */
function cbc(at: number): Buffer {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-cbc', randomBytes(32), iv);
  return Buffer.concat([iv, cipher.update('x'.repeat(1 + (at % 40))), cipher.final()]);
}

function gcm(at: number): Buffer {
  const iv = randomBytes(12);
  const cipher = createCipheriv('aes-256-gcm', randomBytes(32), iv);
  return Buffer.concat([iv, cipher.update('x'.repeat(1 + (at % 40))), cipher.final(), cipher.getAuthTag()]);
}

describe('what is recognised', () => {
  test('envelopes, Fernet tokens and PGP messages by their magic, one of them among many', () => {
    const envelope = `kt1.S1QBAgAAAAew2ghdoKGio6SlpqeoqaqrrK2ur7CxsrO0tba3bPoiIcKYjQeb0rAiwXOIQ86Vpb78ElKm0bn-asZV`;
    expect(recognise([envelope, 'plain', 'plain'])).toEqual({
      found: 'keyturn',
      isCertain: true,
      fitting: 1,
      sampled: 3,
    });
    const fernet = Buffer.concat([Buffer.from([0x80]), Buffer.alloc(8), randomBytes(16 + 32 + 32)]).toString(
      'base64url',
    );
    expect(recognise([`${fernet}=`])).toMatchObject({ found: 'fernet' });
    const pgp = Buffer.concat([Buffer.from([0xc3, 0x0d, 0x04]), randomBytes(60)]);
    expect(recognise([pgp])).toMatchObject({ found: 'pgcrypto', isCertain: true });
  });

  test('blocks and tagged messages in base64, hex or bytes as guesses', () => {
    for (const [make, found] of [
      [cbc, 'cbc'],
      [gcm, 'gcm'],
    ] as const) {
      expect(recognise(many((at) => make(at).toString('base64')))).toMatchObject({ found, isCertain: false });
      expect(recognise(many((at) => make(at).toString('hex')))).toMatchObject({ found });
      expect(recognise(many(make))).toMatchObject({ found });
    }
  });
});

describe('what is left alone', () => {
  test('text, digests, images, and too few values to tell', () => {
    expect(recognise([])).toBeUndefined();
    expect(recognise(many((at) => `person-${at}@example.com`))).toBeUndefined();
    expect(recognise(many((at) => createHash('sha256').update(String(at)).digest('hex')))).toBeUndefined();
    expect(recognise(many(() => Buffer.concat([Buffer.from('89504e47', 'hex'), randomBytes(100)])))).toBeUndefined();
    expect(recognise(many((at) => 'aaaa'.repeat(20 + at)))).toBeUndefined();
    expect(recognise([gcm(9), gcm(10)])).toBeUndefined();
    expect(recognise(many((at) => (at % 2 === 0 ? gcm(at).toString('base64') : 'a plain text')))).toBeUndefined();
  });
});

test('a proposed keyturn.yaml quotes what YAML would read otherwise, and sets aside what is not to be registered', () => {
  const column = { path: undefined, bind: undefined, note: undefined, isAside: false };
  expect(
    configText('main', [
      {
        table: 'public.on',
        scope: undefined,
        note: undefined,
        columns: [
          { ...column, name: 'no', bind: 'column' },
          { ...column, name: 'odd name', note: 'a guess', isAside: true },
          { ...column, name: 'profile', path: ['bank', 'iban'] },
        ],
      },
      { table: 'public.b', scope: 'tenant', note: 'unfit', columns: [{ ...column, name: 'x', isAside: true }] },
    ]),
  ).toBe(`keyrings:
  main: { root: env:KEYTURN_ROOT_KEY }
targets:
  - table: public.on
    keyring: main
    columns:
      "no": { bind: column }
#       "odd name": {}  # a guess
      profile:
        paths:
          bank_iban: [bank, iban]
#   - table: public.b  # unfit
#     keyring: main
#     scope: tenant
#     columns:
#       x: {}
`);
});
