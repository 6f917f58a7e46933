// Customers with Prisma: encrypted before a write, decrypted after a read. The rest of the application sees plaintext.
import { randomUUID } from 'node:crypto';
import type { Column, Keyturn } from 'keyturn';
import type { Customer, PrismaClient } from '../generated/client.js';

export interface Customers {
  /** Answers the new id. */
  create(customer: Omit<Customer, 'id'>): Promise<string>;
  find(id: string): Promise<Customer | undefined>;
  /** The tenant stays: a value is bound to it. Throws when there is no such customer. */
  update(id: string, changes: Pick<Customer, 'nickname' | 'email'>): Promise<void>;
}

export function createCustomers(prisma: PrismaClient, keyturn: Keyturn): Customers {
  // Strings, because the column is text.
  const email = keyturn.column('public.customer', 'email') as Column<string>;

  async function find(id: string): Promise<Customer | undefined> {
    const row = await prisma.customer.findUnique({ where: { id } });
    if (row === null) return undefined;
    const { plaintext, stale } = await email.decrypt({ pk: row.id, scope: row.tenant }, row.email);
    if (stale) email.upgrade({ pk: row.id });
    return { ...row, email: plaintext };
  }

  return {
    async create(customer) {
      // The value is bound to its row, so the id comes first.
      const id = randomUUID();
      const stored = await email.encrypt({ pk: id, scope: customer.tenant }, customer.email);
      await prisma.customer.create({ data: { ...customer, id, email: stored } });
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
      await prisma.customer.update({ where: { id }, data: { nickname: changes.nickname, ...change } });
    },
  };
}
