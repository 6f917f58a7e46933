// What the keys of a shop are now, by version, and what is on record of them.
import { listKeys, type KeyListing } from '../../src/control/keys.js';
import type { Shop } from './shop.js';

async function keysOf(shop: Shop): Promise<readonly KeyListing[]> {
  const [keyring] = await listKeys(shop.control.context, 'customers');
  return keyring?.keys ?? [];
}

export async function statesOf(shop: Shop): Promise<Record<string, string>> {
  return Object.fromEntries((await keysOf(shop)).map(({ version, state }) => [`v${version}`, state]));
}

export async function recordOf(shop: Shop): Promise<string[]> {
  const rows = await shop.query(
    `SELECT action || ' ' || object AS what FROM keyturn.audit WHERE object LIKE 'key %' ORDER BY id`,
  );
  return rows.map(({ what }) => String(what));
}
