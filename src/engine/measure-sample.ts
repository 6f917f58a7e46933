// How long rows of a table take to read and to reencrypt on this machine, without any key of the keyring: the rows are read in
// a read-only transaction; values of their length, made under a throwaway key, are reencrypted to another.
import { randomUUID } from 'node:crypto';
import { reencrypt } from '../codec.js';
import type { AlgorithmName } from '../crypto/algorithms.js';
import { createValueKey, generateDataKey } from '../crypto/data-key.js';
import type { ValueKey } from '../crypto/value-key.js';
import type { Format, Storage } from '../formats/format.js';
import { createKeyring, type Keyring } from '../keys/keyring.js';
import type { StoredKey } from '../keys/key-store.js';
import type { Target } from '../rotation/target.js';
import { storedOf } from '../store/cell-row.js';
import { createCellStore } from '../store/cells.js';
import type { Database } from '../store/database.js';
import type { MeasuredCosts } from '../store/estimates.js';
import { createCellBuilder } from './cells-of-target.js';
import { beginRead } from './reencrypt-batch.js';

const sampleRows = 300;

/** Undefined for an empty table. */
export async function measureSample(
  database: Database,
  target: Target,
  algorithm: AlgorithmName,
): Promise<MeasuredCosts | undefined> {
  const store = createCellStore(target);
  const readFrom = performance.now();
  const rows = await database.transaction(
    (client) => store.readRange(client, { after: undefined, upto: undefined }, sampleRows, undefined),
    beginRead,
  );
  const readMs = performance.now() - readFrom;
  if (rows.length === 0) return undefined;
  const cluster = randomUUID();
  const keys = [1, 2].map((id) =>
    createValueKey({ id, algorithm, purpose: 1, cluster, scope: cluster }, generateDataKey()),
  ) as [ValueKey, ValueKey];
  const keyring = throwawayKeyring(cluster, keys);
  const builder = createCellBuilder(target, cluster);
  let cryptoMs = 0;
  for (const row of rows) {
    const cellOf = builder.cellsOf(row.key, row.scope);
    for (const [position, column] of target.columns.entries()) {
      const value = row.values[position];
      if (value === null || value === undefined) continue;
      const cell = cellOf(position);
      const plaintext = Buffer.alloc(
        plaintextLength(cell.format, cell.storage, algorithm, storedOf(column, value).length),
      );
      const stored = cell.format.encrypt(plaintext, cell.address, keys[0], cell.storage);
      const startedAt = performance.now();
      reencrypt(keyring, cell, stored);
      cryptoMs += performance.now() - startedAt;
    }
  }
  return { rows: rows.length, readMs: readMs / rows.length, cryptoMs: cryptoMs / rows.length, writeMs: undefined };
}

/** About: armour takes four characters for three bytes. */
function plaintextLength(format: Format, storage: Storage, algorithm: AlgorithmName, storedLength: number): number {
  const overhead = format.storedLength(0, algorithm, storage);
  return Math.max(0, Math.floor((storedLength - overhead) * (storage === 'text' ? 3 / 4 : 1)));
}

function throwawayKeyring(cluster: string, [old, active]: readonly [ValueKey, ValueKey]): Keyring {
  const stored = (key: ValueKey, state: StoredKey['state'], version: number): StoredKey => ({
    id: key.id,
    version,
    state,
    isCompromised: false,
    algorithm: key.algorithm,
    commitment: key.commitment,
    createdAt: new Date(0),
    activatedAt: undefined,
    activatedGeneration: undefined,
    retiredAt: undefined,
    wraps: [],
  });
  return createKeyring(
    {
      id: cluster,
      name: 'throwaway',
      cluster,
      generation: 1,
      keys: [stored(old, 'decrypt_only', 1), stored(active, 'active', 2)],
    },
    new Map([old, active].map((key) => [key.id, key])),
  );
}
