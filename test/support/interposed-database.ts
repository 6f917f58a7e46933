// A database in whose transactions something happens between the first statement and the second: what an application does
// to the rows while somebody reads them in more than one statement.
import type { Database } from '../../src/store/database.js';

/** `act` hears how the transaction began, and is waited for. */
export function interpose(real: Database, act: (begin: string) => Promise<void>): Database {
  return {
    query: (text, parameters) => real.query(text, parameters),
    transaction: (work, begin = 'BEGIN') =>
      real.transaction((client) => {
        let asked = 0;
        return work({
          async query(text, parameters) {
            asked++;
            if (asked === 2) await act(begin);
            return client.query(text, parameters);
          },
        });
      }, begin),
    isPooled: () => real.isPooled(),
    close: () => real.close(),
  };
}
