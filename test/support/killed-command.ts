// An operator's command killed with SIGKILL while it writes a certain audit record, in the middle of its transaction.
import type { KeyturnProcess } from '../cli/keyturn-process.js';
import type { Child } from './child.js';
import { holdInsert } from './held-statement.js';
import type { Shop } from './shop.js';
import { until } from './until.js';

export function killAtRecord(
  shop: Shop,
  keyturn: KeyturnProcess,
  command: readonly string[],
  action: string,
): Promise<void> {
  return killWhileInserting(shop, () => keyturn.start(command), ['keyturn.audit', `NEW.action = '${action}'`]);
}

/** `insert`: table and condition, as for `holdInsert`. `withServer`: its server process goes as well, in the middle of the statement. */
export async function killWhileInserting(
  shop: Shop,
  start: () => Child,
  insert: readonly [Parameters<typeof holdInsert>[1], string],
  { withServer } = { withServer: false },
): Promise<void> {
  const { waitUntilHeld, letGo } = await holdInsert(shop, ...insert);
  const killed = start();
  await waitUntilHeld();
  killed.kill('SIGKILL');
  await killed.waitForExit(10_000);
  if (withServer)
    await shop.query(`SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`);
  await letGo();
  await untilUnlocked(shop);
  await shop.query('DROP FUNCTION hold_insert CASCADE');
}

/** The server notices that a client is gone, and rolls back, a moment later. */
export async function untilUnlocked(shop: Shop): Promise<void> {
  const locks = `SELECT 1 FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`;
  await until(async () => (await shop.query(locks)).length === 0, {
    what: 'the killed statement to end',
    deadlineMs: 30_000,
  });
}
