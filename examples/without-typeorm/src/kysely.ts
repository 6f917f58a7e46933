// Customers with Kysely: encrypted before a write, decrypted after a read.
import { randomUUID } from 'node:crypto';
import type { Column, Keyturn } from 'keyturn';
import type { Kysely } from 'kysely';
import type { Customer, Customers } from './customers.js';

export interface Database {
  /** `email` is an envelope here. */
  customer: { id: string; tenant: string; nickname: string; email: string };
}

export function createKyselyCustomers(db: Kysely<Database>, keyturn: Keyturn): Customers {
  // Strings, because the column is text.
  const email = keyturn.column('public.customer', 'email') as Column<string>;

  async function find(id: string): Promise<Customer | undefined> {
    const row = await db.selectFrom('customer').selectAll().where('id', '=', id).executeTakeFirst();
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
      await db
        .insertInto('customer')
        .values({ ...customer, id, email: stored })
        .execute();
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
        .updateTable('customer')
        .set({ nickname: changes.nickname, ...change })
        .where('id', '=', id)
        .execute();
    },
  };
}
