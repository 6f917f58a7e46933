// A database whose n-th statement fails, as when the connection or the server breaks just then. Everything before it really
// happens, so what is left behind is what a failure at that place leaves.
import { KeyturnError } from '../../src/errors.js';
import type { Database, Queryable } from '../../src/store/database.js';

export interface FailingDatabase {
  readonly database: Database;
  /** Statements that were asked for, the failed one included. */
  readonly asked: () => number;
}

/** Counts from 1; the commit of a transaction counts as a statement. */
export function failAt(real: Database, nth: number): FailingDatabase {
  let asked = 0;
  const count = (): void => {
    asked++;
    if (asked === nth) throw new KeyturnError('DATABASE_UNAVAILABLE', `statement ${nth} fails because a test says so`);
  };
  const failing = (client: Queryable): Queryable => ({
    async query(text, parameters) {
      count();
      return client.query(text, parameters);
    },
  });
  return {
    asked: () => asked,
    database: {
      ...failing(real),
      transaction: (work, begin) =>
        real.transaction(async (client) => {
          const result = await work(failing(client));
          count();
          return result;
        }, begin),
      isPooled: () => real.isPooled(),
      close: () => real.close(),
    },
  };
}
