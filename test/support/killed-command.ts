// An operator's command killed with SIGKILL while it writes a certain audit record, in the middle of its transaction.
import type { KeyturnProcess } from '../cli/keyturn-process.js';
import { holdInsert } from './held-statement.js';
import type { Shop } from './shop.js';
import { until } from './until.js';

export async function killAtRecord(
  shop: Shop,
  keyturn: KeyturnProcess,
  command: readonly string[],
  action: string,
): Promise<void> {
  const { waitUntilHeld, letGo } = await holdInsert(shop, 'keyturn.audit', `NEW.action = '${action}'`);
  const killed = keyturn.start(command);
  await waitUntilHeld();
  killed.kill('SIGKILL');
  await killed.waitForExit(10_000);
  await letGo();
  const locks = `SELECT 1 FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`;
  await until(async () => (await shop.query(locks)).length === 0, {
    what: 'the killed statement to end',
    deadlineMs: 30_000,
  });
  await shop.query('DROP FUNCTION hold_insert CASCADE');
}
