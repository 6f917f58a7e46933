// Customers with Drizzle: encrypted before a write, decrypted after a read. A custom type could not do it: it sees the value
// alone, and the envelope is bound to the row.
import { randomUUID } from 'node:crypto';
import { eq } from 'drizzle-orm';
import type { NodePgDatabase } from 'drizzle-orm/node-postgres';
import { pgTable, text, uuid } from 'drizzle-orm/pg-core';
import type { Column, Keyturn } from 'keyturn';
import type { Customer, Customers } from './customers.js';

const customers = pgTable('customer', {
  id: uuid('id').primaryKey(),
  tenant: text('tenant').notNull(),
  nickname: text('nickname').notNull(),
  /** An envelope here. */
  email: text('email').notNull(),
});

export function createDrizzleCustomers(db: NodePgDatabase, keyturn: Keyturn): Customers {
  // Strings, because the column is text.
  const email = keyturn.column('public.customer', 'email') as Column<string>;

  async function find(id: string): Promise<Customer | undefined> {
    const [row] = await db.select().from(customers).where(eq(customers.id, id));
    if (row === undefined) return undefined;
    const { plaintext, stale } = await email.decrypt({ pk: row.id, scope: row.tenant }, row.email);
    if (stale) email.upgrade({ pk: row.id });
    return { ...row, email: plaintext };
  }

  return {
    async create(customer) {
      // The value is bound to its row, so the id comes first.
      const id = randomUUID();
      const stored = await email.encrypt({ pk: id, scope: customer.tenant }, customer.email);
      await db.insert(customers).values({ ...customer, id, email: stored });
      return id;
    },
    find,
    async update(id, changes) {
      const before = await find(id);
      if (before === undefined) throw new Error(`there is no customer ${id}`);
      // An envelope is new each time: leave an unchanged value alone.
      const change =
        changes.email === before.email
          ? {}
          : { email: await email.encrypt({ pk: id, scope: before.tenant }, changes.email) };
      await db
        .update(customers)
        .set({ nickname: changes.nickname, ...change })
        .where(eq(customers.id, id));
    },
  };
}
