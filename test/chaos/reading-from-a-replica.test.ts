// An application that reads from a real standby: values are decrypted, and none of them is offered to lazy upgrades.
import { DataSource, EntitySchema } from 'typeorm';
import { expect, test } from 'vitest';
import { encryptedColumn, installKeyturn } from '../../src/orm/index.js';
import { canReplicate, startReplicatedPostgres } from '../support/replicated-postgres.js';
import { openShop } from '../support/shop.js';
import { until } from '../support/until.js';

interface Guest {
  id: number;
  name: string;
}

const GuestSchema = new EntitySchema<Guest>({
  name: 'Guest',
  tableName: 'guest',
  columns: { id: { type: 'int', primary: true }, name: encryptedColumn({ type: 'string' }) },
});

test.skipIf(!canReplicate())(
  'I9 a stale value that a standby in recovery answers is read and not upgraded',
  async ({ onTestFinished }) => {
    const servers = await startReplicatedPostgres();
    onTestFinished(() => servers.stop());
    const shop = await openShop({
      adminUrl: servers.primaryUrl,
      config: {
        keyrings: { guests: { root: 'env:KEYTURN_ROOT_KEY' } },
        targets: [{ table: 'guest', keyring: 'guests', columns: { name: {} } }],
      },
      ddl: ['CREATE TABLE guest (id int PRIMARY KEY, name text NOT NULL)'],
    });
    onTestFinished(() => shop.close());
    const first = await shop.open('first');
    await shop.query('INSERT INTO guest VALUES (1, $1)', [
      await first.column('guest', 'name').encrypt({ pk: 1 }, 'Ada'),
    ]);
    await first.close();
    await shop.rotate();
    const keyturn = await shop.open();
    const url = new URL(servers.replicaUrl);
    url.pathname = new URL(shop.url).pathname;
    const dataSource = new DataSource({ type: 'postgres', url: url.toString(), entities: [GuestSchema] });
    await dataSource.initialize();
    onTestFinished(() => dataSource.destroy());
    await installKeyturn(dataSource, keyturn);
    expect(await dataSource.query('SELECT pg_is_in_recovery() AS standby')).toEqual([{ standby: true }]);
    const guests = dataSource.getRepository(GuestSchema);
    await until(async () => (await guests.findOneBy({ id: 1 }))?.name === 'Ada', {
      what: 'the row to reach the standby',
      deadlineMs: 30_000,
    });
    expect(keyturn.parts.upgrades.counts()).toMatchObject({ queued: 0, rowsUpdated: 0, dropped: 0 });
  },
);
