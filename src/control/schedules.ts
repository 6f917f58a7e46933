// The operator's verbs on schedules: set, remove, list with the calendar of what comes next. They need the database alone;
// the supervisor that leads carries schedules out.
import { KeyturnError } from '../errors.js';
import {
  calendarOf,
  defaultGradualMs,
  isOpen,
  nextTimes,
  phasesOf,
  quarterly,
  requireRoom,
  type OccurrenceState,
} from '../rotation/schedule.js';
import type { Queryable } from '../store/database.js';
import { getKeyring } from '../store/keys.js';
import {
  disableSchedule,
  findLatestOccurrence,
  findSchedule,
  getCryptoperiodDays,
  listSchedules,
  readClock,
  writeSchedule,
  type Occurrence,
  type Schedule,
} from '../store/schedules.js';
import type { ControlContext } from './context.js';
import { chooseKeyring } from './keys.js';

export interface PhasesReport {
  readonly rotates_at: string;
  readonly gradual_until: string;
  /** The end of the cryptoperiod: reencrypted, verified and retired by then. */
  readonly over_by: string;
}

export interface OccurrenceReport {
  readonly occurrence_id: number;
  /** The time it stands for. */
  readonly due_at: string;
  readonly fired_at: string;
  readonly state: OccurrenceState;
  readonly waits_for: string | null;
  readonly key_id: number | null;
  readonly run_id: number | null;
  readonly gradual_until: string | null;
  readonly over_by: string | null;
  readonly is_late: boolean;
  readonly finished_at: string | null;
  readonly cause: string | null;
}

export interface ScheduleReport {
  readonly schedule_id: number;
  readonly keyring: string;
  readonly cron: string;
  readonly time_zone: string;
  readonly gradual_days: number;
  readonly cryptoperiod_days: number;
  readonly next_at: string;
  readonly reason: string | null;
  readonly created_by: string;
  readonly created_at: string;
  /** The newest time that fired. */
  readonly latest: OccurrenceReport | null;
  readonly calendar: readonly PhasesReport[];
}

/** `count`: how many of the next times the calendar shows. */
export async function listScheduleReports(context: ControlContext, count: number): Promise<readonly ScheduleReport[]> {
  const { database } = context;
  const now = await readClock(database);
  const reports: ScheduleReport[] = [];
  for (const schedule of await listSchedules(database)) reports.push(await reportOf(database, schedule, count, now));
  return reports;
}

/** Of one keyring; undefined where it has none. */
export async function findScheduleReport(database: Queryable, keyringId: string): Promise<ScheduleReport | undefined> {
  const schedule = await findSchedule(database, keyringId);
  return schedule?.enabled === true ? reportOf(database, schedule, 1, await readClock(database)) : undefined;
}

async function reportOf(database: Queryable, schedule: Schedule, count: number, now: Date): Promise<ScheduleReport> {
  const latest = await findLatestOccurrence(database, schedule.id);
  return {
    schedule_id: schedule.id,
    keyring: schedule.keyringName,
    cron: schedule.cron,
    time_zone: schedule.timeZone,
    gradual_days: inDays(schedule.gradualMs),
    cryptoperiod_days: schedule.cryptoperiodDays,
    next_at: schedule.nextAt.toISOString(),
    reason: schedule.reason ?? null,
    created_by: schedule.createdBy,
    created_at: schedule.createdAt.toISOString(),
    latest: latest === undefined ? null : await occurrenceReport(database, schedule, latest, now),
    calendar: calendarOf(schedule, schedule.nextAt, count).map(({ rotates, gradualUntil, overBy }) => ({
      rotates_at: rotates.toISOString(),
      gradual_until: gradualUntil.toISOString(),
      over_by: overBy.toISOString(),
    })),
  };
}

async function occurrenceReport(
  database: Queryable,
  schedule: Schedule,
  occurrence: Occurrence,
  now: Date,
): Promise<OccurrenceReport> {
  const { keys } = await getKeyring(database, schedule.keyringName);
  // Until there is a key, the time counts from when one was due.
  const since = keys.find((key) => key.id === occurrence.keyId)?.activatedAt ?? occurrence.period;
  const { overBy } = phasesOf(schedule, since);
  return {
    occurrence_id: occurrence.id,
    due_at: occurrence.period.toISOString(),
    fired_at: occurrence.firedAt.toISOString(),
    state: occurrence.state,
    waits_for: occurrence.waitsFor ?? null,
    key_id: occurrence.keyId ?? null,
    run_id: occurrence.runId ?? null,
    gradual_until: occurrence.gradualUntil?.toISOString() ?? null,
    over_by: isOpen(occurrence.state) ? overBy.toISOString() : null,
    is_late: isOpen(occurrence.state) && now > overBy,
    finished_at: occurrence.finishedAt?.toISOString() ?? null,
    cause: occurrence.cause ?? null,
  };
}

const dayMs = 86_400_000;

function inDays(ms: number): number {
  return Math.round((ms / dayMs) * 100) / 100;
}

export interface ScheduleRequest {
  readonly keyring: string | undefined;
  /** What is left out stays as it is; for a new schedule quarterly, UTC and 30 days. */
  readonly cron: string | undefined;
  readonly timeZone: string | undefined;
  readonly gradualMs: number | undefined;
  readonly reason: string | undefined;
}

export interface SetReport {
  readonly schedule: ScheduleReport;
  /** Where an active key grows older than its cryptoperiod between two times. */
  readonly warning: string | null;
}

/** Sets or changes the one schedule of a keyring. Throws SCHEDULE_INVALID for a policy that cannot be over in time. */
export async function setSchedule(context: ControlContext, request: ScheduleRequest): Promise<SetReport> {
  const { database } = context;
  const keyring = await chooseKeyring(database, request.keyring);
  const longestGapMs = await database.transaction(async (client) => {
    const found = await findSchedule(client, keyring.id, { lock: true });
    const before = found?.enabled === true ? found : undefined;
    const policy = {
      cron: (request.cron ?? before?.cron ?? quarterly).trim(),
      timeZone: request.timeZone ?? before?.timeZone ?? 'UTC',
      gradualMs: request.gradualMs ?? before?.gradualMs ?? defaultGradualMs,
      cryptoperiodDays: await getCryptoperiodDays(client, keyring.id),
    };
    const now = await readClock(client);
    const room = requireRoom(policy, now);
    const [nextAt = now] = nextTimes(policy, now, 1);
    await writeSchedule(client, keyring, { ...policy, nextAt }, request.reason);
    return room.longestGapMs;
  });
  const schedule = await findScheduleReport(database, keyring.id);
  // It was written a moment ago.
  if (schedule === undefined) throw notFound(keyring.name);
  const cryptoperiod = schedule.cryptoperiod_days;
  // Days by the calendar: one of them may have an hour more.
  const gap = Math.ceil(inDays(longestGapMs - 2 * 3_600_000));
  const warning =
    gap > cryptoperiod
      ? `up to ${gap} days lie between two times, and the cryptoperiod is ${cryptoperiod} days: with cryptoperiod_days: ${gap} in keyturn.yaml, or more frequent times, no active key outlives it`
      : null;
  return { schedule, warning };
}

export interface RemoveReport {
  readonly keyring: string;
  /** What it had begun and will not go on with. */
  readonly cancelled: { readonly occurrence_id: number; readonly state: OccurrenceState } | null;
}

/** It fires no more; a run it has ordered goes on. Throws SCHEDULE_NOT_FOUND. */
export async function removeSchedule(
  context: ControlContext,
  keyringName: string | undefined,
  reason: string | undefined,
): Promise<RemoveReport> {
  const keyring = await chooseKeyring(context.database, keyringName);
  const open = await context.database.transaction(async (client) => {
    const schedule = await findSchedule(client, keyring.id, { lock: true });
    if (schedule?.enabled !== true) throw notFound(keyring.name);
    return disableSchedule(client, schedule, reason);
  });
  return {
    keyring: keyring.name,
    cancelled: open === undefined ? null : { occurrence_id: open.id, state: open.state },
  };
}

function notFound(keyring: string): KeyturnError {
  return new KeyturnError(
    'SCHEDULE_NOT_FOUND',
    `keyring ${keyring} has no schedule; set one with: keyturn schedule set --keyring ${keyring}; see: keyturn schedule list`,
    { keyring },
  );
}
