// The schedules of PostgreSQL, mirrored to BullMQ's job schedulers: a wake-up and nothing more. Its job says neither what is
// due nor for whom; whoever gets it looks into PostgreSQL, which decides.
import { queueUnavailable, type QueueAddress } from './address.js';
import { openQueue, openWorker } from './connection.js';

export const wakeUpQueueName = 'keyturn-wake-ups';

export interface MirroredSchedule {
  readonly id: number;
  readonly cron: string;
  readonly timeZone: string;
}

export interface WakeUps {
  /** Asserts what is missing or differs, removes what is of no schedule. Throws QUEUE_UNAVAILABLE. */
  mirror(schedules: readonly MirroredSchedule[]): Promise<void>;
  close(): Promise<void>;
}

export function openWakeUps(address: QueueAddress, onWake: () => void): WakeUps {
  const { queue, requireConnected, close } = openQueue(address, wakeUpQueueName);
  const open = openWorker(address, wakeUpQueueName, async (_job, _token, _signal) => onWake());
  open.worker.on('error', () => undefined);
  return {
    async mirror(schedules) {
      try {
        await requireConnected();
        const known = await queue.getJobSchedulers();
        for (const { key, pattern, tz } of known) {
          const isWanted = schedules.some((schedule) => isMirroredBy(schedule, { key, pattern, tz }));
          if (!isWanted) await queue.removeJobScheduler(key);
        }
        for (const schedule of schedules) {
          if (known.some((scheduler) => isMirroredBy(schedule, scheduler))) continue;
          // A pattern waits for its time; `every` would start a first job at once.
          await queue.upsertJobScheduler(
            schedulerIdOf(schedule),
            { pattern: schedule.cron, tz: schedule.timeZone },
            { name: 'wake-up', opts: { attempts: 1, removeOnComplete: true, removeOnFail: true } },
          );
        }
      } catch (error) {
        throw queueUnavailable(error);
      }
    },
    async close() {
      await open.close();
      await close();
    },
  };
}

function schedulerIdOf(schedule: MirroredSchedule): string {
  return `schedule-${schedule.id}`;
}

function isMirroredBy(
  schedule: MirroredSchedule,
  scheduler: { readonly key: string; readonly pattern?: string | undefined; readonly tz?: string | undefined },
): boolean {
  return (
    scheduler.key === schedulerIdOf(schedule) &&
    scheduler.pattern === schedule.cron &&
    scheduler.tz === schedule.timeZone
  );
}
