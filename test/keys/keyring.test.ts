// A keyring in memory: one key encrypts, an id selects one key or says why there is none, and printing shows ids only.
import { inspect } from 'node:util';
import { describe, expect, test } from 'vitest';
import { createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import type { KeyId, ValueKey } from '../../src/crypto/value-key.js';
import { activeKeyOf, createKeyring, keyTitle } from '../../src/keys/keyring.js';
import type { StoredKey } from '../../src/keys/key-store.js';
import type { KeyState } from '../../src/keys/states.js';

const cluster = '00112233-4455-4677-8899-aabbccddeeff';
const scope = '11111111-1111-4111-8111-111111111111';

function stored(id: number, state: KeyState, isCompromised = false): StoredKey {
  return {
    id,
    version: id - 10,
    state,
    isCompromised,
    algorithm: 'aes-256-gcm',
    commitment: Buffer.alloc(32, id),
    createdAt: new Date(0),
    activatedAt: undefined,
    activatedGeneration: undefined,
    retiredAt: undefined,
    wraps: [{ rootId: 1, blob: Buffer.from('wrap') }],
  };
}

function opened(...ids: readonly number[]): Map<KeyId, ValueKey> {
  return new Map(
    ids.map((id) => [
      id,
      createValueKey({ id, algorithm: 'aes-256-gcm', purpose: 1, cluster, scope }, generateDataKey()),
    ]),
  );
}

function keyring(keys: readonly StoredKey[], held: Map<KeyId, ValueKey>) {
  return createKeyring({ id: scope, name: 'customers', cluster, generation: 7, keys }, held);
}

describe('a keyring', () => {
  const held = opened(11, 12, 13);
  const states: KeyState[] = ['decrypt_only', 'active', 'staged', 'retired', 'pending_destruction', 'destroyed'];
  const ring = keyring(
    states.map((state, at) => stored(11 + at, state)),
    held,
  );

  test('I5 has one key that encrypts, the active one, and lists the others newest first', () => {
    expect(ring.active).toBe(held.get(12));
    expect(activeKeyOf(ring)).toBe(held.get(12));
    expect(ring.held.map((key) => key.id)).toEqual([13, 12, 11]);
    expect(ring.keys.map((key) => key.version)).toEqual([6, 5, 4, 3, 2, 1]);
  });

  test('I8 an id gives exactly its key, or says why there is none', () => {
    expect(ring.lookup(11)).toEqual({ status: 'held', key: held.get(11) });
    expect([14, 15, 16, 17, '11'].map((id) => ring.lookup(id).status)).toEqual([
      'retired',
      'retired',
      'destroyed',
      'unknown',
      'unknown',
    ]);
    expect(keyring([stored(11, 'decrypt_only')], opened()).lookup(11)).toEqual({ status: 'not_held' });
  });

  test('does not encrypt with a compromised key, and says which command shows why', () => {
    const ringed = keyring([stored(11, 'active', true)], opened(11));
    expect(ringed.active).toBeUndefined();
    expect(ringed.lookup(11).status).toBe('held');
    expect(() => activeKeyOf(ringed)).toThrow(
      expect.objectContaining({
        code: 'KEY_NOT_HELD',
        message: 'keyring customers has no active key that this process holds; run: keyturn key list',
      }),
    );
  });

  test('cannot be changed', () => {
    expect(Object.isFrozen(ring)).toBe(true);
  });

  test('I7 prints ids and states, no key material', () => {
    const material = held.get(12)?.material.export().toString('hex') ?? '';
    const printed = `${inspect(ring, { depth: 6 })} ${JSON.stringify(ring)}`;
    expect(printed).toContain('data key 12 (aes-256-gcm)');
    expect(material).toHaveLength(64);
    expect(printed).not.toContain(material);
    expect(printed).not.toContain(Buffer.from(material, 'hex').toString('base64'));
  });

  test('names a key by keyring, version and id', () => {
    expect(keyTitle('customers', { version: 3, id: 17 })).toBe('customers v3 (id 17)');
  });
});
