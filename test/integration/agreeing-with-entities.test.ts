// What keeps entities, registry and stored values honest: disagreements are found before the first query, and a value that
// does not decrypt gives an error that names entity, column and key, and shows no bytes.
import { randomBytes } from 'node:crypto';
import { Column, DataSource, Entity, PrimaryColumn, PrimaryGeneratedColumn, type DataSourceOptions } from 'typeorm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { openKeyturn, type Keyturn } from '../../src/app.js';
import { describeTargets, Encrypted, installKeyturn } from '../../src/orm/index.js';
import { Buyer, openOrmShop, ormConfig, ormEntities, ormTables, Seat, type OrmShop } from '../support/orm-shop.js';
import { openShop, type Shop } from '../support/shop.js';

@Entity('gift')
class PlainGift {
  @PrimaryColumn({ type: 'text' })
  code!: string;

  @Column({ type: 'text' })
  message!: string;
}

@Entity('gift')
class OtherwiseBound {
  @PrimaryColumn({ type: 'text' })
  code!: string;

  @Encrypted({ type: 'string', bind: 'column' })
  message!: string;
}

@Entity('gift')
class OtherwiseStored {
  @PrimaryColumn({ type: 'text' })
  code!: string;

  @Encrypted({ type: 'buffer' })
  message!: Buffer;
}

@Entity('gift')
class OtherColumn {
  @PrimaryColumn({ type: 'text' })
  code!: string;

  @Encrypted({ type: 'string' })
  unheard!: string;
}

@Entity('gift')
class OtherKey {
  @PrimaryColumn({ type: 'text', name: 'message' })
  code!: string;

  @Encrypted({ type: 'string', name: 'code' })
  message!: string;
}

@Entity('nowhere')
class Unregistered {
  @PrimaryGeneratedColumn()
  id!: number;

  @Encrypted({ type: 'string' })
  secret!: string;
}

@Entity('document')
class AlwaysNumbered {
  @PrimaryGeneratedColumn('identity', { type: 'integer', generatedIdentity: 'ALWAYS' })
  id!: number;

  @Encrypted({ type: 'string' })
  title!: string;
}

@Entity('seat')
class Untenanted {
  @PrimaryColumn({ type: 'uuid' })
  day!: string;

  @PrimaryColumn({ type: 'smallint' })
  number!: number;

  @Encrypted({ type: 'string', nullable: true })
  guest!: string;
}

let shop: Shop;
let keyturn: Keyturn;
let orm: OrmShop;

beforeAll(async () => {
  shop = await openShop({ config: ormConfig, ddl: ormTables });
  keyturn = await shop.open();
  orm = await openOrmShop(shop.url, keyturn);
});

afterAll(async () => {
  await orm.dataSource.destroy();
  await shop.close();
});

async function errorOf(work: () => Promise<unknown>): Promise<unknown> {
  return work().then(
    () => expect.fail('expected an error'),
    (error: unknown) => error,
  );
}

async function installing(entity: DataSourceOptions['entities']): Promise<unknown> {
  const dataSource = new DataSource({ type: 'postgres', url: shop.url, entities: entity ?? [] });
  await dataSource.initialize();
  try {
    return await errorOf(() => installKeyturn(dataSource, keyturn));
  } finally {
    await dataSource.destroy();
  }
}

describe('before the first query', () => {
  for (const [entity, code, words] of [
    [PlainGift, 'TARGET_INVALID', 'PlainGift.message is a plain @Column()'],
    [
      OtherwiseBound,
      'TARGET_INVALID',
      'is bound to the column, and keyturn init registered public.gift.message as bind: row',
    ],
    [
      OtherwiseStored,
      'TARGET_INVALID',
      'has column type bytea, and keyturn init registered public.gift.message as text',
    ],
    [OtherColumn, 'TARGET_NOT_FOUND', 'OtherColumn.unheard'],
    [OtherKey, 'TARGET_INVALID', 'OtherKey'],
    [
      Unregistered,
      'TARGET_NOT_FOUND',
      'Unregistered.secret is @Encrypted(), and public.nowhere is no target; registered: ',
    ],
    [AlwaysNumbered, 'TARGET_INVALID', 'GENERATED ALWAYS'],
    [Untenanted, 'TARGET_INVALID', 'Untenanted has no property for column tenant_id'],
  ] as const)
    test(`${entity.name} is refused, and both sides are named`, async () => {
      const error = await installing([entity]);
      expect(error).toMatchObject({ code });
      expect((error as Error).message).toContain(words);
    });

  test('a data source that is closed, or has Keyturn already, is refused', async () => {
    const closed = new DataSource({ type: 'postgres', url: shop.url, entities: [] });
    expect(await errorOf(() => installKeyturn(closed, keyturn))).toMatchObject({ code: 'CONFIG_INVALID' });
    expect(await errorOf(() => installKeyturn(orm.dataSource, keyturn))).toMatchObject({ code: 'CONFIG_INVALID' });
  });

  test('a type that TypeScript does not emit, and a Buffer in a text column, are asked about', () => {
    const decorate = (options: Parameters<typeof Encrypted>[0]) => (): void =>
      Encrypted(options)(class Sample {}.prototype, 'value');
    expect(decorate({})).toThrow(/does not emit what Sample.value is/);
    expect(decorate({ type: 'buffer', columnType: 'text' })).toThrow(/must be bytea/);
  });

  test('entities describe the keyturn.yaml they need', () => {
    expect(parse(describeTargets(orm.dataSource, { keyring: 'customers', scope: 'tenant_id' }))).toEqual({
      keyrings: { customers: { root: 'env:KEYTURN_ROOT_KEY' } },
      targets: expect.arrayContaining([
        { table: 'public.seat', keyring: 'customers', scope: 'tenant_id', columns: { guest: {}, phone: {} } },
        { table: 'public.document', keyring: 'customers', columns: { title: {}, number: {}, amount: {} } },
      ]) as unknown,
    });
  });
});

describe('a data source without Keyturn', () => {
  test('I8 neither shows envelopes as values nor stores plaintext', async () => {
    const { id } = await orm.dataSource.manager.save(
      orm.dataSource.manager.create(Buyer, { login: 'bare', email: 'bare@example.com' }),
    );
    const bare = new DataSource({ type: 'postgres', url: shop.url, entities: ormEntities });
    await bare.initialize();
    const found = await bare.manager.findOneByOrFail(Buyer, { id });
    expect(() => String(found.email)).toThrow(/Keyturn is not installed/);
    await expect(bare.manager.insert(Buyer, { login: 'leak', email: 'leak@example.com' })).rejects.toThrow(
      /invalid byte sequence/,
    );
    await expect(bare.manager.update(Buyer, id, { email: 'leak@example.com' })).rejects.toThrow(
      /invalid byte sequence/,
    );
    await bare.destroy();
    expect(await shop.query(`SELECT 1 FROM buyer WHERE email NOT LIKE 'kt1.%'`)).toEqual([]);
  });
});

describe('a value that does not decrypt', () => {
  test('I2 I7 damaged and swapped values name entity, column and key, and show no bytes', async () => {
    const { manager } = orm.dataSource;
    const [one, two] = await manager.save([
      manager.create(Buyer, { login: 'one', email: 'one@example.com' }),
      manager.create(Buyer, { login: 'two', email: 'two@example.com' }),
    ]);
    const [{ email: ofTwo = '' } = {}] = await shop.query('SELECT email FROM buyer WHERE id = $1', [two?.id]);
    await shop.query('UPDATE buyer SET email = $2 WHERE id = $1', [one?.id, ofTwo]);
    const id = one?.id ?? '';
    const swapped = await errorOf(() => manager.findOneByOrFail(Buyer, { id }));
    expect(swapped).toMatchObject({
      code: 'DECRYPT_FAILED',
      details: {
        entity: 'Buyer',
        property: 'Buyer.email',
        column: 'public.buyer.email',
        keyId: '1',
        keyring: 'customers',
      },
    });
    expect((swapped as Error).message).toContain('Buyer.email (public.buyer.email)');
    await shop.query(`UPDATE buyer SET email = overlay(email placing 'AAAA' from 60) WHERE id = $1`, [two?.id]);
    const damaged = await errorOf(() => manager.findOneByOrFail(Buyer, { id: two?.id ?? '' }));
    expect(damaged).toMatchObject({ code: 'DECRYPT_FAILED' });
    await shop.query(`UPDATE buyer SET email = 'plaintext@example.com' WHERE id = $1`, [two?.id]);
    const plain = await errorOf(() => manager.findOneByOrFail(Buyer, { id: two?.id ?? '' }));
    expect(plain).toMatchObject({ code: 'DECRYPT_FAILED', details: { keyId: undefined } });
    for (const error of [swapped, damaged, plain])
      expect(JSON.stringify(error) + String((error as Error).stack)).not.toMatch(/kt1\.|@example\.com/);
    // An update does not need the old value, so a row is mended in place.
    await manager.update(Buyer, id, { email: 'mended' });
    expect(await manager.findOneByOrFail(Buyer, { id })).toMatchObject({ email: 'mended' });
  });

  test('a row under another tenant does not decrypt', async () => {
    const { manager } = orm.dataSource;
    const key = { day: '0191f2a4-7c1b-7000-8000-000000000001', number: 1 };
    await manager.insert(Seat, { ...key, tenant: 1, guest: 'Ada' });
    await shop.query('UPDATE seat SET tenant_id = 2');
    expect(await errorOf(() => manager.findOneByOrFail(Seat, key))).toMatchObject({ code: 'DECRYPT_FAILED' });
  });

  test('a key that is gone and a root key that is wrong give errors of their own', async () => {
    const { manager } = orm.dataSource;
    const { id } = await manager.save(manager.create(Buyer, { login: 'gone', email: 'gone' }));
    const [{ email = '' } = {}] = await shop.query('SELECT email FROM buyer WHERE id = $1', [id]);
    const envelope = Buffer.from(String(email).slice(4), 'base64url');
    envelope.writeUInt32BE(99, 4);
    await shop.query('UPDATE buyer SET email = $2 WHERE id = $1', [id, `kt1.${envelope.toString('base64url')}`]);
    expect(await errorOf(() => manager.findOneByOrFail(Buyer, { id }))).toMatchObject({
      code: 'KEY_NOT_HELD',
      details: { property: 'Buyer.email', keyId: '99' },
    });
    // The right id over another key's check: no key is tried that is not the one.
    envelope.writeUInt32BE(1, 4);
    envelope.writeUInt32BE((envelope.readUInt32BE(8) ^ 1) >>> 0, 8);
    await shop.query('UPDATE buyer SET email = $2 WHERE id = $1', [id, `kt1.${envelope.toString('base64url')}`]);
    expect(await errorOf(() => manager.findOneByOrFail(Buyer, { id }))).toMatchObject({
      code: 'DECRYPT_FAILED',
      details: { property: 'Buyer.email', keyId: '1' },
    });
    const wrong = openKeyturn({
      config: ormConfig,
      environment: { ...shop.environment(), KEYTURN_ROOT_KEY: randomBytes(32).toString('hex') },
    });
    await expect(wrong).rejects.toMatchObject({ code: 'MASTER_KEY_MISMATCH' });
  });
});
