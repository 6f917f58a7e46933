// Reencrypting a slice in a thread gives what reencrypting it on the event loop gives, and a thread that dies harms nothing
// but the slice it had.
import { randomUUID } from 'node:crypto';
import { afterEach, describe, expect, test } from 'vitest';
import { decrypt, encrypt } from '../../src/codec.js';
import { createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import type { ValueKey } from '../../src/crypto/value-key.js';
import { createCellBuilder } from '../../src/engine/cells-of-target.js';
import { createInlineCrypto, createThreadCrypto, type SliceCrypto } from '../../src/engine/slice-crypto.js';
import { cellCodes, type TreatedRows } from '../../src/engine/treat-rows.js';
import { createKeyring, type Keyring } from '../../src/keys/keyring.js';
import type { KeyState } from '../../src/keys/states.js';
import type { Target } from '../../src/rotation/target.js';
import type { CellRow } from '../../src/store/cell-row.js';

const cluster = randomUUID();
const scope = randomUUID();
const keys = [1, 2].map((id) =>
  createValueKey({ id, algorithm: 'xaes-256-gcm', purpose: 1, cluster, scope }, generateDataKey()),
);

function keyringOf(states: readonly KeyState[], held: readonly ValueKey[] = keys): Keyring {
  const rows = states.map((state, at) => ({
    id: at + 1,
    version: at + 1,
    state,
    isCompromised: false,
    algorithm: 'xaes-256-gcm' as const,
    commitment: keys[at]?.commitment ?? Buffer.alloc(32),
    createdAt: new Date(0),
    activatedAt: undefined,
    activatedGeneration: undefined,
    retiredAt: undefined,
    wraps: [],
  }));
  return createKeyring(
    { id: scope, name: 'customers', cluster, generation: states.length, keys: rows },
    new Map(held.map((key) => [key.id, key])),
  );
}

const before = keyringOf(['active', 'staged']);
const after = keyringOf(['decrypt_only', 'active']);

const target: Target = {
  id: randomUUID(),
  keyringId: scope,
  keyringName: 'customers',
  tableOid: 1,
  schema: 'public',
  table: 'customer',
  key: [{ name: 'id', type: 'bigint', tag: 'int' }],
  scope: undefined,
  columns: (['text', 'bytea'] as const).map((sqlType) => ({
    id: randomUUID(),
    name: sqlType,
    columnName: sqlType,
    path: undefined,
    sqlType,
    maxLength: undefined,
    format: 'keyturn',
    bind: 'row' as const,
  })),
};
const builder = createCellBuilder(target, cluster);

function rowOf(id: number, keyring: Keyring): CellRow {
  const cellOf = builder.cellsOf([String(id)], null);
  const [text, bytes] = [0, 1].map((column) => encrypt(keyring, cellOf(column), Buffer.from(`value ${id}`)));
  return {
    key: [String(id)],
    scope: null,
    values: [id % 4 === 0 ? null : String(text), Buffer.isBuffer(bytes) ? bytes.toString('hex') : null],
  };
}

const stale = Array.from({ length: 100 }, (_, at) => rowOf(at + 1, before));
const damaged: CellRow = { key: ['101'], scope: null, values: ['kt1.damaged', null] };
const rows = [...stale, damaged, rowOf(102, after)];

/** Values of a packed bytea[] or text[], as its header says. */
function unpack(array: Uint8Array): (Buffer | null)[] {
  const packed = Buffer.from(array);
  const values: (Buffer | null)[] = [];
  for (let at = 20; at < packed.length; ) {
    const length = packed.readInt32BE(at);
    values.push(length < 0 ? null : packed.subarray(at + 4, at + 4 + length));
    at += 4 + Math.max(length, 0);
  }
  return values;
}

function plaintextsOf(treated: TreatedRows): string[] {
  const [text, bytes] = treated.replacements.columns.map((column) =>
    column === undefined ? [] : unpack(column.replacement),
  );
  return treated.stale.flatMap((row, at) => {
    const cellOf = builder.cellsOf(rows[row]?.key ?? [], null);
    const stored = [text?.[at]?.toString() ?? null, bytes?.[at] ?? null];
    return stored.flatMap((value, column) =>
      value === null ? [] : [`${row} ${column} ${decrypt(after, cellOf(column), value).plaintext.toString()}`],
    );
  });
}

const entry = new URL('../../dist/src/engine/slice-thread.js', import.meta.url);
let crypto: SliceCrypto;
afterEach(() => crypto.close());

describe('a thread for slices', () => {
  test('I8 answers what the event loop answers: outcomes, failures, and plaintexts that stay', async () => {
    crypto = createThreadCrypto(entry);
    const work = { keyring: after, target, rows, visited: undefined };
    const [threaded, inline] = [await crypto.treat(work), await createInlineCrypto().treat(work)];
    expect(Array.from(threaded.codes)).toEqual(Array.from(inline.codes));
    expect(threaded.codes[100 * 2]).toBe(cellCodes.failed);
    expect(threaded.failures).toEqual(inline.failures);
    expect(threaded.stale).toEqual(inline.stale);
    expect(threaded.stale).toHaveLength(100);
    expect(plaintextsOf(threaded)).toEqual(plaintextsOf(inline));
    expect(plaintextsOf(threaded)).toContain('0 0 value 1');
  });

  test('visits only the columns that are meant', async () => {
    crypto = createThreadCrypto(entry);
    const treated = await crypto.treat({
      keyring: after,
      target,
      rows: stale.slice(0, 3),
      visited: stale.slice(0, 3).map(() => [false, true]),
    });
    expect(Array.from(treated.codes)).toEqual([
      cellCodes.none,
      cellCodes.reencrypted,
      cellCodes.none,
      cellCodes.reencrypted,
      cellCodes.none,
      cellCodes.reencrypted,
    ]);
  });

  test('takes over a new keyring, and says which key it lacks instead of failing the cell', async () => {
    crypto = createThreadCrypto(entry);
    const first = await crypto.treat({ keyring: before, target, rows: stale.slice(0, 2), visited: undefined });
    expect(first.stale).toEqual([]);
    const lacking = await crypto.treat({
      keyring: keyringOf(['decrypt_only', 'active'], keys.slice(1)),
      target,
      rows: stale.slice(0, 2),
      visited: undefined,
    });
    expect(lacking.blocked).toEqual({ cause: 'KEY_NOT_HELD', keyId: 1 });
  });

  test('that ends fails its slice with THREAD_ENDED, and the next slice has a new one', async () => {
    crypto = createThreadCrypto(entry);
    const work = { keyring: after, target, rows, visited: undefined };
    const [unanswered] = await Promise.allSettled([crypto.treat(work), crypto.close()]);
    expect(unanswered).toMatchObject({ status: 'rejected', reason: { code: 'THREAD_ENDED', kind: 'unavailable' } });
    expect((await crypto.treat(work)).stale).toHaveLength(100);
  });
});
