// A module as an application has it: its data source, which nobody connects here.
import { DataSource, EntitySchema } from 'typeorm';
import { encryptedColumn } from '../../../src/orm/index.js';

const Legacy = new EntitySchema({
  name: 'Legacy',
  tableName: 'legacy',
  columns: {
    id: { type: 'uuid', primary: true },
    secret: encryptedColumn({ type: 'string', bind: 'column' }),
  },
});

const Customer = new EntitySchema({
  name: 'Customer',
  tableName: 'customer',
  columns: {
    id: { type: 'bigint', primary: true },
    email: encryptedColumn({ type: 'string' }),
    nickname: encryptedColumn({ type: 'string' }),
  },
});

const Fresh = new EntitySchema({
  name: 'Fresh',
  tableName: 'fresh',
  columns: { id: { type: 'int', primary: true }, note: encryptedColumn({ type: 'string' }) },
});

export const AppDataSource = new DataSource({
  type: 'postgres',
  url: 'postgres://127.0.0.1:1/nowhere',
  synchronize: true,
  entities: [Legacy, Customer, Fresh],
});
