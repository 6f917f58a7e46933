// Customers with plain pg: encrypted before a write, decrypted after a read.
import { randomUUID } from 'node:crypto';
import type { Column, Keyturn } from 'keyturn';
import type pg from 'pg';
import type { Customer, Customers } from './customers.js';

export function createPgCustomers(pool: pg.Pool, keyturn: Keyturn): Customers {
  // Strings, because the column is text.
  const email = keyturn.column('public.customer', 'email') as Column<string>;

  async function find(id: string): Promise<Customer | undefined> {
    const { rows } = await pool.query<Customer>('SELECT id, tenant, nickname, email FROM customer WHERE id = $1', [id]);
    const row = rows[0];
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
      await pool.query('INSERT INTO customer (id, tenant, nickname, email) VALUES ($1, $2, $3, $4)', [
        id,
        customer.tenant,
        customer.nickname,
        stored,
      ]);
      return id;
    },
    find,
    async update(id, changes) {
      const before = await find(id);
      if (before === undefined) throw new Error(`there is no customer ${id}`);
      // An envelope is new each time: leave an unchanged value alone.
      const stored =
        changes.email === before.email ? null : await email.encrypt({ pk: id, scope: before.tenant }, changes.email);
      await pool.query('UPDATE customer SET nickname = $2, email = coalesce($3, email) WHERE id = $1', [
        id,
        changes.nickname,
        stored,
      ]);
    },
  };
}
