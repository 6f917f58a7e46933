// Entities of a small shop, for the tests of the TypeORM integration, and a data source with Keyturn installed on it.
import {
  ChildEntity,
  Column,
  CreateDateColumn,
  DataSource,
  type DataSourceOptions,
  DeleteDateColumn,
  Entity,
  EntitySchema,
  JoinColumn,
  ManyToOne,
  OneToMany,
  PrimaryColumn,
  PrimaryGeneratedColumn,
  TableInheritance,
  Unique,
  UpdateDateColumn,
  VersionColumn,
  type Relation,
} from 'typeorm';
import type { Keyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';
import { Encrypted, encryptedColumn, installKeyturn, type InstalledKeyturn } from '../../src/orm/index.js';

export class Address {
  @Encrypted({ type: 'string', nullable: true })
  street!: string | null;

  @Column({ type: 'text', nullable: true })
  city!: string | null;
}

@Entity('buyer')
@Unique(['login'])
export class Buyer {
  @PrimaryGeneratedColumn({ type: 'bigint' })
  id!: string;

  @Column({ type: 'text' })
  login!: string;

  @Encrypted({ type: 'string', nullable: true })
  email!: string | null;

  @Encrypted({ type: 'number', nullable: true })
  score!: number | null;

  @Encrypted({ type: 'bigint', nullable: true })
  balance!: bigint | null;

  @Encrypted({ type: 'boolean', nullable: true })
  vip!: boolean | null;

  @Encrypted({ type: 'date', nullable: true })
  born!: Date | null;

  @Encrypted({ type: 'json', nullable: true })
  profile!: object | null;

  @Encrypted({ type: 'buffer', nullable: true })
  photo!: Buffer | null;

  @Encrypted({ type: 'string', nullable: true, select: false })
  secret!: string | null;

  @Encrypted({ type: 'string', nullable: true, bind: 'column' })
  tag!: string | null;

  @Column(() => Address)
  address!: Address;

  @OneToMany(
    () => Purchase,
    (purchase) => purchase.buyer,
    { cascade: true },
  )
  purchases!: Relation<Purchase[]>;

  @VersionColumn()
  version!: number;

  @CreateDateColumn()
  createdAt!: Date;

  @UpdateDateColumn()
  updatedAt!: Date;

  @DeleteDateColumn()
  deletedAt!: Date | null;
}

@Entity('purchase')
export class Purchase {
  @PrimaryGeneratedColumn('uuid')
  id!: string;

  @ManyToOne(
    () => Buyer,
    (buyer) => buyer.purchases,
    { eager: true },
  )
  @JoinColumn({ name: 'buyer_id' })
  buyer!: Relation<Buyer>;

  @Encrypted()
  note!: string;
}

@Entity('gift')
export class Gift {
  @PrimaryColumn({ type: 'text' })
  code!: string;

  @ManyToOne(() => Buyer, { lazy: true })
  @JoinColumn({ name: 'buyer_id' })
  buyer!: Promise<Relation<Buyer>>;

  @Encrypted()
  message!: string;
}

/** A tenant, and a key of two columns. */
@Entity('seat')
export class Seat {
  @PrimaryColumn({ type: 'uuid' })
  day!: string;

  @PrimaryColumn({ type: 'smallint' })
  number!: number;

  @Column({ type: 'integer', name: 'tenant_id', nullable: true })
  tenant!: number | null;

  @Encrypted({ type: 'string', nullable: true })
  guest!: string | null;

  @Encrypted({ type: 'string', nullable: true })
  phone!: string | null;
}

@Entity('tenant')
export class Tenant {
  @PrimaryColumn({ type: 'integer' })
  id!: number;
}

/** Its tenant is a relation. */
@Entity('locker')
export class Locker {
  @PrimaryColumn({ type: 'text' })
  code!: string;

  @ManyToOne(() => Tenant)
  @JoinColumn({ name: 'tenant_id' })
  tenant!: Relation<Tenant>;

  @Column({ type: 'integer', name: 'tenant_id' })
  tenantId!: number;

  @Encrypted({ type: 'string' })
  pin!: string;
}

/** One class embedded twice, and numbers from a sequence that the column does not own. */
@Entity('depot')
export class Depot {
  @PrimaryGeneratedColumn({ type: 'bigint' })
  id!: string;

  @Column(() => Address)
  home!: Address;

  @Column(() => Address)
  work!: Address;
}

@Entity('document')
@TableInheritance({ column: { type: 'text', name: 'kind' } })
export abstract class Document {
  @PrimaryGeneratedColumn('identity', { type: 'integer' })
  id!: number;

  @Encrypted()
  title!: string;
}

@ChildEntity('passport')
export class Passport extends Document {
  @Encrypted({ nullable: true })
  number!: string;
}

@ChildEntity('invoice')
export class Invoice extends Document {
  @Encrypted({ type: 'number', nullable: true })
  amount!: number;
}

export interface Voucher {
  id: string;
  code: string;
  terms: { readonly days: number } | null;
}

export const VoucherSchema = new EntitySchema<Voucher>({
  name: 'Voucher',
  tableName: 'voucher',
  columns: {
    id: { type: 'uuid', primary: true, generated: 'uuid' },
    code: encryptedColumn({ type: 'string' }),
    terms: encryptedColumn({ type: 'json', nullable: true }),
  },
});

export const ormEntities = [
  Buyer,
  Purchase,
  Gift,
  Seat,
  Tenant,
  Locker,
  Depot,
  Document,
  Passport,
  Invoice,
  VoucherSchema,
];

export const ormTables: readonly string[] = [
  `CREATE TABLE buyer (id bigserial PRIMARY KEY, login text NOT NULL UNIQUE, email text, score text, balance text, vip text, born text, profile text,
    photo bytea, secret text, tag text, "addressStreet" text, "addressCity" text, version integer NOT NULL,
    "createdAt" timestamptz NOT NULL DEFAULT now(), "updatedAt" timestamptz NOT NULL DEFAULT now(), "deletedAt" timestamptz)`,
  `CREATE TABLE purchase (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), buyer_id bigint REFERENCES buyer, note text NOT NULL)`,
  `CREATE TABLE gift (code text PRIMARY KEY, buyer_id bigint REFERENCES buyer, message text NOT NULL)`,
  `CREATE TABLE seat (day uuid, number smallint, tenant_id integer, guest text, phone text, PRIMARY KEY (day, number))`,
  `CREATE TABLE document (id integer GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, kind text NOT NULL, title text NOT NULL, number text, amount text)`,
  'CREATE TABLE tenant (id integer PRIMARY KEY)',
  'CREATE TABLE locker (code text PRIMARY KEY, tenant_id integer NOT NULL REFERENCES tenant, pin text NOT NULL)',
  'CREATE SEQUENCE shared_numbers',
  `CREATE TABLE depot (id bigint PRIMARY KEY DEFAULT nextval('shared_numbers'), "homeStreet" text, "homeCity" text, "workStreet" text, "workCity" text)`,
  `CREATE TABLE voucher (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), code text NOT NULL, terms text)`,
];

export const ormConfig: ConfigFile = {
  keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [
    {
      table: 'buyer',
      keyring: 'customers',
      columns: {
        email: {},
        score: {},
        balance: {},
        vip: {},
        born: {},
        profile: {},
        photo: {},
        secret: {},
        tag: { bind: 'column' },
        addressStreet: {},
      },
    },
    { table: 'purchase', keyring: 'customers', columns: { note: {} } },
    { table: 'gift', keyring: 'customers', columns: { message: {} } },
    { table: 'seat', keyring: 'customers', scope: 'tenant_id', columns: { guest: {}, phone: {} } },
    { table: 'locker', keyring: 'customers', scope: 'tenant_id', columns: { pin: {} } },
    { table: 'depot', keyring: 'customers', columns: { homeStreet: {}, workStreet: {} } },
    { table: 'document', keyring: 'customers', columns: { title: {}, number: {}, amount: {} } },
    { table: 'voucher', keyring: 'customers', columns: { code: {}, terms: {} } },
  ],
};

export interface OrmShop {
  readonly dataSource: DataSource;
  readonly installed: InstalledKeyturn;
  /** Statements since the last call, without those that only read. */
  writes(): string[];
}

/** Every statement is recorded; the data source is destroyed by the caller. */
export async function openOrmShop(
  url: string,
  keyturn: Keyturn,
  options: Partial<DataSourceOptions> = {},
): Promise<OrmShop> {
  const written: string[] = [];
  const dataSource = new DataSource({
    type: 'postgres',
    url,
    entities: ormEntities,
    logging: true,
    logger: {
      logQuery: (query) => {
        if (/^(INSERT|UPDATE|DELETE)/.test(query)) written.push(query);
      },
      logQueryError: () => undefined,
      logQuerySlow: () => undefined,
      logSchemaBuild: () => undefined,
      logMigration: () => undefined,
      log: () => undefined,
    },
    ...options,
  } as DataSourceOptions);
  await dataSource.initialize();
  return { dataSource, installed: await installKeyturn(dataSource, keyturn), writes: () => written.splice(0) };
}
