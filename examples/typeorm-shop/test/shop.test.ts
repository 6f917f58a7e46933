// The shop's own tests: plain entity code, and the two things that differ from plain columns.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { openShop, type Shop } from '../src/data-source.js';
import { Customer } from '../src/entities/customer.js';

let shop: Shop;

before(async () => {
  shop = await openShop();
});

after(() => shop.close());

function ada(): Customer {
  return shop.dataSource.manager.create(Customer, {
    tenant: 'acme',
    nickname: 'ada',
    email: 'ada@example.com',
    birthday: new Date('1815-12-10'),
    preferences: { newsletter: false },
    purchases: [{ note: 'a book on engines' }],
  });
}

test('what is saved is found again, with its purchases', async () => {
  const { id } = await shop.dataSource.manager.save(ada());
  const found = await shop.dataSource.manager.findOneOrFail(Customer, {
    where: { id },
    relations: { purchases: true },
  });
  assert.equal(found.email, 'ada@example.com');
  assert.deepEqual(found.birthday, new Date('1815-12-10'));
  assert.deepEqual(found.preferences, { newsletter: false });
  assert.equal(found.purchases[0]?.note, 'a book on engines');
});

test('the database holds envelopes', async () => {
  const { id } = await shop.dataSource.manager.save(ada());
  const [row] = await shop.dataSource.query('SELECT email FROM customer WHERE id = $1', [id]);
  assert.match(row.email, /^kt1\./);
});

test('an unchanged customer is not written', async () => {
  const { id } = await shop.dataSource.manager.save(ada());
  const found = await shop.dataSource.manager.findOneByOrFail(Customer, { id });
  await shop.dataSource.manager.save(found);
  assert.equal((await shop.dataSource.manager.findOneByOrFail(Customer, { id })).version, 1);
});

test('a customer cannot be sought by an encrypted property', async () => {
  await assert.rejects(
    shop.dataSource.manager.findBy(Customer, { email: 'ada@example.com' }),
    /Customer.email is encrypted/,
  );
});
