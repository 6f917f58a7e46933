// Entities with encrypted properties through every path of TypeORM: written as envelopes, read as what they were.
import { randomUUID } from 'node:crypto';
import { Readable } from 'node:stream';
import { IsNull, Like, Not } from 'typeorm';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { Keyturn } from '../../src/app.js';
import {
  Buyer,
  Depot,
  Document,
  Gift,
  Invoice,
  Locker,
  openOrmShop,
  ormConfig,
  ormTables,
  Passport,
  Purchase,
  Seat,
  Tenant,
  VoucherSchema,
  type OrmShop,
} from '../support/orm-shop.js';
import { openShop, type Shop } from '../support/shop.js';

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

let logins = 0;

function buyer(values: Partial<Buyer> = {}): Buyer {
  return orm.dataSource.manager.create(Buyer, { login: `login-${++logins}`, ...values });
}

const full = {
  email: 'ada@example.com',
  score: -12.5,
  balance: 2n ** 70n,
  vip: false,
  born: new Date('1815-12-10T00:00:00.000Z'),
  profile: { b: [1, { z: null, a: 'ü' }], a: true },
  photo: Buffer.from([0, 255, 1]),
  tag: 'blue',
  address: { street: 'St. James’s Square', city: 'London' },
};

async function storedOf(table: string, where: string): Promise<Record<string, unknown>> {
  const [row] = await shop.query(`SELECT * FROM ${table} WHERE ${where}`);
  return row ?? {};
}

async function errorOf(work: () => Promise<unknown>): Promise<unknown> {
  return work().then(
    () => expect.fail('expected an error'),
    (error: unknown) => error,
  );
}

describe('types', () => {
  test('every type of property comes back as what it was, and only envelopes are stored (I7)', async () => {
    const saved = await orm.dataSource.manager.save(buyer(full));
    expect(saved).toMatchObject(full);
    const stored = await storedOf('buyer', `id = ${saved.id}`);
    for (const column of ['email', 'score', 'balance', 'vip', 'born', 'profile', 'tag', 'addressStreet'])
      expect(stored[column]).toMatch(/^kt1\./);
    expect((stored['photo'] as Buffer).subarray(0, 2).toString()).toBe('KT');
    const found = await orm.dataSource.manager.findOneByOrFail(Buyer, { id: saved.id });
    expect(found).toMatchObject(full);
  });

  test('NULL stays NULL, and a property that is not set is not touched', async () => {
    const saved = await orm.dataSource.manager.save(buyer({ email: null }));
    expect(await storedOf('buyer', `id = ${saved.id}`)).toMatchObject({ email: null, score: null, photo: null });
    const found = await orm.dataSource.manager.findOneByOrFail(Buyer, { id: saved.id });
    expect(found).toMatchObject({ email: null, score: null, photo: null });
  });

  test('a value of another type is refused before anything is written', async () => {
    const wrong = buyer({ score: 'seven' as unknown as number });
    expect(await errorOf(() => orm.dataSource.manager.save(wrong))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('a finite number for Buyer.score'),
    });
    const expression = buyer({ email: (() => 'now()') as unknown as string });
    expect(await errorOf(() => orm.dataSource.manager.insert(Buyer, expression))).toMatchObject({
      code: 'VALUE_INVALID',
    });
    expect(orm.writes().filter((statement) => statement.includes('seven'))).toEqual([]);
  });
});

describe('writing', () => {
  test('saving an unchanged entity writes nothing, and a change elsewhere keeps the envelope', async () => {
    const { id } = await orm.dataSource.manager.save(buyer(full));
    const found = await orm.dataSource.manager.findOneByOrFail(Buyer, { id });
    const before = await storedOf('buyer', `id = ${id}`);
    orm.writes();
    await orm.dataSource.manager.save(found);
    found.profile = { a: true, b: [1, { a: 'ü', z: null }] };
    await orm.dataSource.manager.save(found);
    expect(orm.writes()).toEqual([]);
    expect(await storedOf('buyer', `id = ${id}`)).toEqual(before);
    found.login = `renamed-${id}`;
    await orm.dataSource.manager.save(found);
    const after = await storedOf('buyer', `id = ${id}`);
    expect(after).toMatchObject({ email: before['email'], photo: before['photo'], version: 2 });
    expect(orm.writes().join()).not.toContain('"email"');
  });

  test('save updates what changed, and leaves the entity in hands as it was', async () => {
    const saved = await orm.dataSource.manager.save(buyer(full));
    saved.email = 'new@example.com';
    saved.address.street = null;
    await orm.dataSource.manager.save(saved);
    expect(saved.email).toBe('new@example.com');
    const found = await orm.dataSource.manager.findOneByOrFail(Buyer, { id: saved.id });
    expect(found).toMatchObject({ ...full, email: 'new@example.com', address: { street: null, city: 'London' } });
  });

  test('preload merges into the stored values, and only what differs is written', async () => {
    const { manager } = orm.dataSource;
    const { id } = await manager.save(buyer(full));
    const before = await storedOf('buyer', `id = ${id}`);
    const loaded = await manager.preload(Buyer, { id, email: 'preloaded' });
    expect(loaded).toMatchObject({ ...full, email: 'preloaded' });
    await manager.save(loaded as Buyer);
    expect(await storedOf('buyer', `id = ${id}`)).toMatchObject({ photo: before['photo'], tag: before['tag'] });
    expect(await manager.findOneByOrFail(Buyer, { id })).toMatchObject({ ...full, email: 'preloaded' });
  });

  test('insert takes the next number of a sequence, also for many rows and for listeners switched off', async () => {
    const many = [buyer({ email: 'a' }), buyer({ email: null }), buyer({ email: 'c' })];
    const result = await orm.dataSource.manager.insert(Buyer, many);
    expect(new Set(result.identifiers.map(({ id }) => String(id))).size).toBe(3);
    expect(many.map(({ email }) => email)).toEqual(['a', null, 'c']);
    for (const { id, email } of many)
      expect(await orm.dataSource.manager.findOneByOrFail(Buyer, { id })).toMatchObject({ email });
    const quiet = await orm.dataSource.manager.save(buyer({ email: 'quiet' }), { listeners: false });
    expect(await orm.dataSource.manager.findOneByOrFail(Buyer, { id: quiet.id })).toMatchObject({ email: 'quiet' });
  });

  test('ids that the client makes, uuids and identity columns are the address of a value', async () => {
    const gift = await orm.dataSource.manager.save(orm.dataSource.manager.create(Gift, { code: 'G 1', message: 'hi' }));
    expect(await orm.dataSource.manager.findOneByOrFail(Gift, { code: gift.code })).toMatchObject({ message: 'hi' });
    const numbered = buyer({ id: '900001', email: 'numbered' });
    await orm.dataSource.manager.insert(Buyer, numbered);
    expect(await orm.dataSource.manager.findOneByOrFail(Buyer, { id: '900001' })).toMatchObject({ email: 'numbered' });
    const purchase = await orm.dataSource.manager.save(orm.dataSource.manager.create(Purchase, { note: 'one' }));
    expect(await orm.dataSource.manager.findOneByOrFail(Purchase, { id: purchase.id })).toMatchObject({ note: 'one' });
  });

  test('update of one row and of many gives each row an envelope of its own', async () => {
    const { manager } = orm.dataSource;
    const saved = await manager.save([buyer({ email: 'x1', tag: 't' }), buyer({ email: 'x2', tag: 't' })]);
    const ids = saved.map(({ id }) => id);
    await manager.update(Buyer, ids[0] ?? '', { email: 'one' });
    expect(await manager.findOneByOrFail(Buyer, { id: ids[0] ?? '' })).toMatchObject({ email: 'one' });
    const result = await manager.update(Buyer, ids, { email: 'both', photo: Buffer.from('p'), tag: 'same' });
    expect(result.affected).toBe(2);
    for (const id of ids)
      expect(await manager.findOneByOrFail(Buyer, { id })).toMatchObject({
        email: 'both',
        photo: Buffer.from('p'),
        tag: 'same',
        version: id === ids[0] ? 3 : 2,
      });
    expect(await manager.update(Buyer, { login: 'nobody' }, { email: 'none' })).toMatchObject({ affected: 0 });
  });

  test('the query builder inserts and updates, and its conditions keep their meaning', async () => {
    const { manager } = orm.dataSource;
    const [one, two] = [buyer({ email: 'q1' }), buyer({ email: 'q2' })];
    await manager.createQueryBuilder().insert().into(Buyer).values([one, two]).execute();
    const result = await manager
      .createQueryBuilder()
      .update(Buyer)
      .set({ email: 'or', address: { street: 'embedded' } })
      .where('login = :one', { one: one.login })
      .orWhere('login = :two', { two: two.login })
      .execute();
    expect(result.affected).toBe(2);
    expect(await manager.findBy(Buyer, [{ login: one.login }, { login: two.login }])).toMatchObject([
      { email: 'or', address: { street: 'embedded' } },
      { email: 'or', address: { street: 'embedded' } },
    ]);
    await manager.createQueryBuilder().update(Buyer).set({ email: null }).where({ login: one.login }).execute();
    expect(await manager.findOneByOrFail(Buyer, { login: one.login })).toMatchObject({ email: null });
  });

  test('an insert that names its columns, or ignores conflicts, still names the row’s key', async () => {
    const { manager } = orm.dataSource;
    const login = `login-${++logins}`;
    const insert = manager.createQueryBuilder().insert().into(Buyer, ['login', 'email', 'version']);
    await insert.values({ login, email: 'named', tag: 'left out' }).execute();
    expect(await manager.findOneByOrFail(Buyer, { login })).toMatchObject({ email: 'named', tag: null });
    await manager.createQueryBuilder().insert().into(Buyer).values({ login, email: 'again' }).orIgnore().execute();
    expect(await manager.findOneByOrFail(Buyer, { login })).toMatchObject({ email: 'named' });
  });

  test('values that would be copied from other rows are refused', async () => {
    const { manager } = orm.dataSource;
    const copy = manager
      .createQueryBuilder()
      .insert()
      .into(Gift, ['code', 'message'])
      .valuesFromSelect((query) => query.select('code || $$2$$').addSelect('message').from(Gift, 'g'));
    expect(await errorOf(() => copy.execute())).toMatchObject({ code: 'VALUE_INVALID' });
    await manager.insert(Gift, { code: 'C 1', message: 'one' });
    const harmless = manager
      .createQueryBuilder()
      .insert()
      .into(Buyer, ['login', 'version'])
      .valuesFromSelect((query) => query.select('$$copied$$').addSelect('1').from(Gift, 'g').where(`g.code = 'C 1'`));
    await harmless.execute();
    expect(await manager.countBy(Buyer, { login: 'copied' })).toBe(1);
    expect(await errorOf(() => manager.increment(Buyer, { login: 'x' }, 'score', 1))).toMatchObject({
      code: 'VALUE_INVALID',
    });
  });

  test('an update of more rows than one statement takes is refused, and changes none', async () => {
    const { manager } = orm.dataSource;
    await shop.query(`INSERT INTO buyer (login, version) SELECT 'bulk-' || n, 1 FROM generate_series(1, 1001) n`);
    const all = manager.createQueryBuilder().update(Buyer).set({ email: 'all' }).where(`login LIKE 'bulk-%'`);
    expect(await errorOf(() => all.execute())).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('more than 1000 rows'),
    });
    const most = manager.createQueryBuilder().update(Buyer).set({ email: 'most' }).where(`login LIKE 'bulk-1%'`);
    const { affected } = await most.execute();
    expect(await manager.countBy(Buyer, { login: Like('bulk-%'), email: Not(IsNull()) })).toBe(affected);
    await shop.query(`DELETE FROM buyer WHERE login LIKE 'bulk-%'`);
  });

  test('an SQL expression for an encrypted property is refused', async () => {
    const work = orm.dataSource.manager
      .createQueryBuilder()
      .update(Buyer)
      .set({ email: () => "'plain'" })
      .where({ login: 'x' });
    expect(await errorOf(() => work.execute())).toMatchObject({ code: 'VALUE_INVALID' });
  });

  test('upsert finds the key of the row that is there, by a unique column or by the key itself', async () => {
    const { manager } = orm.dataSource;
    const there = await manager.save(buyer({ email: 'before', tag: 'before' }));
    const fresh = `login-${++logins}`;
    await manager.upsert(
      Buyer,
      [
        { login: there.login, email: 'after' },
        { login: fresh, email: 'fresh' },
      ],
      ['login'],
    );
    const found = await manager.findOneByOrFail(Buyer, { login: there.login });
    expect(found).toMatchObject({ id: there.id, email: 'after', tag: 'before' });
    expect(await manager.findOneByOrFail(Buyer, { login: fresh })).toMatchObject({ email: 'fresh' });
    await manager.upsert(Gift, { code: 'G 2', message: 'first' }, ['code']);
    await manager.upsert(Gift, { code: 'G 2', message: 'second' }, ['code']);
    expect(await manager.findOneByOrFail(Gift, { code: 'G 2' })).toMatchObject({ message: 'second' });
  });

  test('I2 an upsert that meets the row of another key or tenant writes nothing', async () => {
    const { manager } = orm.dataSource;
    const there = await manager.save(buyer({ email: 'kept' }));
    expect(
      await errorOf(() => manager.upsert(Buyer, { id: '777777', login: there.login, email: 'moved' }, ['login'])),
    ).toMatchObject({ code: 'VALUE_INVALID', message: expect.stringContaining('another key or tenant') });
    expect(await manager.findOneByOrFail(Buyer, { id: there.id })).toMatchObject({ email: 'kept' });
    const seat = { day: randomUUID(), number: 1 };
    await manager.insert(Seat, { ...seat, tenant: 1, guest: 'one' });
    await manager.upsert(Seat, { ...seat, tenant: 1, guest: 'uno' }, ['day', 'number']);
    expect(
      await errorOf(() => manager.upsert(Seat, { ...seat, tenant: 2, guest: 'dos' }, ['day', 'number'])),
    ).toMatchObject({
      code: 'VALUE_INVALID',
    });
    expect(await manager.findOneByOrFail(Seat, seat)).toMatchObject({ tenant: 1, guest: 'uno' });
  });

  test('I8 RETURNING brings plaintexts into entities and generated maps, and a save after it keeps them', async () => {
    const { manager } = orm.dataSource;
    const made = buyer({ email: 'returned', profile: { a: 1 }, address: { street: 'S', city: 'C' } });
    const inserted = await manager.createQueryBuilder().insert().into(Buyer).values(made).returning('*').execute();
    expect(made).toMatchObject({ email: 'returned', profile: { a: 1 }, address: { street: 'S', city: 'C' } });
    expect(inserted.generatedMaps).toMatchObject([{ id: made.id, email: 'returned', address: { street: 'S' } }]);
    expect(inserted.raw).toMatchObject([{ email: expect.stringMatching(/^kt1\./) as unknown }]);
    await manager.save(made);
    const update = (returning: string[]): Promise<unknown> =>
      manager
        .createQueryBuilder()
        .update(Buyer)
        .set({ email: 'updated' })
        .whereEntity(made)
        .returning(returning)
        .execute();
    expect(await update(['email', 'profile'])).toMatchObject({ generatedMaps: [{ email: 'updated' }] });
    expect(made).toMatchObject({ email: 'updated', profile: { a: 1 } });
    await manager.save(made);
    expect(await manager.findOneByOrFail(Buyer, { id: made.id })).toMatchObject({ email: 'updated' });
    const seat = manager.create(Seat, { day: randomUUID(), number: 4, tenant: 3, guest: 'Ada' });
    await manager.createQueryBuilder().insert().into(Seat).values(seat).returning(['guest']).execute();
    expect(seat.guest).toBe('Ada');
  });

  test('RETURNING of several entities must say which value is whose', async () => {
    const { manager } = orm.dataSource;
    const two = await manager.save([buyer({ email: 'r1' }), buyer({ email: 'r2' })]);
    const update = (returning: string | string[]): Promise<unknown> =>
      manager.createQueryBuilder().update(Buyer).set({ tag: 'both' }).whereEntity(two).returning(returning).execute();
    await manager.createQueryBuilder().update(Buyer).set({ tag: 'neither' }).whereEntity(two).execute();
    expect(await errorOf(() => update(['email']))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('return id too'),
    });
    await update('*');
    for (const { id, login, email, tag } of two) {
      expect(tag).toBe('both');
      expect(await manager.findOneByOrFail(Buyer, { id })).toMatchObject({ login, email, tag });
    }
  });

  test('I8 an envelope in place of a plaintext is refused, so that it is not encrypted again', async () => {
    const { manager } = orm.dataSource;
    const saved = await manager.save(buyer({ email: 'once', photo: Buffer.from('p') }));
    const stored = await storedOf('buyer', `id = ${saved.id}`);
    for (const values of [{ email: String(stored['email']) }, { photo: stored['photo'] as Buffer }])
      expect(await errorOf(() => manager.update(Buyer, saved.id, values))).toMatchObject({
        code: 'VALUE_INVALID',
        message: expect.stringContaining('was given an envelope in place of its plaintext'),
      });
    await manager.update(Buyer, saved.id, { email: 'kt1.AAAA is a text like any other' });
    expect(await manager.findOneByOrFail(Buyer, { id: saved.id })).toMatchObject({
      email: 'kt1.AAAA is a text like any other',
    });
  });

  test('an upsert whose own condition leaves a row alone is none that meets another’s row', async () => {
    const { manager } = orm.dataSource;
    const there = await manager.save(buyer({ email: 'there', tag: 'kept' }));
    const same = { login: there.login, version: 1 };
    await manager.upsert(Buyer, same, { conflictPaths: ['login'], skipUpdateIfNoValuesChanged: true });
    const upsert = (values: Partial<Buyer>, condition: string): Promise<unknown> =>
      manager
        .createQueryBuilder()
        .insert()
        .into(Buyer)
        .values(values)
        .orUpdate(['email'], ['login'], { overwriteCondition: { where: condition } })
        .execute();
    await upsert({ ...same, email: 'not now' }, 'buyer.version > 5');
    expect(await manager.findOneByOrFail(Buyer, { id: there.id })).toMatchObject({ email: 'there' });
    await upsert({ ...same, email: 'now' }, 'buyer.version < 5');
    expect(await manager.findOneByOrFail(Buyer, { id: there.id })).toMatchObject({ email: 'now' });
    expect(await errorOf(() => upsert({ ...same, id: '777778', email: 'moved' }, 'buyer.version > 5'))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('another key or tenant'),
    });
    const seat = { day: randomUUID(), number: 8, tenant: 1, phone: '1' };
    await manager.insert(Seat, seat);
    await manager.upsert(
      Seat,
      { day: seat.day, number: 8, tenant: 1 },
      {
        conflictPaths: ['day', 'number'],
        skipUpdateIfNoValuesChanged: true,
      },
    );
    expect(await manager.findOneByOrFail(Seat, { day: seat.day, number: 8 })).toMatchObject({ tenant: 1, phone: '1' });
  });

  test('a key comes from the sequence that is its column’s default, owned or not', async () => {
    const { manager } = orm.dataSource;
    await shop.query('SELECT setval($1, 700)', ['shared_numbers']);
    const depot = manager.create(Depot, { home: { street: 'h', city: null }, work: { street: 'w', city: null } });
    await manager.save(depot);
    expect(depot.id).toBe('701');
    expect(await manager.findOneByOrFail(Depot, { id: '701' })).toMatchObject({
      home: { street: 'h' },
      work: { street: 'w' },
    });
  });

  test('a failed transaction leaves neither rows nor a changed entity', async () => {
    const made = buyer({ email: 'undone' });
    await errorOf(() =>
      orm.dataSource.transaction(async (manager) => {
        await manager.save(made);
        throw new Error('undo');
      }),
    );
    expect(made.email).toBe('undone');
    expect(await shop.query('SELECT 1 FROM buyer WHERE login = $1', [made.login])).toEqual([]);
    const twin = buyer({ login: (await orm.dataSource.manager.save(buyer())).login, email: 'twin' });
    await errorOf(() => orm.dataSource.manager.insert(Buyer, twin));
    expect(twin.email).toBe('twin');
  });

  test('soft delete and recovery leave the values alone', async () => {
    const { manager } = orm.dataSource;
    const saved = await manager.save(buyer({ email: 'soft' }));
    await manager.softDelete(Buyer, saved.id);
    expect(await manager.findOneBy(Buyer, { id: saved.id })).toBeNull();
    const hidden = await manager.findOneOrFail(Buyer, { where: { id: saved.id }, withDeleted: true });
    expect(hidden.email).toBe('soft');
    await manager.recover(hidden);
    expect(await manager.findOneByOrFail(Buyer, { id: saved.id })).toMatchObject({ email: 'soft' });
    await manager.softRemove(await manager.findOneByOrFail(Buyer, { id: saved.id }));
    expect(await storedOf('buyer', `id = ${saved.id}`)).toMatchObject({ email: expect.stringMatching(/^kt1\./) });
  });
});

describe('tenants and composite keys', () => {
  test('a value is bound to all columns of its key and to its tenant, NULL included', async () => {
    const { manager } = orm.dataSource;
    for (const tenant of [7, null]) {
      const key = { day: randomUUID().toUpperCase(), number: -3 };
      await manager.save(manager.create(Seat, { ...key, tenant, guest: 'Ada', phone: '1' }));
      expect(await manager.findOneByOrFail(Seat, key)).toMatchObject({ tenant, guest: 'Ada', phone: '1' });
      await manager.update(Seat, key, { guest: 'Grace' });
      expect(await manager.findOneByOrFail(Seat, key)).toMatchObject({ tenant, guest: 'Grace', phone: '1' });
    }
  });

  test('I2 a change of tenant is refused unless every value is set with it', async () => {
    const { manager } = orm.dataSource;
    const key = { day: randomUUID(), number: 2 };
    const seat = await manager.save(manager.create(Seat, { ...key, tenant: 1, guest: 'Ada', phone: '1' }));
    expect(await errorOf(() => manager.update(Seat, key, { tenant: 2, guest: 'Ada' }))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('Seat.phone unreadable'),
    });
    seat.tenant = 2;
    expect(await errorOf(() => manager.save(seat))).toMatchObject({ code: 'VALUE_INVALID' });
    await manager.update(Seat, key, { tenant: 1 });
    await manager.update(Seat, key, { tenant: 2, guest: 'Ada', phone: '2' });
    expect(await manager.findOneByOrFail(Seat, key)).toMatchObject({ tenant: 2, guest: 'Ada', phone: '2' });
  });

  test('I2 a tenant that is a relation is bound like any other, and relation() cannot change it alone', async () => {
    const { manager } = orm.dataSource;
    const [one, two] = await manager.save([manager.create(Tenant, { id: 1 }), manager.create(Tenant, { id: 2 })]);
    const related = { code: 'L 1', tenant: one as Tenant, pin: '1234' };
    await manager.save(manager.create(Locker, related));
    await manager.save(manager.create(Locker, { code: 'L 2', tenantId: 2, pin: '5678' }));
    expect(await manager.findOneOrFail(Locker, { where: { code: 'L 1' }, relations: { tenant: true } })).toMatchObject({
      pin: '1234',
      tenant: { id: 1 },
    });
    for (const tenant of [2, two])
      expect(
        await errorOf(() => manager.createQueryBuilder().relation(Locker, 'tenant').of('L 1').set(tenant)),
      ).toMatchObject({ code: 'VALUE_INVALID', message: expect.stringContaining('Locker.pin unreadable') });
    await manager.createQueryBuilder().relation(Locker, 'tenant').of('L 1').set(1);
    expect(await manager.findOneByOrFail(Locker, { code: 'L 1' })).toMatchObject({ tenantId: 1, pin: '1234' });
    const buyers = await manager.save(buyer({ email: 'related' }));
    const purchase = await manager.save(manager.create(Purchase, { note: 'moved' }));
    await manager.createQueryBuilder().relation(Buyer, 'purchases').of(buyers.id).add(purchase.id);
    expect(await manager.findOneByOrFail(Purchase, { id: purchase.id })).toMatchObject({
      note: 'moved',
      buyer: { email: 'related' },
    });
    expect(await manager.createQueryBuilder().relation(Buyer, 'purchases').of(buyers.id).loadMany()).toMatchObject([
      { note: 'moved' },
    ]);
    await manager.createQueryBuilder().relation(Buyer, 'purchases').of(buyers.id).remove(purchase.id);
    expect((await manager.findOneByOrFail(Purchase, { id: purchase.id })).buyer).toBeNull();
  });

  test('a tenant that is not known yet is asked for', async () => {
    const seat = { day: randomUUID(), number: 9, guest: 'Ada' };
    expect(await errorOf(() => orm.dataSource.manager.insert(Seat, seat))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('tenant is not known here'),
    });
  });
});

describe('reading', () => {
  test('relations bring their values decrypted: cascaded, joined, eager, lazy and loaded by query', async () => {
    const { manager } = orm.dataSource;
    const purchase = manager.create(Purchase, { note: 'a book' });
    const saved = await manager.save(buyer({ email: 'owner', purchases: [purchase] }));
    const joined = await manager.findOneOrFail(Buyer, { where: { id: saved.id }, relations: { purchases: true } });
    expect(joined.purchases).toMatchObject([{ note: 'a book' }]);
    expect(await manager.findOneByOrFail(Purchase, { id: saved.purchases[0]?.id ?? '' })).toMatchObject({
      buyer: { email: 'owner' },
    });
    const given = manager.create(Gift, { code: `for ${saved.id}`, message: 'm' });
    given.buyer = Promise.resolve(saved);
    await manager.save(given);
    const gift = await manager.findOneByOrFail(Gift, { code: `for ${saved.id}` });
    expect((await gift.buyer).email).toBe('owner');
    const queried = await manager.findOneOrFail(Buyer, {
      where: { id: saved.id },
      relations: { purchases: true },
      relationLoadStrategy: 'query',
    });
    expect(queried).toMatchObject({ email: 'owner', purchases: [{ note: 'a book' }] });
    const built = await manager
      .createQueryBuilder(Buyer, 'b')
      .leftJoinAndSelect('b.purchases', 'p')
      .where('b.id = :id', { id: saved.id })
      .take(1)
      .getOneOrFail();
    expect(built).toMatchObject({ email: 'owner', purchases: [{ note: 'a book' }] });
  });

  test('a join that is mapped without a relation is opened by hand', async () => {
    const { manager } = orm.dataSource;
    const saved = await manager.save(buyer({ email: 'mapped', purchases: [manager.create(Purchase, { note: 'p' })] }));
    const loaded = await manager
      .createQueryBuilder(Buyer, 'b')
      .leftJoinAndMapOne('b.latest', Purchase, 'p', 'p.buyer_id = b.id')
      .where('b.id = :id', { id: saved.id })
      .getOneOrFail();
    const { latest } = loaded as Buyer & { latest: Purchase };
    expect(() => `${latest.note}`).toThrow(/Purchase.note was loaded but not decrypted/);
    await orm.installed.open(Purchase, [latest]);
    expect(latest.note).toBe('p');
  });

  test('single table inheritance: each child has its own properties, through the parent too', async () => {
    const { manager } = orm.dataSource;
    const passport = await manager.save(manager.create(Passport, { title: 'pass', number: 'P1' }));
    const invoice = await manager.save(manager.create(Invoice, { title: 'bill', amount: 9.5 }));
    expect(await manager.findOneByOrFail(Passport, { id: passport.id })).toMatchObject({ title: 'pass', number: 'P1' });
    const all = await manager.find(Document, { order: { id: 'ASC' } });
    expect(all).toMatchObject([
      { title: 'pass', number: 'P1' },
      { title: 'bill', amount: 9.5 },
    ]);
    invoice.amount = 10;
    await manager.save(invoice);
    expect(await manager.findOneByOrFail(Invoice, { id: invoice.id })).toMatchObject({ amount: 10, title: 'bill' });
  });

  test('an EntitySchema encrypts the same way', async () => {
    const vouchers = orm.dataSource.getRepository(VoucherSchema);
    const { id } = await vouchers.save({ code: 'V-1', terms: { days: 3 } });
    expect(await vouchers.findOneByOrFail({ id })).toEqual({ id, code: 'V-1', terms: { days: 3 } });
    expect(await storedOf('voucher', `id = '${id}'`)).toMatchObject({ code: expect.stringMatching(/^kt1\./) });
  });

  test('a partial select decrypts what it selects, and asks for the key where it is left out', async () => {
    const { manager } = orm.dataSource;
    const { id } = await manager.save(buyer({ ...full, secret: 'hidden' }));
    const [some] = await manager.find(Buyer, { where: { id }, select: { id: true, email: true } });
    expect(some).toMatchObject({ id, email: full.email });
    expect(some?.score).toBeUndefined();
    expect((await manager.findOneByOrFail(Buyer, { id })).secret).toBeUndefined();
    const secret = await manager.createQueryBuilder(Buyer, 'b').addSelect('b.secret').where({ id }).getOneOrFail();
    expect(secret.secret).toBe('hidden');
    const [tagged] = await manager.find(Buyer, { where: { id }, select: { tag: true } });
    expect(tagged?.tag).toBe('blue');
    expect(await errorOf(() => manager.find(Buyer, { where: { id }, select: { email: true } }))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('Buyer.email is bound to its row, and id is not known here'),
    });
  });

  test('raw rows hold envelopes, and decryptRaw opens them', async () => {
    const { manager } = orm.dataSource;
    const { id } = await manager.save(buyer(full));
    const rows = await manager.createQueryBuilder(Buyer, 'b').where({ id }).getRawMany<Record<string, unknown>>();
    expect(rows[0]?.['b_email']).toMatch(/^kt1\./);
    const [opened] = await orm.installed.decryptRaw(Buyer, rows, { alias: 'b' });
    expect(opened).toMatchObject({ b_email: full.email, b_born: full.born, b_addressStreet: full.address.street });
    const [plain] = await orm.installed.decryptRaw(
      Buyer,
      await orm.dataSource.query('SELECT id, score FROM buyer WHERE id = $1', [id]),
    );
    expect(plain).toEqual({ id, score: full.score });
    const streamed: unknown[] = [];
    for await (const row of orm.installed.decryptRaw(Buyer, Readable.from([...rows, ...rows]), { alias: 'b' }))
      streamed.push(row);
    expect(streamed).toEqual([opened, opened]);
    const broken = orm.installed.decryptRaw(Buyer, Readable.from([{ ...rows[0], b_id: '1' }]), { alias: 'b' });
    expect(
      await errorOf(async () => {
        for await (const _ of broken) expect.fail('expected an error');
      }),
    ).toMatchObject({ code: 'DECRYPT_FAILED' });
  });

  test('I8 what was loaded behind the back of subscribers never passes for a value, and open() decrypts it', async () => {
    const { manager } = orm.dataSource;
    const { id } = await manager.save(buyer(full));
    const quiet = await manager.createQueryBuilder(Buyer, 'b').where({ id }).callListeners(false).getOneOrFail();
    expect(() => JSON.stringify(quiet)).toThrow(/Buyer.email was loaded but not decrypted/);
    expect(() => `${quiet.email ?? ''}`).toThrow(/not decrypted/);
    expect(await errorOf(() => manager.save(quiet))).toMatchObject({ code: 'VALUE_INVALID' });
    await orm.installed.open(Buyer, quiet);
    expect(quiet).toMatchObject(full);
  });

  test('a search by an encrypted property is an error and not an empty answer; NULL can be searched', async () => {
    const { manager } = orm.dataSource;
    const { id } = await manager.save(buyer({ email: 'sought' }));
    for (const email of ['sought', Like('s%'), Not('x')])
      expect(await errorOf(() => manager.findBy(Buyer, { email }))).toMatchObject({
        code: 'VALUE_INVALID',
        message: expect.stringContaining('Buyer.email is encrypted'),
      });
    expect(await errorOf(() => manager.delete(Buyer, { email: 'sought' }))).toMatchObject({ code: 'VALUE_INVALID' });
    expect(await manager.findBy(Buyer, { id, email: Not(IsNull()) })).toHaveLength(1);
    expect(await manager.findBy(Buyer, { id, email: IsNull() })).toEqual([]);
  });

  test('an encrypted property is named as it is used, also where one class is embedded twice', async () => {
    const { manager } = orm.dataSource;
    const depot = manager.create(Depot, { home: { street: 'h', city: null }, work: { street: 'w', city: null } });
    await manager.save(depot);
    expect(await errorOf(() => manager.findBy(Depot, { home: { street: 'h' } }))).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringContaining('Depot.home.street is encrypted'),
    });
    await shop.query(`UPDATE depot SET "homeStreet" = 'damaged' WHERE id = $1`, [depot.id]);
    expect(await errorOf(() => manager.findOneByOrFail(Depot, { id: depot.id }))).toMatchObject({
      code: 'DECRYPT_FAILED',
      details: { property: 'Depot.home.street', column: 'public.depot.homeStreet' },
    });
    expect(await errorOf(() => manager.findBy(Document, { title: 't' }))).toMatchObject({
      message: expect.stringContaining('Document.title is encrypted') as unknown,
    });
  });

  test.each([
    'b.email = :e',
    'b.email=:e',
    '"b"."email" <> :e',
    ':e = b.email',
    'b.email IN (:...es)',
    'b.email NOT LIKE :e',
    'lower(b.email) = :e',
    '(b.email)::text ILIKE :e',
    'b.login = :e OR b.address.street = :e',
    'email = :e',
  ])('a condition written as text on an encrypted property is refused: %s', async (condition) => {
    const { manager } = orm.dataSource;
    const parameters = { e: 'x', es: ['x'] };
    const query = manager.createQueryBuilder(Buyer, 'b').where(condition, parameters);
    expect(await errorOf(() => query.getMany())).toMatchObject({
      code: 'VALUE_INVALID',
      message: expect.stringMatching(/Buyer\.(?:email|address\.street) is encrypted.* docs\/typeorm\.md/) as unknown,
    });
  });

  test('conditions as text are refused to UPDATE, DELETE, soft delete and joins, and allowed where they mean something', async () => {
    const { manager } = orm.dataSource;
    const builder = (): ReturnType<typeof manager.createQueryBuilder> => manager.createQueryBuilder();
    for (const refused of [
      () => builder().update(Buyer).set({ login: 'x' }).where('email = :e', { e: 'x' }).execute(),
      () => builder().update(Buyer).set({ email: 'x' }).where('"email" = :e', { e: 'x' }).execute(),
      () => builder().delete().from(Buyer).where('buyer.email LIKE :e', { e: 'x' }).execute(),
      () =>
        builder()
          .softDelete()
          .from(Buyer)
          .where('"tag" IN (:...e)', { e: ['x'] })
          .execute(),
      () =>
        manager
          .createQueryBuilder(Buyer, 'b')
          .leftJoinAndSelect('b.purchases', 'p', 'p.note = :e', { e: 'x' })
          .getMany(),
    ])
      expect(await errorOf(refused)).toMatchObject({ code: 'VALUE_INVALID' });
    const { login } = await manager.save(buyer({ email: 'told' }));
    const found = await manager
      .createQueryBuilder(Buyer, 'b')
      .where(`b.login = :login AND b.email IS NOT NULL AND octet_length(b.email) > 20 AND b.login <> 'b.email = x'`)
      .andWhere('EXISTS (SELECT 1 FROM (SELECT 1 AS email) o WHERE email = 1)')
      .andWhere('b.deletedAt IS NULL AND :email = :email', { email: 'parameter' })
      .setParameter('login', login)
      .getMany();
    expect(found).toMatchObject([{ email: 'told' }]);
  });
});
