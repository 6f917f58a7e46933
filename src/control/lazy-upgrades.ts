// The operator's verb on lazy upgrades: the switch of a keyring, its rate and its sample. And what status tells of them:
// what reads have moved, what is left, and when a bulk run is wise.
import { formatOf } from '../engine/cells-of-target.js';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { StoredKey, StoredKeyring } from '../keys/key-store.js';
import { adviseBulkRun } from '../rotation/gradual.js';
import { estimateStale } from '../store/census.js';
import { readLazySettings, sumLazyUpgrades, writeLazySettings, type LazySettings } from '../store/lazy-upgrades.js';
import { lockKeyring } from '../store/keys.js';
import { listTargets } from '../store/registry.js';
import type { ControlContext } from './context.js';
import { chooseKeyring } from './keys.js';

export interface LazyReport {
  readonly keyring: string;
  readonly lazy_upgrades: 'on' | 'off';
  readonly rows_per_second: number;
  readonly sample: number;
}

/** Changes what is named and leaves the rest. Throws USAGE for a rate or sample that makes no sense. */
export async function setLazyUpgrades(
  context: ControlContext,
  keyring: string | undefined,
  wanted: Partial<LazySettings>,
  reason: string | undefined,
): Promise<LazyReport> {
  const { name } = await chooseKeyring(context.database, keyring);
  const { rowsPerSecond, sample } = wanted;
  if (
    rowsPerSecond !== undefined &&
    !(Number.isInteger(rowsPerSecond) && rowsPerSecond > 0 && rowsPerSecond <= 1_000_000)
  )
    throw new KeyturnError('USAGE', `expected a whole number of rows a second from 1 to 1000000, got ${rowsPerSecond}`);
  if (sample !== undefined && !(sample > 0 && sample <= 1))
    throw new KeyturnError(
      'USAGE',
      `expected a share over 0 and up to 1, got ${sample}; to stop lazy upgrades say off`,
    );
  const after = await context.database.transaction(async (client) => {
    await lockKeyring(client, name);
    const before = await readLazySettings(client, name);
    const settings = { ...before, ...wanted };
    if (JSON.stringify(before) !== JSON.stringify(settings))
      await writeLazySettings(client, name, before, settings, reason);
    return settings;
  });
  return {
    keyring: name,
    lazy_upgrades: after.isOn ? 'on' : 'off',
    rows_per_second: after.rowsPerSecond,
    sample: after.sample,
  };
}

/** Of one keyring, toward its active key. */
export interface LazyStatus {
  readonly is_on: boolean;
  readonly rows_updated: number;
  readonly cells_reencrypted: number;
  readonly last_at: string | null;
  /** Cells under another key than the active one; null where this role may not read the tables. */
  readonly stale_cells: number | null;
  /** Counted, and not estimated from a sample. */
  readonly is_exact: boolean;
  /** Why a bulk run is wise now. */
  readonly advice: string | null;
}

export async function lazyStatusOf(
  context: ControlContext,
  keyring: StoredKeyring,
  active: StoredKey,
  keyAgeDays: number,
): Promise<LazyStatus> {
  const { database } = context;
  const settings = await readLazySettings(database, keyring.name);
  const moved = await sumLazyUpgrades(database, Number(active.id));
  const left = await staleCellsOf(context, keyring, active);
  const advice =
    left === undefined
      ? undefined
      : adviseBulkRun({
          staleCells: left.cells,
          cellsThisWeek: moved.cellsThisWeek,
          keyAgeDays,
          isLazyOn: settings.isOn,
        });
  return {
    is_on: settings.isOn,
    rows_updated: moved.rows,
    cells_reencrypted: moved.cells,
    last_at: moved.lastAt?.toISOString() ?? null,
    stale_cells: left?.cells ?? null,
    is_exact: left?.isExact ?? false,
    advice: advice ?? null,
  };
}

async function staleCellsOf(
  { database }: ControlContext,
  keyring: StoredKeyring,
  active: StoredKey,
): Promise<{ cells: number; isExact: boolean } | undefined> {
  // With one key there is nothing to count.
  if (keyring.keys.every((key) => key === active || key.state === 'staged')) return { cells: 0, isExact: true };
  let cells = 0;
  let isExact = true;
  try {
    for (const target of await listTargets(database, keyring.id)) {
      const stale = await database.transaction(
        (client) => estimateStale(client, target, active, formatOf),
        `BEGIN READ ONLY; SET LOCAL row_security = off; SET LOCAL statement_timeout = '5s'`,
      );
      cells += stale.cells;
      isExact &&= stale.isExact;
    }
  } catch (error) {
    // Tables that this role may not read, or that have lost what their envelopes need: doctor says so, status goes on.
    if (isKeyturnError(error) && error.code !== 'DATABASE_UNAVAILABLE') return undefined;
    throw error;
  }
  return { cells, isExact };
}
