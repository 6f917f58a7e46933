// Merging pictures of one history: any two, in either order, end as the newer; nothing is taken back.
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { encryptionLimits } from '../../src/crypto/algorithms.js';
import type { DataKeyRow, KeyTables } from '../../src/keys/backup.js';
import { mergeKeyTables, planRestore } from '../../src/keys/merge-backup.js';

const cluster = { id: '0b9c1f0e-6d1c-4f5a-9a51-2f6b7c8d9e01', created_at: '2026-11-22T10:00:00+00:00' };
const keyringId = '1b9c1f0e-6d1c-4f5a-9a51-2f6b7c8d9e01';
const empty: KeyTables = {
  cluster: null,
  schema: 1,
  rootKeys: [],
  keyrings: [],
  dataKeys: [],
  keyUsage: [],
  targets: [],
  lastIds: { key: 0, auditKey: 0, rootKey: 0 },
};

function key(id: number, state: DataKeyRow['state'], more: Partial<DataKeyRow> = {}): DataKeyRow {
  return {
    id,
    keyring_id: keyringId,
    scope_id: keyringId,
    version: id,
    algorithm: 'xaes-256-gcm',
    purpose: 1,
    state,
    compromised: false,
    commitment: `\\x${id.toString(16).padStart(64, '0')}`,
    wraps: state === 'destroyed' ? [] : [{ root_key_id: 1, blob: '\\x01' }],
    ...more,
  };
}

function picture(generation: number, keys: readonly DataKeyRow[], more: Partial<KeyTables> = {}): KeyTables {
  return {
    ...empty,
    cluster,
    rootKeys: [{ id: 1, fingerprint: `\\x${'11'.repeat(32)}`, verification_token: '\\x00' }],
    keyrings: [{ id: keyringId, name: 'customers', root_uris: ['env:A'], generation }],
    dataKeys: [...keys],
    lastIds: { key: keys.length, auditKey: 0, rootKey: 1 },
    ...more,
  };
}

/** A keyring that lives: every step makes a key, goes back to an earlier one, retires one or takes it back. */
const history = fc
  .array(fc.tuple(fc.constantFrom('rotate', 'retire', 'restore', 'back', 'destroy', 'rewrap'), fc.nat(5)), {
    minLength: 1,
    maxLength: 12,
  })
  .map((steps) => {
    let keys = [key(1, 'active')];
    const pictures = [picture(1, keys)];
    for (const [step, at] of steps) {
      const chosen = keys[at % keys.length];
      const move = (from: readonly string[], to: DataKeyRow['state']): void => {
        keys = keys.map((one) => (one === chosen && from.includes(one.state) ? { ...one, state: to } : one));
      };
      if (step === 'rotate')
        keys = [
          ...keys.map((one) => (one.state === 'active' ? { ...one, state: 'decrypt_only' as const } : one)),
          key(keys.length + 1, 'active'),
        ];
      if (step === 'retire') move(['decrypt_only'], 'retired');
      if (step === 'restore') move(['retired'], 'decrypt_only');
      if (step === 'destroy' && chosen?.state === 'retired')
        keys = keys.map((one) => (one === chosen ? key(one.id, 'destroyed') : one));
      if (step === 'back' && chosen?.state === 'decrypt_only')
        keys = keys.map((one) =>
          one === chosen
            ? { ...one, state: 'active' as const }
            : one.state === 'active'
              ? { ...one, state: 'decrypt_only' as const }
              : one,
        );
      if (step === 'rewrap')
        keys = keys.map((one) => ({
          ...one,
          wraps: one.wraps.map((wrap) => ({ ...wrap, blob: `\\x${(at + 16).toString(16)}` })),
        }));
      pictures.push(picture(pictures.length + 1, keys));
    }
    return pictures;
  });

describe('merging', () => {
  test('two pictures of one history, in either order, gives the newer', () => {
    fc.assert(
      fc.property(history, fc.nat(), fc.nat(), (pictures, a, b) => {
        const [older = empty, newer = empty] = [a % pictures.length, b % pictures.length]
          .toSorted((x, y) => x - y)
          .map((at) => pictures[at] ?? empty);
        for (const [first, second] of [
          [older, newer],
          [newer, older],
        ] as const)
          expect(mergeKeyTables(mergeKeyTables(empty, first), second)).toEqual(newer);
      }),
    );
  });

  test('brings back a key that the newer side lost, without the place it had', () => {
    const merged = mergeKeyTables(picture(5, [key(2, 'active')]), picture(3, [key(1, 'active')]));
    expect(merged.dataKeys.map(({ id, state }) => [id, state])).toEqual([
      [1, 'decrypt_only'],
      [2, 'active'],
    ]);
  });

  test('never undoes a destruction, nor that a key was compromised, whichever is newer', () => {
    const gone = picture(3, [key(1, 'destroyed'), key(2, 'active', { compromised: true })]);
    const there = picture(5, [key(1, 'decrypt_only'), key(2, 'active')]);
    for (const [one, other] of [
      [gone, there],
      [there, gone],
    ] as const)
      expect(mergeKeyTables(one, other).dataKeys).toMatchObject([
        { state: 'destroyed', wraps: [] },
        { compromised: true },
      ]);
  });

  test('takes the higher count of encryptions, whichever is newer', () => {
    const used = (generation: number, reserved: number): KeyTables =>
      picture(generation, [key(1, 'active')], { keyUsage: [{ data_key_id: 1, reserved }] });
    for (const [here, there] of [
      [used(5, 10), used(3, 70)],
      [used(3, 70), used(5, 10)],
    ] as const)
      expect(mergeKeyTables(here, there).keyUsage).toEqual([{ data_key_id: 1, reserved: 70 }]);
    expect(mergeKeyTables(picture(1, [key(1, 'active')]), picture(1, [key(1, 'active')])).keyUsage).toEqual([]);
  });

  test('counts a key of a limited algorithm as spent where nobody counted what came after the backup, and only there', () => {
    const limit = encryptionLimits['aes-256-gcm']?.refuse;
    const limited = { algorithm: 'aes-256-gcm' } as const;
    const tables = (generation: number, reserved: number): KeyTables =>
      picture(generation, [key(1, 'active', limited), key(2, 'staged', limited), key(3, 'destroyed', limited)], {
        keyUsage: [{ data_key_id: 1, reserved }],
      });
    const spent = [
      { data_key_id: 1, reserved: limit },
      { data_key_id: 2, reserved: limit },
    ];
    const outcomes = [
      { what: 'the key is not here', here: empty, there: tables(3, 10), spent },
      { what: 'the backup has a later change', here: tables(2, 10), there: tables(3, 10), spent },
      { what: 'the backup has later encryptions', here: tables(4, 9), there: tables(3, 10), spent: spent.slice(0, 1) },
      { what: 'this database is the newer', here: tables(4, 90), there: tables(3, 10), spent: [] },
    ];
    for (const { what, here, there, spent: expected } of outcomes) {
      const merged = mergeKeyTables(here, there);
      const usage = expected.length > 0 ? expected : here.keyUsage;
      expect({ what, usage: merged.keyUsage }).toEqual({ what, usage });
      // The next rotation would activate it, and nothing could be written.
      expect(merged.dataKeys[1]?.state).toBe(expected.length === 2 ? 'decrypt_only' : 'staged');
      const again = mergeKeyTables(merged, there);
      expect(again).toEqual(merged);
    }
    expect(
      planRestore(empty, { ...tables(3, 10), cluster, takenAt: '', auditHead: { n: 0, hash: '' }, rootKeyBytes: [] })
        .spentKeys,
    ).toEqual([1, 2]);
  });

  test('never stages a key again that had left that state', () => {
    const here = picture(3, [key(1, 'active'), key(2, 'decrypt_only')]);
    const there = picture(5, [key(1, 'active'), key(2, 'staged')]);
    expect(mergeKeyTables(here, there).dataKeys.map(({ state }) => state)).toEqual(['active', 'decrypt_only']);
  });

  test.each([
    ['another cluster', picture(1, [], { cluster: { ...cluster, id: keyringId } })],
    ['another schema', picture(1, [], { schema: 2 })],
    ['another key under one id', picture(1, [key(1, 'active', { commitment: `\\x${'ff'.repeat(32)}` })])],
    ['another key of one version', picture(1, [key(9, 'active', { version: 1 })])],
    [
      'another root key under one id',
      picture(1, [], { rootKeys: [{ id: 1, fingerprint: `\\x${'22'.repeat(32)}`, verification_token: '\\x00' }] }),
    ],
    [
      'another keyring of one name',
      picture(1, [], { keyrings: [{ id: cluster.id, name: 'customers', root_uris: [], generation: 1 }] }),
    ],
    ['another target of one table', picture(1, [], { targets: [target(cluster.id)] })],
  ])('%s is refused', (_, backup) => {
    const here = picture(1, [key(1, 'active')], { targets: [target(keyringId)] });
    expect(() => mergeKeyTables(here, backup)).toThrow(expect.objectContaining({ code: 'BACKUP_REFUSED' }));
  });
});

function target(id: string): KeyTables['targets'][number] {
  return { id, keyring_id: keyringId, schema_name: 'public', table_name: 'customer', columns: [] };
}
