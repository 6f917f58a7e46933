// One cell in memory: which key opens it, what reencrypting answers for every state of the key, and that nothing but the
// exact plaintext or an error ever comes back.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type Cell, check, decrypt, encrypt, rebind, reencrypt, reencryptAll } from '../src/codec.js';
import { createValueKey, generateDataKey } from '../src/crypto/data-key.js';
import type { KeyId, ValueKey } from '../src/crypto/value-key.js';
import { KeyturnError } from '../src/errors.js';
import type { Format } from '../src/formats/format.js';
import { cryptoPaths } from './support/crypto-paths.js';
import { createKeyring, type Keyring } from '../src/keys/keyring.js';
import type { StoredKey } from '../src/keys/key-store.js';
import type { KeyState } from '../src/keys/states.js';

const cluster = '00112233-4455-4677-8899-aabbccddeeff';
const scope = '11111111-1111-4111-8111-111111111111';

function newKey(id: number): ValueKey {
  return createValueKey({ id, algorithm: 'xaes-256-gcm', purpose: 1, cluster, scope }, generateDataKey());
}

const [one, two] = [newKey(1), newKey(2)];

/** `states`: the rows of the key table by id; `held`: the keys this process could open. */
function keyringOf(
  states: Readonly<Record<number, KeyState>>,
  held: readonly ValueKey[],
  compromised = false,
): Keyring {
  const keys = Object.entries(states).map(
    ([id, state]): StoredKey => ({
      id: Number(id),
      version: Number(id),
      state,
      isCompromised: compromised && state === 'active',
      algorithm: 'xaes-256-gcm',
      commitment: Buffer.alloc(32),
      createdAt: new Date(0),
      activatedAt: undefined,
      activatedGeneration: undefined,
      retiredAt: undefined,
      wraps: [],
    }),
  );
  const opened = new Map<KeyId, ValueKey>(held.map((key) => [key.id, key]));
  return createKeyring({ id: scope, name: 'customers', cluster, generation: 1, keys }, opened);
}

const first = keyringOf({ 1: 'active' }, [one]);
const second = keyringOf({ 1: 'decrypt_only', 2: 'active' }, [one, two]);

describe.each(cryptoPaths)('one cell in memory [$path]', ({ format: keyturnFormat }) => {
  function cellAt(row: number, format: Format = keyturnFormat, storage: Cell['storage'] = 'text'): Cell {
    const [tenant, target, column] = [1, 2, 3].map((byte) => Buffer.alloc(16, byte)) as [Buffer, Buffer, Buffer];
    return { address: { tenant, target, column, row: Buffer.from([row]) }, format, storage };
  }

  /** Our format as one that works on a single value at a time, and as one that takes decrypting and encrypting apart. */
  const { decryptAll: _decryptAll, encryptAll: _encryptAll, reencryptAll: _reencryptAll, ...oneByOne } = keyturnFormat;
  const { reencryptAll: _, ...inSteps } = keyturnFormat;

  const here = cellAt(1);
  const elsewhere = cellAt(2);
  const text = (value: string): Buffer => Buffer.from(value);

  function errorOf(work: () => unknown): KeyturnError {
    try {
      work();
    } catch (error) {
      if (error instanceof KeyturnError) return error;
      throw error;
    }
    throw new Error('expected a KeyturnError, nothing was thrown');
  }

  describe('encrypting and decrypting', () => {
    test('I1 the active key encrypts, its id comes back, and a value under an earlier key is stale', () => {
      const stored = encrypt(first, here, text('Ada'));
      expect(decrypt(first, here, stored)).toEqual({ plaintext: text('Ada'), keyId: 1, stale: false });
      expect(decrypt(second, here, stored)).toEqual({ plaintext: text('Ada'), keyId: 1, stale: true });
      expect(decrypt(second, here, encrypt(second, here, text('')))).toEqual({
        plaintext: text(''),
        keyId: 2,
        stale: false,
      });
    });

    test('a value under a key that is only staged here is ahead, not stale: whoever wrote it knows of its activation', () => {
      const behind = keyringOf({ 1: 'active', 2: 'staged' }, [one, two]);
      const stored = encrypt(second, here, text('Ada'));
      expect(decrypt(behind, here, stored)).toEqual({ plaintext: text('Ada'), keyId: 2, stale: false });
    });

    for (const { keyring, what } of [
      { what: 'no active key', keyring: keyringOf({ 1: 'decrypt_only' }, [one]) },
      { what: 'only a staged key', keyring: keyringOf({ 1: 'staged' }, [one]) },
      { what: 'an active key that this process does not hold', keyring: keyringOf({ 1: 'active' }, []) },
      { what: 'a compromised active key', keyring: keyringOf({ 1: 'active' }, [one], true) },
    ]) {
      test(`I5 ${what} encrypts nothing`, () => {
        expect(errorOf(() => encrypt(keyring, here, text('Ada')))).toMatchObject({ code: 'KEY_NOT_HELD' });
        expect(errorOf(() => reencrypt(keyring, here, encrypt(first, here, text('Ada'))))).toMatchObject({
          code: 'KEY_NOT_HELD',
        });
      });
    }

    test('I2 a value at another cell is one error, the same as for altered bytes: no cause, no bytes (I7)', () => {
      const stored = encrypt(first, here, text('Ada')) as string;
      const moved = errorOf(() => decrypt(first, elsewhere, stored));
      const altered = errorOf(() => decrypt(first, here, `${stored.slice(0, -3)}AAA`));
      const cut = errorOf(() => decrypt(first, here, stored.slice(0, -4)));
      for (const error of [moved, altered, cut]) {
        expect(error).toMatchObject({ code: 'DECRYPT_FAILED', details: { keyId: '1' } });
        expect(error.message).toBe(moved.message);
        expect(error.cause).toBeUndefined();
        expect(`${error.message} ${JSON.stringify(error.details)}`).not.toContain(stored.slice(20, 30));
      }
    });

    test('I8 what is no envelope is an error, never passed through as plaintext', () => {
      for (const stored of ['', 'Ada', 'kt1.', 'kt2.S1QBAgAAAAew2ghd', 'KT1.S1QBAgAAAAew2ghd']) {
        expect(errorOf(() => decrypt(first, here, stored))).toMatchObject({ code: 'DECRYPT_FAILED' });
      }
      expect(errorOf(() => decrypt(first, cellAt(1, keyturnFormat, 'bytes'), Buffer.alloc(0)))).toMatchObject({
        code: 'DECRYPT_FAILED',
      });
    });

    for (const { state, code, says } of [
      { state: 'decrypt_only', code: 'KEY_NOT_HELD', says: /names key 1, which this process does not hold$/ },
      { state: 'retired', code: 'KEY_NOT_HELD', says: /because it is retired; undo with: keyturn key restore/ },
      { state: 'pending_destruction', code: 'KEY_NOT_HELD', says: /because it is retired/ },
      { state: 'destroyed', code: 'DECRYPT_FAILED', says: /does not decrypt at this cell/ },
      { state: 'unknown', code: 'KEY_NOT_HELD', says: /names key 1, which this process does not hold$/ },
    ] as readonly { state: KeyState | 'unknown'; code: string; says: RegExp }[]) {
      test(`a value under a key that is ${state} and not held here is ${code}`, () => {
        const stored = encrypt(first, here, text('Ada'));
        const keyring = keyringOf(state === 'unknown' ? { 2: 'active' } : { 1: state, 2: 'active' }, [two]);
        const error = errorOf(() => decrypt(keyring, here, stored));
        expect(error).toMatchObject({ code, details: { keyId: '1' } });
        expect(error.message).toMatch(says);
      });
    }
  });

  describe('reencrypting', () => {
    test('keeps every plaintext, in both kinds of storage, and names the active key (I1)', () => {
      const storage = fc.constantFrom<Cell['storage']>('text', 'bytes');
      fc.assert(
        fc.property(fc.uint8Array({ maxLength: 300 }), storage, fc.nat(255), (plaintext, kept, row) => {
          const cell = cellAt(row, keyturnFormat, kept);
          const moved = reencrypt(second, cell, encrypt(first, cell, plaintext));
          if (moved.outcome !== 'reencrypted') throw new Error(`expected reencrypted, got ${moved.outcome}`);
          expect(decrypt(second, cell, moved.replacement)).toEqual({
            plaintext: Buffer.from(plaintext),
            keyId: 2,
            stale: false,
          });
          expect(reencrypt(second, cell, moved.replacement)).toEqual({ outcome: 'current' });
        }),
      );
    });

    test('ten keys in a row, each on the result of the last, keep the plaintext', () => {
      const keys = Array.from({ length: 10 }, (_, at) => newKey(at + 1));
      let stored = encrypt(keyringOf({ 1: 'active' }, keys), here, text('Grüße 👋'));
      for (const key of keys.slice(1)) {
        const states = Object.fromEntries(keys.map(({ id }) => [id, id === key.id ? 'active' : 'decrypt_only']));
        const moved = reencrypt(keyringOf(states as Record<number, KeyState>, keys), here, stored);
        if (moved.outcome !== 'reencrypted') throw new Error(`expected reencrypted, got ${moved.outcome}`);
        stored = moved.replacement;
      }
      expect(decrypt(keyringOf({ 10: 'active' }, keys), here, stored)).toMatchObject({
        plaintext: text('Grüße 👋'),
        keyId: 10,
      });
    });

    const stale = encrypt(first, here, text('Ada')) as string;
    const impostor = newKey(1);

    for (const { stored, cause, keyId, what } of [
      { what: 'altered', stored: `${stale.slice(0, -3)}AAA`, cause: 'AUTHENTICATION_FAILED', keyId: 1 },
      { what: 'cut short', stored: stale.slice(0, 60), cause: 'MALFORMED', keyId: 1 },
      { what: 'with padding behind', stored: `${stale}=`, cause: 'MALFORMED', keyId: 1 },
      { what: 'no envelope', stored: 'Ada', cause: 'NOT_AN_ENVELOPE', keyId: undefined },
    ]) {
      test(`a value that is ${what} fails with ${cause}`, () => {
        expect(reencrypt(second, here, stored)).toEqual({ outcome: 'failed', cause, keyId });
        expect(check(second, here, stored)).toEqual({ outcome: 'failed', cause, keyId });
      });
    }

    for (const { keyring, expected, what } of [
      {
        what: 'nobody has a row of',
        keyring: keyringOf({ 2: 'active' }, [two]),
        expected: { outcome: 'failed', cause: 'UNKNOWN_KEY', keyId: 1 },
      },
      {
        what: 'was destroyed',
        keyring: keyringOf({ 1: 'destroyed', 2: 'active' }, [two]),
        expected: { outcome: 'failed', cause: 'KEY_DESTROYED', keyId: 1 },
      },
      {
        what: 'is another key under the same id',
        keyring: keyringOf({ 1: 'decrypt_only', 2: 'active' }, [impostor, two]),
        expected: { outcome: 'failed', cause: 'KEY_CHECK_DIFFERS', keyId: 1 },
      },
      {
        what: 'is not held here',
        keyring: keyringOf({ 1: 'decrypt_only', 2: 'active' }, [two]),
        expected: { outcome: 'blocked', cause: 'KEY_NOT_HELD', keyId: 1 },
      },
      {
        what: 'was retired',
        keyring: keyringOf({ 1: 'retired', 2: 'active' }, [two]),
        expected: { outcome: 'blocked', cause: 'KEY_RETIRED', keyId: 1 },
      },
      {
        what: 'waits for its destruction',
        keyring: keyringOf({ 1: 'pending_destruction', 2: 'active' }, [two]),
        expected: { outcome: 'blocked', cause: 'KEY_RETIRED', keyId: 1 },
      },
    ] as readonly { what: string; keyring: Keyring; expected: object }[]) {
      test(`whose fault it is when a value names a key that ${what}`, () => {
        expect(reencrypt(keyring, here, stale)).toEqual(expected);
        expect(check(keyring, here, stale)).toEqual(expected);
      });
    }

    test('I2 a value moved from another cell fails and is not rewritten', () => {
      expect(reencrypt(second, elsewhere, stale)).toEqual({
        outcome: 'failed',
        cause: 'AUTHENTICATION_FAILED',
        keyId: 1,
      });
    });

    test('a replacement that does not decrypt to the plaintext it came from is not written', () => {
      const wrong: readonly Format['encrypt'][] = [
        // Encrypts something else.
        (_, cell, key, storage) => keyturnFormat.encrypt(text('Eve'), cell, key, storage),
        // Encrypts for another cell.
        (plaintext, _, key, storage) => keyturnFormat.encrypt(plaintext, elsewhere.address, key, storage),
        // Names a key that nobody holds.
        (plaintext, cell, _, storage) => keyturnFormat.encrypt(plaintext, cell, newKey(9), storage),
        // Is no envelope at all.
        () => 'Ada',
      ];
      for (const encryptWrongly of wrong) {
        const together: Format = {
          ...inSteps,
          encryptAll: (values, key, storage) =>
            values.map(({ plaintext, cell }) => encryptWrongly(plaintext, cell, key, storage)),
        };
        for (const format of [{ ...oneByOne, encrypt: encryptWrongly }, together]) {
          expect(reencrypt(second, cellAt(1, format), stale)).toEqual({
            outcome: 'failed',
            cause: 'VERIFICATION_FAILED',
            keyId: 2,
          });
        }
      }
    });

    test('a replacement that was made at a stroke and does not name the active key is not written', () => {
      for (const replacement of ['Ada', stale, encrypt(keyringOf({ 9: 'active' }, [newKey(9)]), here, text('Ada'))]) {
        const format: Format = { ...inSteps, reencryptAll: (values) => values.map(() => ({ replacement })) };
        expect(reencrypt(second, cellAt(1, format), stale)).toEqual({
          outcome: 'failed',
          cause: 'VERIFICATION_FAILED',
          keyId: 2,
        });
      }
    });

    test('a format that answers fewer values than it was given loses none: the rest fails', () => {
      for (const format of [
        { ...inSteps, encryptAll: () => [] },
        { ...inSteps, reencryptAll: () => [] },
      ])
        expect(reencrypt(second, cellAt(1, format), stale)).toMatchObject({ outcome: 'failed' });
    });

    test.each([
      ['together', keyturnFormat],
      ['in steps', inSteps],
      ['one by one', oneByOne],
    ])('many values, worked on %s, keep their order whatever becomes of each', (_, format) => {
      const values = Array.from({ length: 40 }, (__, at) => {
        const cell = cellAt(at, format);
        const stored = [
          encrypt(first, cell, text(`value ${at}`)),
          encrypt(second, cell, text(`value ${at}`)),
          'no envelope',
          encrypt(first, elsewhere, text('moved')),
        ][at % 4];
        return { at, cell: cell.address, stored: stored ?? '' };
      });
      const examined = reencryptAll(second, cellAt(0, format), values);
      const reread = examined.map((answer, at) =>
        answer.outcome === 'reencrypted'
          ? decrypt(second, cellAt(at, format), answer.replacement).plaintext.toString()
          : answer,
      );
      expect(reread).toEqual(
        values.map(
          ({ at }) =>
            [
              `value ${at}`,
              { outcome: 'current' },
              { outcome: 'failed', cause: 'NOT_AN_ENVELOPE', keyId: undefined },
              { outcome: 'failed', cause: 'AUTHENTICATION_FAILED', keyId: 1 },
            ][at % 4],
        ),
      );
    });
  });

  describe('checking', () => {
    test('answers current for whatever decrypts, under any held key, and changes nothing', () => {
      expect(check(second, here, encrypt(first, here, text('Ada')))).toEqual({ outcome: 'current' });
      expect(check(second, here, encrypt(second, here, text('')))).toEqual({ outcome: 'current' });
    });
  });

  describe('rebinding', () => {
    const open = (cell: Cell, stored: ReturnType<typeof encrypt>): string => {
      try {
        return decrypt(second, cell, stored).plaintext.toString();
      } catch (error) {
        return error instanceof KeyturnError ? error.code : String(error);
      }
    };

    test('I2 moves a value from its former cell to the present one, under the active key, and never leaves it at both', () => {
      const stored = encrypt(first, elsewhere, text('moved'));
      const examined = rebind(second, here, elsewhere.address, stored);
      if (examined.outcome !== 'reencrypted') throw new Error(examined.outcome);
      const { replacement } = examined;
      expect([open(here, replacement), open(elsewhere, replacement), open(here, stored)]).toEqual([
        'moved',
        'DECRYPT_FAILED',
        'DECRYPT_FAILED',
      ]);
      expect(keyturnFormat.nameKey(replacement)).toBe(2);
      expect(rebind(second, here, elsewhere.address, replacement)).toEqual({ outcome: 'current' });
    });

    test('leaves what decrypts where it is, under whatever key, and says why the rest does at neither address', () => {
      const stored = encrypt(first, here, text('home'));
      expect(rebind(second, here, elsewhere.address, stored)).toEqual({ outcome: 'current' });
      const stranger = encrypt(first, cellAt(3), text('stranger'));
      expect(rebind(second, here, elsewhere.address, stranger)).toEqual({
        outcome: 'failed',
        cause: 'AUTHENTICATION_FAILED',
        keyId: 1,
      });
      expect(rebind(second, here, elsewhere.address, 'in clear')).toMatchObject({ cause: 'NOT_AN_ENVELOPE' });
      const retired = keyringOf({ 1: 'retired', 2: 'active' }, [two]);
      expect(rebind(retired, here, elsewhere.address, encrypt(first, elsewhere, text('old')))).toEqual({
        outcome: 'blocked',
        cause: 'KEY_RETIRED',
        keyId: 1,
      });
    });
  });
});
