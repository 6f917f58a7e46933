// What the database's health is judged by: the sources of readings, and from where on one slows the fleet (soft) or stops
// it (hard). Each number stands with its reason; which readings come from where is the store's matter.

export const healthSources = [
  'replicas',
  'wal_archive',
  'slots',
  'sessions',
  'blocking',
  'canary',
  'dead_rows',
  'vacuum',
  'transactions',
  'checkpoints',
] as const;

export type HealthSource = (typeof healthSources)[number];

/**
 * Sources that may be out of sight without anything being held back. These show nothing to a role without pg_monitor, as
 * in a small installation (sessions, besides, nothing without the number of processors); what may come to harm while they
 * are unseen is latency, which the canary feels, and tidiness. A replica or an archive that cannot be judged may lose
 * data: those must be seen where they exist.
 */
export const optionalByDefault: readonly HealthSource[] = ['sessions', 'vacuum', 'transactions'];

export interface Limits {
  /** From here on the fleet slows down; below 0.7 of it, it recovers. */
  readonly soft: number;
  /** From here on it stands still; Infinity for what never stops it. */
  readonly hard: number;
  /** A value in words, with its unit. */
  readonly show: (value: number) => string;
}

/** What one source says now. */
export interface Reading {
  readonly source: HealthSource;
  readonly value: number;
  readonly limits: Limits;
  /** The value as a sentence about the thing it was read from. */
  readonly words: string;
}

const seconds = (value: number): string => `${trimmed(value)} s`;
const minutes = (value: number): string => `${trimmed(value / 60)} min`;
const milliseconds = (value: number): string => `${trimmed(value)} ms`;
const megabytes = (value: number): string => `${trimmed(value / megabyte)} MB`;
const percent = (value: number): string => `${trimmed(value * 100)} %`;
const count = (value: number): string => trimmed(value);

const megabyte = 1_048_576;

/** At most one digit behind the point. */
function trimmed(value: number): string {
  return String(Math.round(value * 10) / 10);
}

/** Readers of a replica notice stale data after a second; after five, failing over to it loses what users saw confirmed. */
export const replicaSeconds: Limits = { soft: 1, hard: 5, show: seconds };
/** Four segments are a burst; 512 MB take a replica on a slow line minutes. */
export const replicaBytes: Limits = { soft: 64 * megabyte, hard: 512 * megabyte, show: megabytes };
/** A replica that was there and is gone may be restarting, and then has everything to catch up. */
export const replicasGone: Limits = { soft: 1, hard: 1, show: count };
/** An archiver works segment by segment, so a few wait at any moment; 42 are 672 MB that a restore would miss. */
export const archiveSegments: Limits = { soft: 8, hard: 42, show: count };
/** PostgreSQL's own grades of a slot: 0 reserved, 1 extended, 2 unreserved, lost, or with less than a fifth left. */
export const slotGrade: Limits = { soft: 1, hard: 2, show: (grade) => ['reserved', 'extended'][grade] ?? 'unreserved' };
/** One active session per processor is a database in full use; at two they queue. */
export const sessionsPerCpu: Limits = { soft: 1, hard: 2, show: count };
/** Sessions that wait for a lock of ours: lock waits of a slice are short, so one that is seen twice is no chance. */
export const blockedSessions: Limits = { soft: 1, hard: 6, show: count };
/** A table that is a fifth dead has grown by a quarter, and scans of it are slower for good. */
export const deadShare: Limits = { soft: 0.1, hard: 0.2, show: percent };
/** The same where nothing would ever clean up: waiting does not help, so it stops nothing. */
export const deadShareForGood: Limits = { ...deadShare, hard: Infinity };
/** A vacuum needs the disk that the run takes from it; it ends sooner beside a slow one. */
export const vacuums: Limits = { soft: 1, hard: Infinity, show: count };
/** While one is open no vacuum removes what the run leaves behind. */
export const transactionSeconds: Limits = { soft: 600, hard: 3_600, show: minutes };
/** Checkpoints forced by the WAL of the last five minutes: each is followed by full-page writes, which is more WAL. */
export const forcedCheckpoints: Limits = { soft: 1, hard: 3, show: count };

/** The canary's limits follow what is usual for it; below the floors a change is the noise of a small number. */
export function canaryLimits(usualMs: number | undefined): Limits {
  const { soft, hard } =
    usualMs === undefined
      ? canaryAlways
      : {
          soft: Math.max(usualMs * 1.25, usualMs + canarySoftFloorMs),
          hard: Math.max(usualMs * 2, usualMs + canaryHardFloorMs),
        };
  return { soft, hard, show: milliseconds };
}

/** Nobody waits noticeably longer for 5 ms; for 50 ms a page that needs twenty statements takes a second more. */
const canarySoftFloorMs = 5;
const canaryHardFloorMs = 50;
/** As long as nothing is known about what is usual. */
const canaryAlways = { soft: 50, hard: 250 };

/**
 * One in twenty takes longer than is usual at any time. Where one in seven does, those who wait longest wait noticeably longer
 * than without the run. It never stops one.
 */
export const slowShare: Limits = { soft: 0.15, hard: Infinity, show: percent };

export const usualShare = 0.95;
/** Half a minute; fewer say nothing about the twentieth part. */
const minSamples = 80;

/** What 95 % of the samples stay below; undefined for too few. */
export function usualOf(samples: readonly number[]): number | undefined {
  if (samples.length < minSamples) return undefined;
  return samples.toSorted((a, b) => a - b)[Math.ceil(samples.length * usualShare) - 1];
}
