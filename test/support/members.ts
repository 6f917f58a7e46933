// Members of other processes, as the control tables would show them: for what a rotation does when one of them lags.
import { randomUUID } from 'node:crypto';
import { algorithmNames } from '../../src/crypto/algorithms.js';
import { formatNames } from '../../src/formats/registry.js';
import type { Shop } from './shop.js';

export interface SimulatedMember {
  readonly name: string;
  readonly kind?: 'application' | 'worker' | 'supervisor';
  readonly holds: readonly number[];
  readonly writes: number;
  readonly formats?: readonly string[];
  readonly algorithms?: readonly string[];
  /** Seconds since its last heartbeat; negative for one that stays live however long the test takes. */
  readonly silentForSeconds?: number;
}

/** Inserts the member with what it reports of keyring `customers`; answers its id. */
export async function insertMember(shop: Pick<Shop, 'query'>, member: SimulatedMember): Promise<string> {
  const id = randomUUID();
  await shop.query(
    `INSERT INTO keyturn.member (id, kind, name, host, pid, version, formats, algorithms, heartbeat_at)
     VALUES ($1, $2, $3, 'elsewhere', 42, 'test', $4, $5, clock_timestamp() - make_interval(secs => $6))`,
    [
      id,
      member.kind ?? 'application',
      member.name,
      member.formats ?? formatNames,
      member.algorithms ?? algorithmNames,
      member.silentForSeconds ?? -3_600,
    ],
  );
  await shop.query(
    `INSERT INTO keyturn.member_keyring (member_id, keyring_id, generation, write_key_id, held_key_ids)
     SELECT $1, id, generation, $2, $3 FROM keyturn.keyring WHERE name = 'customers'`,
    [id, member.writes, member.holds],
  );
  return id;
}
