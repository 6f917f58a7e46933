// The proof that a key is unused (I6): no live member could still write with it; every transaction that was open has ended;
// then, in one snapshot, no registered cell names it and no unregistered column holds an envelope. What keeps it so
// afterwards is the fence (fence.ts), which has to stand before the older transactions are waited for.
import { KeyturnError } from '../errors.js';
import { formatByName, formatNames } from '../formats/registry.js';
import { keyTitle } from '../keys/keyring.js';
import type { StoredKey, StoredKeyring } from '../keys/key-store.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { listApplicationColumns, type ApplicationColumn } from '../store/catalog.js';
import { countNaming, countStrays, type NamingCount } from '../store/census.js';
import { readOnlySnapshot, type Database, type Queryable } from '../store/database.js';
import { listMembers } from '../store/members.js';
import { countUnresolved } from '../store/quarantine.js';
import { listTargets } from '../store/registry.js';
import { findLaggards } from '../rotation/convergence.js';
import { formatOf } from './cells-of-target.js';

export interface RetirementProof {
  readonly key: string;
  /** `pg_current_snapshot()` of the scan. */
  readonly snapshot: string;
  /** ISO 8601, database clock. */
  readonly scannedAt: string;
  readonly columns: readonly NamingCount[];
  readonly unregistered: { readonly tables: number; readonly columns: number };
  readonly sql: readonly string[];
}

export interface ProofOptions {
  readonly onProgress: (words: string) => void;
  /** How long to wait for transactions that are open now. */
  readonly olderTransactionsMs: number;
  /** The backend of a transaction of the caller's own, which stays open and is not waited for. */
  readonly ownBackend?: number;
}

/** Throws MEMBER_BEHIND, OLDER_TRANSACTION_RUNNING or KEY_IN_USE, each naming what stands in the way. */
export async function proveUnused(
  database: Database,
  keyring: StoredKeyring,
  key: StoredKey,
  options: ProofOptions,
): Promise<RetirementProof> {
  const { onProgress } = options;
  await refuseWhileAtHand(database, keyring, key);
  await waitForOlderTransactions(database, options);
  onProgress(
    `scanning every registered column and every text, bytea and jsonb column for ${keyTitle(keyring.name, key)}`,
  );
  const proof = await database.transaction(
    (client) => scan(client, keyring, key),
    `${readOnlySnapshot}; SET LOCAL row_security = off`,
  );
  await refuseWhileWritten(database, keyring, key);
  return proof;
}

/** Throws MEMBER_BEHIND or KEY_IN_USE for what can be told at once, before anything is scanned. */
export async function refuseWhileAtHand(database: Queryable, keyring: StoredKeyring, key: StoredKey): Promise<void> {
  await refuseWhileWritten(database, keyring, key);
  await refuseWhileQuarantined(database, keyring, key);
}

async function refuseWhileWritten(database: Queryable, keyring: StoredKeyring, key: StoredKey): Promise<void> {
  const members = await listMembers(database);
  const active = keyring.keys.find((candidate) => candidate.state === 'active');
  const laggards = findLaggards(members, {
    keyringId: keyring.id,
    ...(typeof active?.id === 'number' ? { writesWithKeyId: active.id } : {}),
  });
  if (laggards.length === 0) return;
  throw new KeyturnError(
    'MEMBER_BEHIND',
    `${keyTitle(keyring.name, key)} cannot retire: ${laggards.map(({ member, why }) => `${member} ${why}`).join('; ')}; update or stop it first`,
    {
      keyId: String(key.id),
      members: laggards.map(({ member }) => member),
    },
  );
}

/** Somebody has to have looked at every cell that failed; that none of them names the key is for the scan to prove. */
async function refuseWhileQuarantined(database: Queryable, keyring: StoredKeyring, key: StoredKey): Promise<void> {
  const cells = await countUnresolved(database, keyring.id);
  if (cells === 0) return;
  throw new KeyturnError(
    'KEY_IN_USE',
    `${keyTitle(keyring.name, key)} cannot retire: ${cells} cells of its keyring are in quarantine; see: keyturn quarantine list; mend and retry them, or keyturn quarantine resolve`,
    { keyId: String(key.id) },
  );
}

const pollMs = 200;

/**
 * Waits until every transaction that is open now, prepared ones included, has ended: one that inserted an envelope and has
 * not committed would be invisible to the scan. Virtual transaction ids are readable by every role.
 */
export async function waitForOlderTransactions(
  database: Queryable,
  { onProgress, olderTransactionsMs, ownBackend }: ProofOptions,
): Promise<void> {
  const { rows: open } = await database.query(
    `SELECT l.virtualtransaction, l.pid FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
     WHERE l.locktype = 'virtualxid' AND l.granted AND a.datname = current_database() AND l.pid <> pg_backend_pid()
       AND l.pid IS DISTINCT FROM $1 AND a.backend_type IS DISTINCT FROM 'autovacuum worker'`,
    [ownBackend ?? null],
  );
  const waitingFor = new Set(open.map((row) => String(row[0])));
  const until = performance.now() + olderTransactionsMs;
  for (;;) {
    const { rows } = await database.query(
      `SELECT l.virtualtransaction, l.pid::text, coalesce(a.application_name, ''), 'transaction of backend' FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'virtualxid' AND l.granted
       UNION ALL SELECT '', gid, '', 'prepared transaction' FROM pg_prepared_xacts WHERE database = current_database()`,
    );
    const left = rows.filter((row) => row[0] === '' || waitingFor.has(String(row[0])));
    if (left.length === 0) return;
    const names = left.map(
      (row) => `${String(row[3])} ${String(row[1])}${row[2] === '' ? '' : ` (${String(row[2])})`}`,
    );
    if (performance.now() >= until) {
      throw new KeyturnError(
        'OLDER_TRANSACTION_RUNNING',
        `the scan can only begin after older transactions have ended; still open after ${olderTransactionsMs / 1000} s: ${names.join(', ')}; end it and repeat`,
        { open: names },
      );
    }
    onProgress(`waiting for older transactions: ${names.join(', ')}`);
    await new Promise((resolve) => setTimeout(resolve, pollMs));
  }
}

async function scan(client: Queryable, keyring: StoredKeyring, key: StoredKey): Promise<RetirementProof> {
  const { rows } = await client.query(
    `SELECT pg_current_snapshot()::text, to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`,
  );
  const targets = await listTargets(client);
  const columns: NamingCount[] = [];
  const sql: string[] = [];
  for (const target of targets) {
    const counted = await countNaming(client, target, key, formatOf);
    columns.push(...counted.counts);
    sql.push(counted.sql);
  }
  const used = columns.filter((column) => column.naming > 0);
  if (used.length > 0) {
    throw new KeyturnError(
      'KEY_IN_USE',
      `${keyTitle(keyring.name, key)} is still named by ${used.map(({ target, column, naming }) => `${naming} cells of ${target}.${column}`).join(', ')}; move them with: keyturn reencrypt`,
      {
        keyId: String(key.id),
      },
    );
  }
  const formats = formatNames.flatMap((name) => formatByName(name) ?? []);
  const { strays, ...unregistered } = await countStrays(
    client,
    await listApplicationColumns(client),
    coveredPaths(targets),
    formats,
  );
  if (strays.length > 0) {
    throw new KeyturnError(
      'KEY_IN_USE',
      `columns that no target covers hold envelopes: ${strays.map(({ table, column, cells }) => `${cells} in ${table}.${column}`).join(', ')}; register them in keyturn.yaml and run keyturn init, or remove them`,
      {
        keyId: String(key.id),
      },
    );
  }
  return {
    key: keyTitle(keyring.name, key),
    snapshot: String(rows[0]?.[0]),
    scannedAt: String(rows[0]?.[1]),
    columns,
    unregistered,
    sql,
  };
}

function coveredPaths(
  targets: readonly Target[],
): (column: ApplicationColumn) => readonly (readonly string[])[] | undefined {
  const covered = new Map<string, (readonly string[])[]>();
  for (const target of targets) {
    for (const column of target.columns) {
      const name = `${targetTitle(target)}.${column.columnName}`;
      const paths = covered.get(name) ?? [];
      if (column.path !== undefined) paths.push(column.path);
      covered.set(name, paths);
    }
  }
  return (column) => covered.get(`${targetTitle(column)}.${column.column}`);
}
