// Columns on their way between Keyturn's format and a foreign one. Each change of the way bumps the keyring's generation,
// so that members hold it, and writes its audit record in the same transaction (I10).
import type { ForeignColumn } from '../keys/key-store.js';
import { writeAudit } from './audit.js';
import type { Queryable } from './database.js';
import { bumpGeneration } from './keys.js';

interface MovingColumn {
  readonly id: string;
  /** `public.customer.email` */
  readonly title: string;
}

/** Answers the generation that members have to hold. */
export async function setMove(
  client: Queryable,
  keyring: { readonly id: string },
  column: MovingColumn,
  setting: Omit<ForeignColumn, 'columnId'>,
  reason: string | undefined,
): Promise<number> {
  await client.query(
    'UPDATE keyturn.target_column SET move = $2, foreign_format = $3, foreign_secret_uri = $4, awaits_adoption = false WHERE id = $1',
    [column.id, setting.move, setting.format, setting.secretUri ?? null],
  );
  const generation = await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: `column.${setting.move}`,
    object: `column ${column.title}`,
    reason,
    after: { format: setting.format, secretUri: setting.secretUri ?? null, generation },
  });
  return generation;
}

/**
 * An adopted column is one like any other. A column that was left is no part of its target any more; its setting stays,
 * so that an application that still runs with it goes on in the foreign format.
 */
export async function endMove(
  client: Queryable,
  keyring: { readonly id: string },
  column: MovingColumn,
  ended: Pick<ForeignColumn, 'move' | 'format'> & { readonly cells: number },
  reason: string | undefined,
): Promise<void> {
  const isAdopted = ended.move === 'adopting';
  await client.query(
    isAdopted
      ? 'UPDATE keyturn.target_column SET move = NULL, foreign_format = NULL, foreign_secret_uri = NULL WHERE id = $1'
      : 'UPDATE keyturn.target_column SET left_at = clock_timestamp() WHERE id = $1',
    [column.id],
  );
  const generation = await bumpGeneration(client, keyring);
  await writeAudit(client, {
    action: isAdopted ? 'column.adopted' : 'column.left',
    object: `column ${column.title}`,
    reason,
    before: { format: ended.format },
    after: { cells: ended.cells, generation },
  });
}
