// Raises and lowers fences (I6): first the mark on the key, then table after table until the triggers say what the marks
// say, each in one short transaction that gives way to the application. Whoever dies in between leaves a difference that
// `status` and `doctor` show and that the next `key retire`, `key restore`, `key activate` or `init` mends.
import { setTimeout as delay } from 'node:timers/promises';
import { isKeyturnError, KeyturnError } from '../errors.js';
import type { ValueKeyName } from '../formats/format.js';
import { targetTitle, type Target } from '../rotation/target.js';
import { sqlstateOf, type Database, type Queryable } from '../store/database.js';
import {
  compareWithStored,
  desiredFence,
  examineTriggers,
  fenceStatements,
  findForeignOwner,
  findStored,
  grantsForOwner,
  holdTriggers,
  isFunctionIntact,
  listFencedKeys,
  listHolders,
  listLaterTriggers,
  lockFenceOf,
  mayMark,
  readTriggers,
  storedOf,
  storeTriggers,
  type PresentTrigger,
} from '../store/fences.js';
import { listTargets } from '../store/registry.js';
import { formatOf } from './cells-of-target.js';

/** Writers queue behind a statement that waits for its lock, so it waits shortly and comes back. */
const lockTimeoutMs = 300;
const pauseMs = 100;

const beginDdl = `BEGIN; SET LOCAL lock_timeout = '${lockTimeoutMs}ms'; SET LOCAL search_path = pg_catalog; SET LOCAL synchronous_commit = on`;

export interface ConvergeOptions {
  readonly onProgress: (words: string) => void;
  /** How long to come back for the lock of a table. */
  readonly patienceMs: number;
}

/**
 * Brings the triggers of every registered table to what the marks say. Throws FORBIDDEN with the statements for the owner of
 * a table that is not this login's, OLDER_TRANSACTION_RUNNING when writers do not make room.
 */
export async function convergeFences(database: Database, options: ConvergeOptions): Promise<void> {
  for (const target of await listTargets(database)) await convergeFence(database, target, options);
}

async function convergeFence(database: Database, target: Target, options: ConvergeOptions): Promise<void> {
  const until = performance.now() + options.patienceMs;
  for (;;) {
    try {
      await database.transaction((client) => bringUp(client, target), beginDdl);
      return;
    } catch (error) {
      if (!['55P03', '40P01'].includes(sqlstateOf(error) ?? '')) throw error;
    }
    const holders = await listHolders(database, target.tableOid);
    if (performance.now() >= until) throw heldUp(target, holders, options.patienceMs);
    options.onProgress(
      `waiting for transactions that write to ${targetTitle(target)}: ${holders.join(', ') || 'over by now'}`,
    );
    await delay(pauseMs);
  }
}

function heldUp(target: Target, holders: readonly string[], patienceMs: number): KeyturnError {
  return new KeyturnError(
    'OLDER_TRANSACTION_RUNNING',
    `the fence of ${targetTitle(target)} can only be changed when transactions that write to it have ended; still open after ${patienceMs / 1000} s: ${holders.join(', ') || 'ever new ones'}; end it and repeat`,
    { table: targetTitle(target), open: holders },
  );
}

/** Under the lock of the target: what it should be is read there, so that the last one to come does what holds then. */
async function bringUp(client: Queryable, target: Target): Promise<void> {
  await lockFenceOf(client, target.id);
  const fence = desiredFence(target, await listFencedKeys(client), formatOf);
  const present = await readTriggers(client, target.tableOid);
  const stored = await findStored(client, target.id);
  const isAsWanted = examineTriggers(fence, present).length === 0;
  const differences = compareWithStored(present, stored);
  const isKept = (stored !== undefined) === storedOf(present).length > 0;
  if (isAsWanted && isKept && differences.length === 0) return;
  // What another owner put there is taken over, unless it says the same as ours did and is not the same.
  const isSameFence = storedOf(present).every(
    ({ name, expression }) => stored?.find((kept) => kept.name === name)?.expression === expression,
  );
  const isAltered = isSameFence && differences.some((words) => words.endsWith('was altered'));
  const foreign = await findForeignOwner(client, target.tableOid);
  if (foreign === undefined) {
    for (const statement of fenceStatements(fence, present)) await client.query(statement);
  } else if (!isAsWanted || isAltered) {
    throw mayNotAlter(target, foreign, fenceStatements(fence, present));
  }
  await storeTriggers(client, target.id, storedOf(await readTriggers(client, target.tableOid)));
}

function mayNotAlter(target: Target, owner: string, statements: readonly string[]): KeyturnError {
  const all = [...grantsForOwner(owner), ...statements];
  return new KeyturnError(
    'FORBIDDEN',
    `the fence of ${targetTitle(target)} is for its owner ${owner} to put up or take down; as a superuser run, in one transaction: ${all.map((statement) => `${statement};`).join(' ')} Then repeat the command. Or make this login a member of ${owner}, see docs/retiring.md`,
    { table: targetTitle(target), owner, statements: all },
  );
}

/**
 * Throws FORBIDDEN, before anything is changed, where a table's fence could not be brought to refuse `key` as well, or
 * not to refuse it any more.
 */
export async function refuseUnlessAble(database: Queryable, key: ValueKeyName, isFenced: boolean): Promise<void> {
  // A login that may not change keys is to be told that, and not what a table lacks.
  if (!(await mayMark(database))) return;
  const others = (await listFencedKeys(database)).filter(({ id }) => id !== key.id);
  const keys = [...others, ...(isFenced ? [key] : [])].toSorted((a, b) => Number(a.id) - Number(b.id));
  for (const target of await listTargets(database)) {
    const fence = desiredFence(target, keys, formatOf);
    const present = await readTriggers(database, target.tableOid);
    if (examineTriggers(fence, present).length === 0) continue;
    const foreign = await findForeignOwner(database, target.tableOid);
    if (foreign !== undefined) throw mayNotAlter(target, foreign, fenceStatements(fence, present));
  }
}

export interface FenceState {
  readonly table: string;
  readonly refused_key_ids: readonly number[];
  /** What is wrong, in words; empty where the fence stands as it was raised. */
  readonly troubles: readonly string[];
  readonly definitions: readonly string[];
  readonly triggers: readonly PresentTrigger[];
}

/** The fence of every registered table as it is now. */
export async function readFences(client: Queryable): Promise<readonly FenceState[]> {
  const keys = await listFencedKeys(client);
  const isIntact = await isFunctionIntact(client);
  const states: FenceState[] = [];
  for (const target of await listTargets(client)) {
    const fence = desiredFence(target, keys, formatOf);
    const triggers = await readTriggers(client, target.tableOid);
    const isWanted = keys.length > 0;
    const later = isWanted ? await listLaterTriggers(client, target.tableOid) : [];
    states.push({
      table: targetTitle(target),
      refused_key_ids: fence.keyIds,
      troubles: [
        ...examineTriggers(fence, triggers),
        ...compareWithStored(triggers, await findStored(client, target.id)),
        ...later.map((name) => `trigger ${name} fires after it and could change what it let pass`),
        ...(isWanted && !isIntact ? ['its function keyturn.refuse_envelope was altered'] : []),
      ],
      definitions: triggers.filter(({ isRoot }) => isRoot).flatMap(({ definition }) => definition ?? []),
      triggers,
    });
  }
  return states;
}

/** The same, and it stays so until the transaction ends. */
export async function holdFences(client: Queryable): Promise<readonly FenceState[]> {
  for (const target of await listTargets(client)) await holdTriggers(client, target);
  return readFences(client);
}

/** Throws KEY_IN_USE unless every registered table refuses the key, by a fence that nobody touched. */
export function refuseUnlessFenced(fences: readonly FenceState[], keyId: number): void {
  const open = fences.flatMap(({ table, troubles, refused_key_ids: refused }) =>
    troubles.length === 0 && refused.includes(keyId) ? [] : [`${table}: ${troubles.join(', ') || 'key not refused'}`],
  );
  if (open.length === 0) return;
  throw new KeyturnError(
    'KEY_IN_USE',
    `values that name key ${keyId} could still be written, since its fence does not stand as it should: ${open.join('; ')}; run keyturn init to raise it again, then repeat`,
    { keyId: String(keyId) },
  );
}

/** Throws KEY_IN_USE where a trigger is not the very one that was there before. */
export function refuseIfTouched(before: readonly FenceState[], after: readonly FenceState[], keyId: number): void {
  refuseUnlessFenced(after, keyId);
  const marks = (states: readonly FenceState[]): readonly string[] =>
    states.flatMap(({ triggers }) =>
      triggers.map(({ relation, name, oid, xmin }) => `${relation} ${name} ${oid} ${xmin}`),
    );
  const now = new Set(marks(after));
  const touched = marks(before).filter((mark) => !now.has(mark));
  if (touched.length === 0) return;
  throw new KeyturnError(
    'KEY_IN_USE',
    `the fence against key ${keyId} was changed during the scan (${touched.map((mark) => mark.split(' ')[0]).join(', ')}), so the scan proves nothing; repeat the command`,
    { keyId: String(keyId) },
  );
}

export interface FenceTrouble {
  readonly table: string;
  readonly troubles: readonly string[];
}

/** For reports, which must not fail over a table that is broken: what is wrong with the fences that should stand. */
export async function listFenceTroubles(client: Queryable): Promise<readonly FenceTrouble[]> {
  try {
    return (await readFences(client))
      .filter(({ troubles }) => troubles.length > 0)
      .map(({ table, troubles }) => ({ table, troubles }));
  } catch (error) {
    if (!isKeyturnError(error, 'TARGET_INVALID')) throw error;
    if ((await listFencedKeys(client)).length === 0) return [];
    return [{ table: String(error.details['target']), troubles: [error.message] }];
  }
}
