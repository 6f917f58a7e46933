// Lazy upgrades: rows whose stale values an application has read are brought to the active key soon after, outside the
// reader's transaction, by the same conditional write as a run (I3), with their count in the same transaction (I4).
//
// Nothing here reaches the reader (I9): an offer is one entry in a buffer that is bounded for each keyring, and what fails,
// finds no room or is left when the process ends is only dropped, for the value stays readable and the next read or run
// finds it. After a failure offers are ignored for a while that grows. Several processes may offer one row: the first write
// wins, the others find it current.
import { setTimeout as delay } from 'node:timers/promises';
import { KeyturnError } from '../errors.js';
import { activeKeyOf, type Keyring } from '../keys/keyring.js';
import { refill, type Allowance } from '../rotation/gradual.js';
import { isDataState } from '../rotation/slice-failure.js';
import { targetTitle, type RowKey, type Target } from '../rotation/target.js';
import type { CellRow } from '../store/cell-row.js';
import { createCellStore, sliceSettings, type CellStore } from '../store/cells.js';
import { sqlstateOf, type Database } from '../store/database.js';
import { countLazyUpgrade, readLazySettings, type LazySettings } from '../store/lazy-upgrades.js';
import { beginRead, endsWhenIdle } from './reencrypt-batch.js';
import { rewriteRows } from './rewrite-rows.js';
import type { KeyringSource } from './services.js';
import { cellCodes, treatRows } from './treat-rows.js';

/** Of one keyring, so that one whose rows wait leaves the others their room. */
const maxQueued = 1_000;
const maxRows = 200;
const maxBytes = 256_000;
const gatherMs = 1_000;
/** How long a keyring found switched off is left alone before it is asked again. */
const offMs = 5_000;
const firstQuietMs = 1_000;
const maxQuietMs = 60_000;
/** A row that the database does not take is left alone for a second, then longer, up to an hour; so many are remembered. */
const firstRefusedMs = 1_000;
const maxRefusedMs = 3_600_000;
const maxRefused = 1_000;
const closingMs = 2_000;
const beginWrite = `BEGIN; ${sliceSettings}; ${endsWhenIdle}; SET LOCAL lock_timeout = '50ms'; SET LOCAL statement_timeout = '2s'; SET LOCAL synchronous_commit = off; SET LOCAL keyturn.active = '1'`;

export interface LazyUpgradeCounts {
  readonly queued: number;
  readonly rowsUpdated: number;
  /** Offers without room, while switched off or after a failure, rows whose write failed, and what closing left. */
  readonly dropped: number;
}

export interface LazyUpgrades {
  /** Queues a row of which a stale value was read. Never throws, never waits. */
  offer(target: Target, key: RowKey): void;
  counts(): LazyUpgradeCounts;
  /** Writes what is queued, for two seconds at most, and takes no more. */
  close(): Promise<void>;
}

interface Offer {
  readonly target: Target;
  readonly key: RowKey;
}

interface Refused {
  readonly untilMs: number;
  readonly quietMs: number;
}

export function startLazyUpgrades(services: {
  readonly database: Database;
  readonly keyrings: KeyringSource;
  readonly memberId: string;
  readonly onTrouble: (error: unknown) => void;
}): LazyUpgrades {
  const queue = new Map<string, Offer>();
  const queuedOf = new Map<string, number>();
  const settings = new Map<string, LazySettings>();
  const offUntilMs = new Map<string, number>();
  const allowances = new Map<string, Allowance>();
  /** When a keyring that has written what it may is asked again. */
  const allowedAtMs = new Map<string, number>();
  const refused = new Map<string, Refused>();
  const stores = new Map<string, CellStore>();
  let rowsUpdated = 0;
  let dropped = 0;
  let quietMs = 0;
  let quietUntilMs = -Infinity;
  let isClosed = false;
  let timer: NodeJS.Timeout | undefined;
  let flushing: Promise<void> | undefined;

  function schedule(milliseconds: number): void {
    if (timer !== undefined || flushing !== undefined) return;
    timer = setTimeout(() => {
      timer = undefined;
      flushing = flush().then((nextMs) => {
        flushing = undefined;
        if (queue.size > 0 && !isClosed) schedule(nextMs);
      });
    }, milliseconds);
    timer.unref();
  }

  function hurry(): void {
    if (timer !== undefined) {
      clearTimeout(timer);
      timer = undefined;
    }
    schedule(0);
  }

  /**
   * One slice of the first target that may be written now; answers how long to wait for the next, with more at hand as long
   * as this one took, so that reads are beside a write half of the time at most. Never rejects.
   */
  async function flush(): Promise<number> {
    let taken: readonly RowKey[] = [];
    const startedAt = performance.now();
    let isMoreAtHand = false;
    try {
      const chosen = await choose();
      if (chosen === undefined) return gatherMs;
      taken = take(chosen.target, chosen.rows);
      const left = await upgrade(chosen.target, taken);
      spend(chosen.target, taken.length - left.length);
      for (const key of left) enqueue({ target: chosen.target, key });
      isMoreAtHand = left.length > 0 || queue.size >= maxRows;
      quietMs = 0;
    } catch (error) {
      dropped += taken.length;
      quietMs = Math.min(maxQuietMs, Math.max(firstQuietMs, quietMs * 2));
      quietUntilMs = performance.now() + quietMs;
      dropAll();
      services.onTrouble(error);
    }
    return isMoreAtHand ? Math.min(gatherMs, performance.now() - startedAt) : gatherMs;
  }

  function enqueue(offer: Offer): void {
    const entry = entryOf(offer.target, offer.key);
    if (queue.has(entry)) return;
    queue.set(entry, offer);
    queuedOf.set(offer.target.keyringName, (queuedOf.get(offer.target.keyringName) ?? 0) + 1);
  }

  function dequeue({ target, key }: Offer): void {
    if (queue.delete(entryOf(target, key)))
      queuedOf.set(target.keyringName, (queuedOf.get(target.keyringName) ?? 0) - 1);
  }

  function dropAll(): void {
    dropped += queue.size;
    queue.clear();
    queuedOf.clear();
  }

  /** A keyring that has written what it may does not hold up the others. */
  async function choose(): Promise<{ readonly target: Target; readonly rows: number } | undefined> {
    const asked = new Set<string>();
    for (const { target } of queue.values()) {
      const name = target.keyringName;
      if (asked.has(name) || performance.now() < (allowedAtMs.get(name) ?? -Infinity)) continue;
      asked.add(name);
      const rows = await allowedRows(target);
      if (rows > 0) return { target, rows };
    }
    return undefined;
  }

  /** How many rows may be written now; 0 while the keyring is switched off, and its offers are dropped. */
  async function allowedRows(target: Target): Promise<number> {
    const name = target.keyringName;
    const current = await readLazySettings(services.database, name);
    settings.set(name, current);
    if (!current.isOn) {
      offUntilMs.set(name, performance.now() + offMs);
      for (const offer of queue.values())
        if (offer.target.keyringName === name) {
          dequeue(offer);
          dropped++;
        }
      return 0;
    }
    const allowance = refill(allowances.get(name), performance.now(), current.rowsPerSecond);
    allowances.set(name, allowance);
    // Not row by row as the rate allows them, for statements cost readers more than rows do: a second's worth, the most there is.
    const least = Math.min(maxRows, queuedOf.get(name) ?? 0, current.rowsPerSecond);
    if (allowance.rows < least) {
      allowedAtMs.set(name, performance.now() + ((least - allowance.rows) / current.rowsPerSecond) * 1_000);
      return 0;
    }
    return Math.min(maxRows, Math.floor(allowance.rows));
  }

  function spend(target: Target, rows: number): void {
    const allowance = allowances.get(target.keyringName);
    if (allowance !== undefined) allowances.set(target.keyringName, { ...allowance, rows: allowance.rows - rows });
  }

  function take(target: Target, limit: number): readonly RowKey[] {
    const keys: RowKey[] = [];
    for (const offer of queue.values()) {
      if (keys.length >= limit) break;
      if (offer.target !== target) continue;
      dequeue(offer);
      keys.push(offer.key);
    }
    return keys;
  }

  function storeOf(target: Target): CellStore {
    const known = stores.get(target.id) ?? createCellStore(target);
    stores.set(target.id, known);
    return known;
  }

  /** Answers the keys that found no room. */
  async function upgrade(target: Target, keys: readonly RowKey[]): Promise<readonly RowKey[]> {
    const keyring = services.keyrings.forWriting(target.keyringName);
    const { rows, left } = await services.database.transaction(
      (client) => storeOf(target).readRowsUpTo(client, keys, maxBytes),
      beginRead,
    );
    await write(target, keyring, rows);
    return left;
  }

  async function write(target: Target, keyring: Keyring, rows: readonly CellRow[]): Promise<void> {
    const treated = await treatRows({ keyring, target, rows, visited: undefined });
    if (treated.blocked !== undefined) return writeHealthy(target, keyring, rows);
    if (treated.stale.length === 0) return;
    const keyId = Number(activeKeyOf(keyring).id);
    try {
      rowsUpdated += await services.database.transaction(async (client) => {
        const { rows: unwritten } = await rewriteRows(client, storeOf(target), treated, async () => undefined);
        const updated = treated.stale.length - unwritten.size;
        await countLazyUpgrade(client, {
          targetId: target.id,
          keyId,
          memberId: services.memberId,
          rowsUpdated: updated,
          rowsConflicted: unwritten.size,
          cellsReencrypted: cellsWritten(treated.codes, target.columns.length, unwritten),
          cellsFailed: treated.failures.length,
        });
        return updated;
      }, beginWrite);
    } catch (error) {
      // One row that the database refuses must not keep the others: they are written in halves, and it is left.
      const sqlstate = sqlstateOf(error) ?? '';
      if (!isDataState(sqlstate)) throw error;
      const [first, second] = rows;
      if (first === undefined) return;
      if (second === undefined) {
        leaveAlone(target, first.key, sqlstate);
        return;
      }
      const middle = Math.ceil(rows.length / 2);
      await write(target, keyring, rows.slice(0, middle));
      await write(target, keyring, rows.slice(middle));
    }
  }

  function leaveAlone(target: Target, key: RowKey, sqlstate: string): void {
    dropped++;
    const entry = entryOf(target, key);
    const before = refused.get(entry);
    const rowQuietMs = before === undefined ? firstRefusedMs : Math.min(maxRefusedMs, before.quietMs * 2);
    refused.delete(entry);
    refused.set(entry, { untilMs: performance.now() + rowQuietMs, quietMs: rowQuietMs });
    const [oldest] = refused.keys();
    if (refused.size > maxRefused && oldest !== undefined) refused.delete(oldest);
    if (before !== undefined) return;
    services.onTrouble(
      new KeyturnError(
        'DATABASE_ERROR',
        `the database does not take a row of ${targetTitle(target)} with its values reencrypted (SQLSTATE ${sqlstate}), so reads leave it as it is; a run names the row: keyturn reencrypt --target ${targetTitle(target)}`,
        { target: targetTitle(target), sqlstate },
      ),
    );
  }

  /** A cell under a key that is not held here keeps its whole row. */
  async function writeHealthy(target: Target, keyring: Keyring, rows: readonly CellRow[]): Promise<void> {
    const healthy: CellRow[] = [];
    for (const row of rows) {
      const alone = await treatRows({ keyring, target, rows: [row], visited: undefined });
      if (alone.blocked === undefined) healthy.push(row);
    }
    dropped += rows.length - healthy.length;
    await write(target, keyring, healthy);
  }

  return {
    offer(target, key) {
      const nowMs = performance.now();
      if (isClosed || nowMs < quietUntilMs || nowMs < (offUntilMs.get(target.keyringName) ?? -Infinity)) {
        dropped++;
        return;
      }
      const entry = entryOf(target, key);
      if (queue.has(entry)) return;
      if (nowMs < (refused.get(entry)?.untilMs ?? -Infinity)) {
        dropped++;
        return;
      }
      const sample = settings.get(target.keyringName)?.sample ?? 1;
      const queued = queuedOf.get(target.keyringName) ?? 0;
      if (queued >= maxQueued || (sample < 1 && Math.random() >= sample)) {
        dropped++;
        return;
      }
      enqueue({ target, key });
      if (queue.size === maxRows) hurry();
      else schedule(gatherMs);
    },
    counts: () => ({ queued: queue.size, rowsUpdated, dropped }),
    async close() {
      if (isClosed) return;
      isClosed = true;
      clearTimeout(timer);
      const giveUpMs = performance.now() + closingMs;
      const emptied = (async () => {
        await flushing;
        while (queue.size > 0 && performance.now() < giveUpMs) {
          const before = queue.size;
          const nextMs = await flush();
          if (queue.size === before) await delay(Math.min(nextMs, giveUpMs - performance.now()));
        }
      })();
      await Promise.race([emptied, delay(closingMs, undefined, { ref: false })]);
      dropAll();
    },
  };
}

function entryOf(target: Target, key: RowKey): string {
  return `${target.id} ${JSON.stringify(key)}`;
}

function cellsWritten(codes: Uint8Array, width: number, unwritten: ReadonlySet<number>): number {
  let cells = 0;
  for (const [at, code] of codes.entries())
    if (code === cellCodes.reencrypted && !unwritten.has(Math.floor(at / width))) cells++;
  return cells;
}
