// The data source of the shop, and the line that makes it encrypt.
import { DataSource } from 'typeorm';
import { openKeyturn } from 'keyturn';
import { installKeyturn } from 'keyturn/typeorm';
import { Customer } from './entities/customer.js';
import { Purchase } from './entities/purchase.js';
import { CreateShop1767225600000 } from './migrations/1767225600000-create-shop.js';

export function createDataSource(): DataSource {
  return new DataSource({
    type: 'postgres',
    url: process.env['DATABASE_URL'] ?? '',
    entities: [Customer, Purchase],
    migrations: [CreateShop1767225600000],
  });
}

export interface Shop {
  readonly dataSource: DataSource;
  close(): Promise<void>;
}

export async function openShop(): Promise<Shop> {
  const keyturn = await openKeyturn({ name: 'shop' });
  const dataSource = createDataSource();
  await dataSource.initialize();
  await installKeyturn(dataSource, keyturn);
  return {
    dataSource,
    async close() {
      await dataSource.destroy();
      // Writes the lazy upgrades that wait, and leaves the membership.
      await keyturn.close();
    },
  };
}
