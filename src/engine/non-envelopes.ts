// Values that are no envelopes in a column where all of them should be: a version of the application that does not encrypt
// writes them, or something damaged them. A run comes upon each; a bounded look may see them before.
import type { StoredKeyring } from '../keys/key-store.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { sampleNonEnvelopes } from '../store/census.js';
import type { Database } from '../store/database.js';
import { formatOf } from './cells-of-target.js';

export interface NonEnvelopes {
  /** `public.customer.email`. */
  readonly column: string;
  /** Values that the look saw. */
  readonly cells: number;
  /** How many of them are no envelopes; at least one. */
  readonly not_envelopes: number;
  /** It saw every value of the column. */
  readonly is_exact: boolean;
}

/**
 * Reads about a thousand pages of the table at most, for five seconds at most. Leaves out columns that are on their way
 * between two forms or wait to be adopted. Throws FORBIDDEN where the role may not read the table, DATABASE_ERROR when the
 * time is over.
 */
export async function lookForNonEnvelopes(
  database: Database,
  { foreign = [] }: Pick<StoredKeyring, 'foreign'>,
  target: Target,
): Promise<readonly NonEnvelopes[]> {
  const columns = target.columns.filter(
    ({ id, awaitsAdoption }) => awaitsAdoption !== true && !foreign.some(({ columnId }) => columnId === id),
  );
  if (columns.length === 0) return [];
  const { counts, isExact } = await database.transaction(
    (client) => sampleNonEnvelopes(client, { ...target, columns }, formatOf),
    `BEGIN READ ONLY; SET LOCAL row_security = off; SET LOCAL statement_timeout = '5s'`,
  );
  return counts
    .filter(({ notEnvelopes }) => notEnvelopes > 0)
    .map(({ column, cells, notEnvelopes }) => ({
      column: `${targetTitle(target)}.${column}`,
      cells,
      not_envelopes: notEnvelopes,
      is_exact: isExact,
    }));
}
