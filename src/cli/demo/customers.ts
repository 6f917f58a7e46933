// The demo's shop: its table, its keyturn.yaml, and what stands in which cell. A value is fixed by row, column and
// sequence number, so every process knows what each write must have put where.
import { createHash } from 'node:crypto';
import type { ConfigFile } from '../../index.js';

export const keyringName = 'customers';
export const tableName = 'public.customer';
export const rootKeyVariable = 'KEYTURN_ROOT_KEY';

export const shopConfig: ConfigFile = {
  keyrings: { [keyringName]: { root: `env:${rootKeyVariable}` } },
  targets: [
    {
      table: tableName,
      keyring: keyringName,
      scope: 'tenant_id',
      columns: { email: {}, phone: {}, profile: { paths: { ssn: ['ssn'] } } },
    },
  ],
};

/**
 * `demo_ack` is written in the statement that writes the value: in any snapshot it says which sequence number the cell
 * must decrypt to, and when the application last changed the row.
 */
export const shopTables: readonly string[] = [
  `CREATE TABLE customer (
     id bigint PRIMARY KEY, tenant_id text NOT NULL, email text NOT NULL, phone bytea NOT NULL, profile jsonb NOT NULL,
     created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL)`,
  `CREATE TABLE demo_ack (
     customer_id bigint NOT NULL, column_name text NOT NULL, seq integer NOT NULL, written_at timestamptz NOT NULL,
     PRIMARY KEY (customer_id, column_name))`,
];

/** In place of a column in `demo_ack`, and in the log: the application has deleted the row. It never comes back. */
export const deletedMark = 'deleted';

export const columnNames = ['email', 'phone', 'profile.ssn'] as const;
export type ColumnName = (typeof columnNames)[number];

const tenants = ['alder', 'birch', 'cedar', 'dogwood', 'elm'] as const;

export function tenantOf(id: number): string {
  return tenants[id % tenants.length] ?? tenants[0];
}

/** The plaintext of a cell after its write number `seq`; 0 is the value it was filled with. */
export function valueOf(id: number, column: ColumnName, seq: number): string {
  return `customer-${id} ${column} seq ${seq} ${digestOf(`${id} ${column} ${seq}`)}`;
}

export function digestOf(text: string): string {
  return createHash('sha256').update(text, 'utf8').digest('hex').slice(0, 16);
}

/** For reports: which write a plaintext comes from. Undefined for text that no write of the demo made. */
export function findSequence(plaintext: string): number | undefined {
  const seq = / seq (\d+) /.exec(plaintext)?.[1];
  return seq === undefined ? undefined : Number(seq);
}

export function cellName(id: number, column: ColumnName): string {
  return `${id} ${column}`;
}

/** Columns of a SELECT from `customer c` that `storedValuesOf` takes apart. */
export const selectedColumns = `c.id::integer AS id, c.email, c.phone, c.profile ->> 'ssn' AS ssn`;

export interface SelectedRow {
  readonly id: number;
  readonly email: string;
  readonly phone: Buffer;
  readonly ssn: string;
}

export function storedValueOf(row: SelectedRow, column: ColumnName): string | Buffer {
  switch (column) {
    case 'email':
      return row.email;
    case 'phone':
      return row.phone;
    case 'profile.ssn':
      return row.ssn;
  }
}
