// Schedules and their occurrences. A time fires once: the occurrence is unique by schedule and time, and `next_at` advances
// in the same transaction. Each move is conditional on the state it leaves and writes its audit record with it (I10).
import { mayMoveOccurrence, type OccurrenceState, type Policy } from '../rotation/schedule.js';
import { writeAudit } from './audit.js';
import type { Queryable, Row } from './database.js';

export interface Schedule extends Policy {
  readonly id: number;
  readonly keyringId: string;
  readonly keyringName: string;
  readonly nextAt: Date;
  readonly enabled: boolean;
  readonly reason: string | undefined;
  readonly createdBy: string;
  readonly createdAt: Date;
}

const scheduleSelect = `SELECT s.id, s.keyring_id, k.name, s.cron, s.time_zone, s.gradual_seconds, k.cryptoperiod_days, s.next_at, s.enabled, s.reason,
  s.created_by, s.created_at FROM keyturn.schedule s JOIN keyturn.keyring k ON k.id = s.keyring_id`;

function scheduleOf(row: Row): Schedule {
  const [id, keyringId, keyring, cron, zone, gradual, cryptoperiod, nextAt, enabled, reason, createdBy, createdAt] =
    row;
  return {
    id: Number(id),
    keyringId: String(keyringId),
    keyringName: String(keyring),
    cron: String(cron),
    timeZone: String(zone),
    gradualMs: Number(gradual) * 1_000,
    cryptoperiodDays: Number(cryptoperiod),
    nextAt: nextAt as Date,
    enabled: enabled === true,
    reason: reason === null ? undefined : String(reason),
    createdBy: String(createdBy),
    createdAt: createdAt as Date,
  };
}

export async function readClock(database: Queryable): Promise<Date> {
  const { rows } = await database.query('SELECT clock_timestamp()');
  return rows[0]?.[0] as Date;
}

/** Those that fire, by keyring. */
export async function listSchedules(database: Queryable): Promise<readonly Schedule[]> {
  const { rows } = await database.query(`${scheduleSelect} WHERE s.enabled ORDER BY k.name`);
  return rows.map(scheduleOf);
}

/** Also one that was removed. With `lock` for the rest of the transaction: setting, removing and firing exclude each other. */
export async function findSchedule(
  client: Queryable,
  keyringId: string,
  options: { readonly lock: boolean } = { lock: false },
): Promise<Schedule | undefined> {
  const { rows } = await client.query(
    `${scheduleSelect} WHERE s.keyring_id = $1 ${options.lock ? 'FOR UPDATE OF s' : ''}`,
    [keyringId],
  );
  return rows[0] === undefined ? undefined : scheduleOf(rows[0]);
}

export async function getCryptoperiodDays(database: Queryable, keyringId: string): Promise<number> {
  const { rows } = await database.query('SELECT cryptoperiod_days FROM keyturn.keyring WHERE id = $1', [keyringId]);
  return Number(rows[0]?.[0]);
}

/** Inserts the schedule of a keyring, or changes it, also one that was removed. */
export async function writeSchedule(
  client: Queryable,
  keyring: { readonly id: string; readonly name: string },
  policy: Policy & { readonly nextAt: Date },
  reason: string | undefined,
): Promise<void> {
  const before = await findSchedule(client, keyring.id, { lock: true });
  await client.query(
    `INSERT INTO keyturn.schedule (keyring_id, cron, time_zone, gradual_seconds, next_at, reason) VALUES ($1, $2, $3, $4, $5, $6)
     ON CONFLICT (keyring_id) DO UPDATE SET cron = excluded.cron, time_zone = excluded.time_zone, gradual_seconds = excluded.gradual_seconds,
       next_at = excluded.next_at, reason = excluded.reason, created_by = session_user, created_at = clock_timestamp(), enabled = true`,
    [keyring.id, policy.cron, policy.timeZone, policy.gradualMs / 1_000, policy.nextAt, reason ?? null],
  );
  await writeAudit(client, {
    action: 'schedule.set',
    object: `schedule of keyring ${keyring.name}`,
    reason,
    before: before?.enabled === true ? recordOf(before) : undefined,
    after: recordOf(policy),
  });
}

function recordOf(policy: Policy & { readonly nextAt: Date }): Record<string, unknown> {
  const { cron, timeZone, gradualMs, nextAt } = policy;
  return { cron, timeZone, gradualSeconds: gradualMs / 1_000, nextAt: nextAt.toISOString() };
}

/** It fires no more, and what it has begun is not gone on with. */
export async function disableSchedule(
  client: Queryable,
  schedule: Schedule,
  reason: string | undefined,
): Promise<Occurrence | undefined> {
  await client.query('UPDATE keyturn.schedule SET enabled = false WHERE id = $1', [schedule.id]);
  await writeAudit(client, {
    action: 'schedule.remove',
    object: `schedule of keyring ${schedule.keyringName}`,
    reason,
    before: recordOf(schedule),
  });
  const open = await findOpenOccurrence(client, schedule.id);
  if (open !== undefined)
    await moveOccurrenceIfState(client, open, { to: 'cancelled', cause: 'the schedule was removed' });
  return open;
}

export async function setNextAt(client: Queryable, schedule: Schedule, nextAt: Date): Promise<void> {
  await client.query('UPDATE keyturn.schedule SET next_at = $2 WHERE id = $1', [schedule.id, nextAt]);
}

export interface Occurrence {
  readonly id: number;
  readonly scheduleId: number;
  readonly keyringId: string;
  readonly keyringName: string;
  readonly gradualMs: number;
  readonly cryptoperiodDays: number;
  /** The time it stands for. */
  readonly period: Date;
  readonly state: OccurrenceState;
  /** In words, why it is not going on. */
  readonly waitsFor: string | undefined;
  /** After a step that was refused, the next attempt has a time of its own. */
  readonly isReady: boolean;
  readonly keyId: number | undefined;
  readonly gradualUntil: Date | undefined;
  readonly isGradualOver: boolean;
  readonly runId: number | undefined;
  readonly firedAt: Date;
  readonly finishedAt: Date | undefined;
  readonly cause: string | undefined;
}

const occurrenceSelect = `SELECT o.id, o.schedule_id, s.keyring_id, k.name, s.gradual_seconds, k.cryptoperiod_days, o.period, o.state, o.waits_for,
  o.not_before <= clock_timestamp(), o.key_id, o.gradual_until, coalesce(o.gradual_until <= clock_timestamp(), false), o.run_id, o.fired_at, o.finished_at, o.cause
  FROM keyturn.occurrence o JOIN keyturn.schedule s ON s.id = o.schedule_id JOIN keyturn.keyring k ON k.id = s.keyring_id`;

const openStates = `o.state NOT IN ('done', 'failed', 'cancelled')`;

function occurrenceOf(row: Row): Occurrence {
  const [id, scheduleId, keyringId, keyring, gradual, cryptoperiod, period, state, waitsFor, isReady, ...rest] = row;
  const [keyId, gradualUntil, isGradualOver, runId, firedAt, finishedAt, cause] = rest;
  return {
    id: Number(id),
    scheduleId: Number(scheduleId),
    keyringId: String(keyringId),
    keyringName: String(keyring),
    gradualMs: Number(gradual) * 1_000,
    cryptoperiodDays: Number(cryptoperiod),
    period: period as Date,
    state: String(state) as OccurrenceState,
    waitsFor: waitsFor === null ? undefined : String(waitsFor),
    isReady: isReady === true,
    keyId: keyId === null ? undefined : Number(keyId),
    gradualUntil: (gradualUntil as Date | null) ?? undefined,
    isGradualOver: isGradualOver === true,
    runId: runId === null ? undefined : Number(runId),
    firedAt: firedAt as Date,
    finishedAt: (finishedAt as Date | null) ?? undefined,
    cause: cause === null ? undefined : String(cause),
  };
}

export async function listOpenOccurrences(database: Queryable): Promise<readonly Occurrence[]> {
  const { rows } = await database.query(`${occurrenceSelect} WHERE ${openStates} ORDER BY o.id`);
  return rows.map(occurrenceOf);
}

export async function getOccurrence(database: Queryable, id: number): Promise<Occurrence> {
  const { rows } = await database.query(`${occurrenceSelect} WHERE o.id = $1`, [id]);
  // Occurrences are never deleted.
  return occurrenceOf(rows[0] ?? []);
}

async function findOpenOccurrence(database: Queryable, scheduleId: number): Promise<Occurrence | undefined> {
  const { rows } = await database.query(`${occurrenceSelect} WHERE o.schedule_id = $1 AND ${openStates}`, [scheduleId]);
  return rows[0] === undefined ? undefined : occurrenceOf(rows[0]);
}

/** The newest of a schedule, open or ended. */
export async function findLatestOccurrence(database: Queryable, scheduleId: number): Promise<Occurrence | undefined> {
  const { rows } = await database.query(`${occurrenceSelect} WHERE o.schedule_id = $1 ORDER BY o.id DESC LIMIT 1`, [
    scheduleId,
  ]);
  return rows[0] === undefined ? undefined : occurrenceOf(rows[0]);
}

export async function hasFired(client: Queryable, scheduleId: number, period: Date): Promise<boolean> {
  const { rows } = await client.query(
    'SELECT EXISTS (SELECT 1 FROM keyturn.occurrence WHERE schedule_id = $1 AND period = $2)',
    [scheduleId, period],
  );
  return rows[0]?.[0] === true;
}

/** Under the locked schedule. One that is still open is overtaken: the newer rotation takes its rows along. */
export async function insertOccurrence(client: Queryable, schedule: Schedule, period: Date): Promise<void> {
  const open = await findOpenOccurrence(client, schedule.id);
  if (open !== undefined)
    await moveOccurrenceIfState(client, open, {
      to: 'failed',
      cause: `the next time of the schedule came before it was over${open.waitsFor === undefined ? '' : `; it waited: ${open.waitsFor}`}`,
    });
  const { rows } = await client.query(
    'INSERT INTO keyturn.occurrence (schedule_id, period) VALUES ($1, $2) RETURNING id',
    [schedule.id, period],
  );
  await writeAudit(client, {
    action: 'schedule.fire',
    object: `occurrence ${String(rows[0]?.[0])}`,
    after: { keyring: schedule.keyringName, period: period.toISOString(), state: 'due' },
  });
}

export interface OccurrenceMove {
  readonly to: OccurrenceState;
  readonly keyId?: number;
  readonly gradualUntil?: Date;
  readonly cause?: string;
}

/** False when it has moved on meanwhile. */
export async function moveOccurrenceIfState(
  client: Queryable,
  occurrence: Occurrence,
  move: OccurrenceMove,
): Promise<boolean> {
  if (!mayMoveOccurrence(occurrence.state, move.to))
    throw new Error(`occurrence ${occurrence.id} is ${occurrence.state} and cannot become ${move.to}`);
  const { rowCount } = await client.query(
    `UPDATE keyturn.occurrence SET state = $3, key_id = coalesce($4, key_id), gradual_until = coalesce($5, gradual_until), cause = $6,
       waits_for = NULL, not_before = '-infinity',
       finished_at = CASE WHEN $3 IN ('done', 'failed', 'cancelled') THEN clock_timestamp() END
     WHERE id = $1 AND state = $2`,
    [occurrence.id, occurrence.state, move.to, move.keyId ?? null, move.gradualUntil ?? null, move.cause ?? null],
  );
  if (rowCount !== 1) return false;
  await writeAudit(client, {
    action: `schedule.${move.to}`,
    object: `occurrence ${occurrence.id}`,
    reason: move.cause,
    before: { keyring: occurrence.keyringName, state: occurrence.state },
    after: { state: move.to, ...(move.keyId === undefined ? {} : { key: move.keyId }) },
  });
  return true;
}

export async function setRunOf(client: Queryable, occurrence: Occurrence, runId: number): Promise<void> {
  await client.query('UPDATE keyturn.occurrence SET run_id = $3 WHERE id = $1 AND state = $2', [
    occurrence.id,
    occurrence.state,
    runId,
  ]);
}

/** `retrySeconds`: how long to leave it alone after a step that was refused. */
export async function setWaitsFor(
  client: Queryable,
  occurrence: Occurrence,
  words: string | undefined,
  retrySeconds: number,
): Promise<void> {
  await client.query(
    `UPDATE keyturn.occurrence SET waits_for = $3, not_before = clock_timestamp() + make_interval(secs => $4)
     WHERE id = $1 AND state = $2 AND (waits_for IS DISTINCT FROM $3 OR $4 > 0)`,
    [occurrence.id, occurrence.state, words ?? null, retrySeconds],
  );
}
