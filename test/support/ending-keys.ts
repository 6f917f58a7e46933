// People and time for tests about the end of a key: logins that own the schema without being superusers, and the passing of
// the waiting time. Envelopes here are headers with something behind them: SQL looks at nothing else.
import { inject } from 'vitest';
import { openControl } from '../../src/app.js';
import type { ConfigFile, Environment } from '../../src/config.js';
import type { ControlContext } from '../../src/control/context.js';
import { listKeys, retire, type KeyListing } from '../../src/control/keys.js';
import { encodeArmour, encodeHeader, headerOfKey } from '../../src/crypto/envelope.js';
import { createTestRole, type TestRole } from './roles.js';
import type { Shop } from './shop.js';

export interface Person {
  readonly role: TestRole;
  readonly context: ControlContext;
  leave(): Promise<void>;
}

/** A login that is a member of whoever owns schema and tables, and no superuser. */
export async function createPerson(shop: Shop, config: ConfigFile): Promise<Person> {
  const role = await createTestRole();
  await shop.query(`GRANT "${new URL(inject('adminUrl')).username}" TO ${role.name}`);
  const environment: Environment = { ...shop.environment(), DATABASE_URL: role.urlFor(shop.url) };
  const control = openControl({ environment, file: config });
  return { role, context: control.context, leave: () => control.close() };
}

/** Stands for the passing of the waiting time: what was asked for was asked for that long ago. A superuser's doing. */
export async function passWait(shop: Pick<Shop, 'query'>): Promise<void> {
  await shop.query(`BEGIN;
    ALTER TABLE keyturn.destruction DISABLE TRIGGER destruction_guard;
    UPDATE keyturn.destruction SET not_before = clock_timestamp() WHERE outcome IS NULL;
    UPDATE keyturn.destruction d SET request = keyturn.destruction_request(d), hash = sha256(convert_to(keyturn.destruction_request(d), 'UTF8'))
      WHERE outcome IS NULL;
    ALTER TABLE keyturn.destruction ENABLE ALWAYS TRIGGER destruction_guard;
    COMMIT`);
}

/** Text that names the key as an envelope does. */
export async function envelopeNaming(
  shop: Pick<Shop, 'query'>,
  key: Pick<KeyListing, 'id' | 'algorithm'>,
): Promise<string> {
  const [row] = await shop.query('SELECT commitment FROM keyturn.data_key WHERE id = $1', [key.id]);
  const header = encodeHeader(headerOfKey({ ...key, commitment: row?.['commitment'] as Buffer }));
  return encodeArmour(Buffer.concat([header, Buffer.alloc(60, 7)]));
}

export async function stateOf(shop: Pick<Shop, 'query'>, id: number): Promise<string> {
  return String((await shop.query('SELECT state FROM keyturn.data_key WHERE id = $1', [id]))[0]?.['state']);
}

export async function wrapsOf(shop: Pick<Shop, 'query'>, id: number): Promise<number> {
  return (await shop.query('SELECT FROM keyturn.data_key_wrap WHERE data_key_id = $1', [id])).length;
}

/** A key that was active and is no more. */
export async function replacedKey(shop: Shop): Promise<KeyListing> {
  const [before] = await listKeys(shop.control.context, 'customers');
  const active = before?.keys.find(({ state }) => state === 'active');
  await shop.rotate();
  if (active === undefined) throw new Error('there is no active key');
  return active;
}

export async function retiredKey(shop: Shop): Promise<KeyListing> {
  const key = await replacedKey(shop);
  await retire(shop.control.context, undefined, String(key.id), 'test');
  return key;
}

export async function hashOf(shop: Pick<Shop, 'query'>, { id }: KeyListing): Promise<string> {
  const [row] = await shop.query(
    `SELECT encode(hash, 'hex') AS hash FROM keyturn.destruction WHERE data_key_id = $1 AND outcome IS NULL`,
    [id],
  );
  return String(row?.['hash']);
}
