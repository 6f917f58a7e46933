// What the rest of the application sees: customers with their e-mail in plaintext, whichever library stores them.

export interface Customer {
  readonly id: string;
  readonly tenant: string;
  readonly nickname: string;
  readonly email: string;
}

export interface Customers {
  /** Answers the new id. */
  create(customer: Omit<Customer, 'id'>): Promise<string>;
  find(id: string): Promise<Customer | undefined>;
  /** The tenant stays: a value is bound to it. Throws when there is no such customer. */
  update(id: string, changes: Pick<Customer, 'nickname' | 'email'>): Promise<void>;
}
