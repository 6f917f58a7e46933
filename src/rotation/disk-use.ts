// What keeps the disk of the database filling up: slots that hold back WAL, and rows that are dead and not cleaned up.
import { deadShare, deadShareForGood, slotGrade, type Reading } from './health.js';

export interface SeenSlot {
  readonly name: string;
  readonly grade: 'reserved' | 'extended' | 'unreserved' | 'lost';
  /** Share of the WAL it may hold that it can still hold; undefined where nothing limits it. */
  readonly left: number | undefined;
}

const leastLeft = 0.2;

export function slotReading({ name, grade, left }: SeenSlot): Reading {
  const isShort = grade === 'unreserved' || grade === 'lost' || (left !== undefined && left < leastLeft);
  const value = isShort ? 2 : grade === 'extended' ? 1 : 0;
  return { source: 'slots', value, limits: slotGrade, words: `replication slot ${name} holds back WAL (${grade})` };
}

export interface SeenTable {
  readonly table: string;
  readonly bytes: number;
  readonly deadRows: number;
  readonly liveRows: number;
  /** Autovacuum will clean it up by and by. */
  readonly isCleanedUp: boolean;
}

/**
 * Less is vacuumed in seconds and no disk is filled by it; a table that is rewritten faster than autovacuum looks at it
 * (once a minute) would only be kept waiting.
 */
const fewDeadBytes = 1_073_741_824;

/** None for a table with little to clean up. */
export function deadReadings({ table, bytes, deadRows, liveRows, isCleanedUp }: SeenTable): readonly Reading[] {
  const value = deadRows / Math.max(1, deadRows + liveRows);
  if (bytes * value < fewDeadBytes) return [];
  const hint = isCleanedUp ? '' : '; autovacuum is off for it, so run: VACUUM';
  return [
    {
      source: 'dead_rows',
      value,
      limits: isCleanedUp ? deadShare : deadShareForGood,
      words: `${deadShare.show(value)} of table ${table} is dead rows${hint}`,
    },
  ];
}
