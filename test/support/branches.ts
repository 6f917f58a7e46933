// A shop with branches: twelve small tables under an older key than the active one, each with its own batch per pass, so
// that a run has many jobs in the queue and every one of them moves cells.
import type { Keyturn } from '../../src/app.js';
import { queueAddressOf, type QueueAddress } from '../../src/queue/address.js';
import { Secret } from '../../src/crypto/secret.js';
import { witnessOf } from './ledger.js';
import { openShop, type Backend, type Shop } from './shop.js';

export const branchTables: readonly string[] = Array.from({ length: 12 }, (_, at) => `branch_${at + 1}`);
const rowsPerBranch = 20;
export const branchCells = branchTables.length * rowsPerBranch;

const ids = Array.from({ length: rowsPerBranch }, (_, at) => at + 1);

export async function openBranchShop(options: { backend: Backend; redisUrl?: string }): Promise<Shop> {
  const shop = await openShop({
    ...options,
    config: {
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: branchTables.map((table) => ({
        table: `public.${table}`,
        keyring: 'customers',
        columns: { letter: {} },
      })),
    },
    ddl: branchTables.flatMap((table) => [
      `CREATE TABLE ${table} (id bigint PRIMARY KEY, letter text)`,
      ...witnessOf(table),
    ]),
  });
  const keyturn = await shop.open();
  for (const table of branchTables) {
    const column = keyturn.column(`public.${table}`, 'letter');
    const letters = await Promise.all(ids.map((id) => column.encrypt({ pk: id }, letterOf(table, id))));
    await shop.query(`INSERT INTO ${table} SELECT * FROM unnest($1::bigint[], $2::text[])`, [ids, letters]);
  }
  await keyturn.close();
  await shop.rotate();
  return shop;
}

function letterOf(table: string, id: number): string {
  return `letter ${id} of ${table}`;
}

/** Letters that do not decrypt to what was written. */
export async function findWrongLetters(shop: Shop, keyturn: Keyturn): Promise<string[]> {
  const wrong: string[] = [];
  for (const table of branchTables) {
    const column = keyturn.column(`public.${table}`, 'letter');
    for (const row of await shop.query(`SELECT id::int, letter FROM ${table} ORDER BY id`)) {
      const id = Number(row['id']);
      if ((await column.decrypt({ pk: id }, String(row['letter']))).plaintext !== letterOf(table, id))
        wrong.push(`${table} ${id}`);
    }
  }
  return wrong;
}

/** The queue that the processes of this shop use. */
export async function queueAddressOfShop(shop: Shop): Promise<QueueAddress> {
  const [cluster] = await shop.query('SELECT id FROM keyturn.cluster');
  const { REDIS_URL: redisUrl } = shop.environment();
  return queueAddressOf(
    { redisUrl: redisUrl === undefined ? undefined : new Secret(redisUrl), databaseDirectUrl: new Secret(shop.url) },
    String(cluster?.['id']),
  );
}
