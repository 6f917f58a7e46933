// Whether the keys at hand are those that stored values name: a few values of every column and key are decrypted in memory
// and forgotten. Counts whole columns by header, reads a bounded number of values, writes nothing.
import { check, formatAt } from '../codec.js';
import type { KeyId } from '../crypto/value-key.js';
import { uuidToBytes } from '../crypto/uuid.js';
import type { Format, Stored } from '../formats/format.js';
import type { Keyring } from '../keys/keyring.js';
import type { Target, TargetColumn } from '../rotation/target.js';
import { storedOf } from '../store/cell-row.js';
import { cellExpression, createCellStore } from '../store/cells.js';
import { countByHeader } from '../store/census.js';
import type { Queryable } from '../store/database.js';
import { createCellBuilder, formatOf, storageOf } from './cells-of-target.js';

/** Values of one column under one header. */
const valuesPerSample = 20;

/** What one column holds under one header, and what became of the values that were tried. */
export interface Sample {
  readonly column: TargetColumn;
  /** Undefined for what is no envelope, text for values of a foreign format. */
  readonly keyId: KeyId | undefined;
  readonly cells: number;
  /** None where the keyring does not hold the key. */
  readonly tried: number;
  /** One cause for each value that did not open. */
  readonly causes: readonly string[];
}

/** `client`: a transaction that sees one moment. `keyring`: holds the keys that are on trial and no others. */
export async function openSamples(client: Queryable, target: Target, keyring: Keyring): Promise<readonly Sample[]> {
  const samples: Sample[] = [];
  for (const column of target.columns) {
    const format = formatAt(keyring, formatOf(target, column), { column: uuidToBytes(column.id) });
    for (const { header, keyId, cells } of await countByHeader(client, target, column, format)) {
      const isHeld = typeof keyId === 'number' && keyring.lookup(keyId).status === 'held';
      const ends = isHeld ? await tryValues(client, { target, column, keyring, format }, header) : [];
      const causes = ends.filter((end) => end !== 'opened');
      samples.push({ column, keyId, cells, tried: ends.length, causes });
    }
  }
  return samples;
}

async function tryValues(
  client: Queryable,
  { target, column, keyring, format }: { target: Target; column: TargetColumn; keyring: Keyring; format: Format },
  header: Stored,
): Promise<readonly string[]> {
  const only = { ...target, columns: [column] };
  const condition = `${format.sqlHeader(cellExpression(column), storageOf(column))} = $1`;
  const rows = await createCellStore(only).readSome(client, condition, [header], valuesPerSample);
  const builder = createCellBuilder(only, keyring.cluster);
  return rows.flatMap(({ key, scope, values: [value] }) => {
    if (value === null || value === undefined) return [];
    const examined = check(keyring, builder.cellsOf(key, scope)(0), storedOf(column, value));
    return ['cause' in examined ? examined.cause : 'opened'];
  });
}
