// Holds a statement of somebody else in the middle of its transaction: rows inserted into a table under some condition wait
// for an advisory lock that the test holds. What its process looks like by the time it goes on is the test's affair.
import pg from 'pg';
import type { Shop } from './shop.js';
import { until } from './until.js';

export interface HeldStatement {
  waitUntilHeld(): Promise<void>;
  letGo(): Promise<void>;
}

const lockNumber = 4_711;

/** `condition`: SQL over the inserted row, NEW. */
export async function holdInsert(
  shop: Shop,
  table:
    | 'keyturn.batch'
    | 'keyturn.ledger'
    | 'keyturn.data_key'
    | 'keyturn.run'
    | 'keyturn.audit'
    | 'keyturn.audit_link',
  condition: string,
): Promise<HeldStatement> {
  await shop.query(`CREATE FUNCTION hold_insert() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
      IF ${condition} THEN PERFORM pg_advisory_xact_lock(${lockNumber}); END IF;
      RETURN NULL;
    END $$`);
  await shop.query(`CREATE TRIGGER hold_insert AFTER INSERT ON ${table} FOR EACH ROW EXECUTE FUNCTION hold_insert()`);
  const holder = new pg.Client({ connectionString: shop.url });
  // The database may be dropped under it when a test fails.
  holder.on('error', () => undefined);
  await holder.connect();
  await holder.query(`SELECT pg_advisory_lock(${lockNumber})`);
  const waiting = `SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = ${lockNumber} AND NOT granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`;
  return {
    async waitUntilHeld() {
      await until(async () => (await shop.query(waiting)).length === 1, {
        what: `an insert into ${table} to be held`,
        deadlineMs: 60_000,
      });
    },
    letGo: () => holder.end(),
  };
}
