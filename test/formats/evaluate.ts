// An SQL expression over one value `v`, evaluated by a real server.
import type { Storage, Stored } from '../../src/formats/format.js';
import type { TestDatabase } from '../support/database.js';

export async function evaluate(
  database: TestDatabase,
  sql: string,
  storage: Storage,
  stored: Stored | null,
): Promise<unknown> {
  const type = storage === 'text' ? 'text' : 'bytea';
  const { rows } = await database.pool.query<{ answer: unknown }>(
    `SELECT ${sql} AS answer FROM (SELECT $1::${type}) AS t(v)`,
    [stored],
  );
  return rows[0]?.answer;
}
