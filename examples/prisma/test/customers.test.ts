// The application's own tests. Customers stay in the table, so a second run after a rotation meets stale values.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { PrismaPg } from '@prisma/adapter-pg';
import { openKeyturn, type Keyturn } from 'keyturn';
import { PrismaClient } from '../generated/client.js';
import { createCustomers, type Customers } from '../src/customers.js';

const ada = { tenant: 'prisma', nickname: 'ada', email: 'ada@example.com' };

let keyturn: Keyturn;
let prisma: PrismaClient;
let customers: Customers;

before(async () => {
  keyturn = await openKeyturn({ name: 'shop' });
  prisma = new PrismaClient({ adapter: new PrismaPg({ connectionString: process.env['DATABASE_URL'] ?? '' }) });
  customers = createCustomers(prisma, keyturn);
});

after(async () => {
  await prisma.$disconnect();
  // Writes the lazy upgrades that wait, and leaves the membership.
  await keyturn.close();
});

async function storedEmail(id: string): Promise<string> {
  return (await prisma.customer.findUniqueOrThrow({ where: { id } })).email;
}

test('what is created is found again, and the database holds an envelope', async () => {
  const id = await customers.create(ada);
  assert.deepEqual(await customers.find(id), { ...ada, id });
  assert.match(await storedEmail(id), /^kt1\./);
});

test('an unchanged e-mail keeps its envelope, a changed one gets another', async () => {
  const id = await customers.create(ada);
  const envelope = await storedEmail(id);
  await customers.update(id, { nickname: 'countess', email: ada.email });
  assert.equal(await storedEmail(id), envelope);
  await customers.update(id, { nickname: 'countess', email: 'countess@example.com' });
  assert.notEqual(await storedEmail(id), envelope);
  assert.deepEqual(await customers.find(id), { ...ada, id, nickname: 'countess', email: 'countess@example.com' });
});

test('customers of earlier runs are found, whatever key their e-mail is under', async () => {
  const rows = await prisma.customer.findMany({ select: { id: true } });
  assert.ok(rows.length > 0);
  for (const { id } of rows) assert.match((await customers.find(id))?.email ?? '', /@example\.com$/);
});
