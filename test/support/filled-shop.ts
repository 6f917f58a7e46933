// A shop in which a run has something to do: customers under an older key than the active one, and a witness of every
// rewrite (`countRewrites`).
import { witnessOf } from './ledger.js';
import { customerTable, insertCustomers, openShop, type Backend, type Shop } from './shop.js';

export async function openFilledShop(filling: {
  readonly ids: readonly number[];
  readonly backend?: Backend;
  /** After that of the table and its witness. */
  readonly ddl?: readonly string[];
}): Promise<Shop> {
  const { ids, backend = 'postgres', ddl = [] } = filling;
  const shop = await openShop({ backend, ddl: [customerTable, ...witnessOf('customer'), ...ddl] });
  const keyturn = await shop.open();
  await insertCustomers(shop, keyturn, ids);
  await keyturn.close();
  await shop.rotate();
  return shop;
}
