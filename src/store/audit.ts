// The audit record: one per state change of a key or run, written in the same transaction (I10). Holds ids, states and
// reasons, never key bytes or values.
import type { Queryable } from './database.js';

export interface AuditRecord {
  readonly action: string;
  /** `key 17`, `run 4`, `keyring customers`. */
  readonly object: string;
  readonly reason?: string | undefined;
  readonly before?: Readonly<Record<string, unknown>> | undefined;
  readonly after?: Readonly<Record<string, unknown>> | undefined;
}

/** The actor is the database login; the time is the database's. */
export async function writeAudit(client: Queryable, record: AuditRecord): Promise<void> {
  await client.query('INSERT INTO keyturn.audit (action, object, reason, before, after) VALUES ($1, $2, $3, $4, $5)', [
    record.action,
    record.object,
    record.reason ?? null,
    record.before === undefined ? null : JSON.stringify(record.before),
    record.after === undefined ? null : JSON.stringify(record.after),
  ]);
}
