// How many segments of WAL wait to be archived. A role that may list them counts them. Others go by the newest one archived;
// where that is none, or no segment (the history of a timeline), by the one that archiving fails at, which is the oldest that
// waits; and where nothing has failed either, by what was written since the watch began: less than all, and all there is.
import { archiveSegments, type Reading } from './health.js';

/** Numbers of segments, counted from the beginning. */
export interface SeenArchive {
  /** That is being written. */
  readonly current: number;
  /** The newest archived; undefined when it is none, or no segment. */
  readonly archived: number | undefined;
  /** That archiving failed at last; undefined when it never did, or at no segment. */
  readonly failed: number | undefined;
  /** How many wait; undefined for a role that may not list them. */
  readonly waiting: number | undefined;
}

export interface ArchiveWatch {
  readonly openedAt: number | undefined;
}

export const noArchiveWatch: ArchiveWatch = { openedAt: undefined };

export function watchArchive(
  before: ArchiveWatch,
  seen: SeenArchive,
): { readonly watch: ArchiveWatch; readonly readings: readonly Reading[] } {
  const openedAt = before.openedAt ?? seen.current;
  const oldest = seen.archived === undefined ? (seen.failed ?? openedAt) : seen.archived + 1;
  const value = seen.waiting ?? Math.max(0, seen.current - oldest);
  const words = `${value} segments of WAL wait to be archived`;
  return { watch: { openedAt }, readings: [{ source: 'wal_archive', value, limits: archiveSegments, words }] };
}
