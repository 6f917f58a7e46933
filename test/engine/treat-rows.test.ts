// Decrypting and encrypting a slice leaves the event loop to others in between, whatever its rows are like.
import { expect, test } from 'vitest';
import { encrypt } from '../../src/codec.js';
import { createValueKey, generateDataKey } from '../../src/crypto/data-key.js';
import type { ValueKey } from '../../src/crypto/value-key.js';
import { createCellBuilder } from '../../src/engine/cells-of-target.js';
import { treatRows } from '../../src/engine/treat-rows.js';
import { createKeyring, type Keyring } from '../../src/keys/keyring.js';
import type { Target } from '../../src/rotation/target.js';
import type { CellRow } from '../../src/store/cell-row.js';

const cluster = '00112233-4455-4677-8899-aabbccddeeff';
const scope = '11111111-1111-4111-8111-111111111111';
const held = [1, 2].map((id) =>
  createValueKey({ id, algorithm: 'xaes-256-gcm', purpose: 1, cluster, scope }, generateDataKey()),
) as [ValueKey, ValueKey];

function keyringWriting(active: number): Keyring {
  const keys = [1, 2].map((id) => ({
    id,
    version: id,
    state: id === active ? ('active' as const) : ('decrypt_only' as const),
    isCompromised: false,
    algorithm: 'xaes-256-gcm' as const,
    commitment: Buffer.alloc(32),
    createdAt: new Date(0),
    activatedAt: undefined,
    activatedGeneration: undefined,
    retiredAt: undefined,
    wraps: [],
  }));
  const opened = new Map(held.map((key) => [key.id, key] as const));
  return createKeyring({ id: scope, name: 'customers', cluster, generation: 1, keys }, opened);
}

const target: Target = {
  id: '22222222-2222-4222-8222-222222222222',
  keyringId: scope,
  keyringName: 'customers',
  tableOid: 1,
  schema: 'public',
  table: 'customer',
  key: [{ name: 'id', type: 'bigint', tag: 'int' }],
  scope: undefined,
  columns: [
    {
      id: '33333333-3333-4333-8333-333333333333',
      name: 'email',
      columnName: 'email',
      path: undefined,
      sqlType: 'text',
      maxLength: undefined,
      format: 'keyturn',
      bind: 'row',
    },
  ],
};

function staleRows(count: number, bytes: number): CellRow[] {
  const writing = keyringWriting(1);
  const builder = createCellBuilder(target, cluster);
  return Array.from({ length: count }, (_, at) => {
    const key = [String(at + 1)];
    const stored = encrypt(writing, builder.cellsOf(key, null)(0), Buffer.alloc(bytes, 'x'));
    return { key, scope: null, values: [String(stored)] };
  });
}

/** How often others had their turn while `work` went on. */
async function turnsDuring(work: () => Promise<unknown>): Promise<number> {
  let turns = 0;
  let isOver = false;
  const take = (): void => {
    turns++;
    if (!isOver) setImmediate(take);
  };
  setImmediate(take);
  await work();
  isOver = true;
  return turns;
}

test.each([
  [20, 100_000, 19],
  [200, 100, 6],
])('I9 %i rows of %i bytes leave the event loop to others %i times', async (count, bytes, turns) => {
  const rows = staleRows(count, bytes);
  const keyring = keyringWriting(2);
  let stale: readonly number[] = [];
  const seen = await turnsDuring(async () => {
    ({ stale } = await treatRows({ keyring, target, rows, visited: undefined }));
  });
  expect(stale).toHaveLength(count);
  expect(seen).toBeGreaterThanOrEqual(turns);
});
