// The schedules: fires what is due and leads each occurrence through its policy; beside them compromised keys, which retire
// when their run is through. Runs beside the supervisor and decides only
// while that leads. It holds no state of its own: kill it anywhere and the next one goes on. The queue only wakes it up; a
// queue that was wiped, or that wakes at the wrong time, starts nothing.
import { isKeyturnError } from '../errors.js';
import type { WakeUps } from '../queue/wake-ups.js';
import { dueTime, nextTimes } from '../rotation/schedule.js';
import type { Database } from '../store/database.js';
import { stillLeads, type Leadership } from '../store/leadership.js';
import {
  findSchedule,
  hasFired,
  insertOccurrence,
  listOpenOccurrences,
  listSchedules,
  readClock,
  setNextAt,
  type Schedule,
} from '../store/schedules.js';
import { advanceOccurrence, lendRoot, type PolicyVerbs } from './advance-occurrence.js';
import { createRetirements } from './retire-compromised.js';

const lookMs = 1_000;
const mirrorMs = 2_000;
/** A supervisor that does not lead tries so often whether its root key is the one that is missed. */
const lendMs = 30_000;

export interface SchedulesOptions {
  readonly database: Database;
  /** Of the supervisor beside it; undefined while another one leads. */
  readonly leadership: () => Leadership | undefined;
  readonly verbs: PolicyVerbs;
  readonly openWakeUps: (onWake: () => void) => WakeUps;
  readonly onTrouble: (error: unknown) => void;
  readonly onEvent: (event: string, details: Readonly<Record<string, number | string>>) => void;
}

export interface Schedules {
  /** Ends after the step in hand. Safe twice. */
  stop(): Promise<void>;
}

export function startSchedules(options: SchedulesOptions): Schedules {
  const { database } = options;
  const retirements = createRetirements(options);
  let mirroredAtMs = -Infinity;
  let lentAtMs = -Infinity;
  let isStopped = false;
  let isWoken = false;
  let wake: () => void = () => undefined;
  const wakeUps = options.openWakeUps(() => {
    isWoken = true;
    wake();
  });

  async function look(): Promise<void> {
    const lead = options.leadership();
    if (lead === undefined) return lend();
    const schedules = await listSchedules(database);
    for (const schedule of schedules) await fireOrReport(lead, schedule);
    for (const occurrence of await listOpenOccurrences(database)) {
      if (isStopped) return;
      await advanceOccurrence({ database, leadership: lead, verbs: options.verbs }, occurrence, options.onEvent);
    }
    if (isStopped) return;
    await retirements.advance();
    if (performance.now() - mirroredAtMs < mirrorMs) return;
    mirroredAtMs = performance.now();
    await wakeUps.mirror(schedules);
  }

  /** One whose time zone this machine does not know must not keep the others from firing. */
  async function fireOrReport(lead: Leadership, schedule: Schedule): Promise<void> {
    try {
      await fire(lead, schedule);
    } catch (error) {
      if (!isKeyturnError(error, 'SCHEDULE_INVALID')) throw error;
      options.onTrouble(error);
    }
  }

  async function fire(lead: Leadership, seen: Schedule): Promise<void> {
    const fired = await database.transaction(async (client) => {
      if (!(await stillLeads(client, lead))) return undefined;
      const schedule = await findSchedule(client, seen.keyringId, { lock: true });
      if (schedule?.enabled !== true) return undefined;
      const now = await readClock(client);
      const due = dueTime(schedule, schedule.nextAt, now);
      if (due !== undefined) {
        await setNextAt(client, schedule, due.nextAt);
        if (await hasFired(client, schedule.id, due.period)) return undefined;
        await insertOccurrence(client, schedule, due.period);
        return due.period;
      }
      // A database clock that had run ahead and was set back must not leave times out.
      const [next] = nextTimes(schedule, now, 1);
      if (next !== undefined && next < schedule.nextAt && !(await hasFired(client, schedule.id, next)))
        await setNextAt(client, schedule, next);
      return undefined;
    });
    if (fired !== undefined)
      options.onEvent('schedule fired', { keyring: seen.keyringName, period: fired.toISOString() });
  }

  /** The leader may lack a root key that this process has. */
  async function lend(): Promise<void> {
    if (performance.now() - lentAtMs < lendMs) return;
    for (const occurrence of await listOpenOccurrences(database)) {
      if (occurrence.state !== 'rotating' || occurrence.waitsFor === undefined) continue;
      lentAtMs = performance.now();
      await lendRoot(options.verbs, occurrence);
    }
  }

  const loop = (async () => {
    while (!isStopped) {
      isWoken = false;
      try {
        await look();
      } catch (error) {
        options.onTrouble(error);
        if (!isKeyturnError(error)) throw error;
      }
      if (isWoken) continue;
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, lookMs);
      });
    }
  })();

  let stopped: Promise<void> | undefined;
  return {
    stop() {
      isStopped = true;
      wake();
      stopped ??= loop.then(() => wakeUps.close());
      return stopped;
    },
  };
}
