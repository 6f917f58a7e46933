// How long workers rest beside an application that is at work. What a run does to the slowest of the application's statements
// cannot be seen in time, least of all on a small server; so a run takes a known share of it from the beginning: while it
// works a tenth of the time, nine of ten statements meet nothing of it. Where nobody else is at work, and in an emergency,
// workers do not rest for this.

export interface ApplicationWatch {
  /** Sessions of others that were executing something, one number for each time it was looked; newest last. */
  readonly samples: readonly number[];
}

export const noApplicationWatch: ApplicationWatch = { samples: [] };

/** Some ten seconds. */
const keptSamples = 80;

export function watchApplication(before: ApplicationWatch, active: readonly number[]): ApplicationWatch {
  return { samples: [...before.samples, ...active].slice(-keptSamples) };
}

/** Mean of sessions executing something from which on an application counts as at work: forty statements of half a millisecond in a second. */
const atWorkSessions = 0.02;
/** Of the processors of the database server, for all workers together. */
const shareOfCpus = 0.05;
/** For each worker where the number of processors is not known. */
const restWithoutCpus = 9;

export interface RestBeside {
  /** Rest per time of work. */
  readonly nice: number;
  readonly reason: string;
}

/** `watch` is undefined where sessions cannot be seen; the application then counts as at work. Undefined for no rest. */
export function restBeside(
  watch: ApplicationWatch | undefined,
  fleet: { readonly workers: number; readonly cpus: number | undefined; readonly isEmergency: boolean },
): RestBeside | undefined {
  if (fleet.isEmergency) return undefined;
  const mean = watch === undefined ? undefined : meanOf(watch.samples);
  if (mean !== undefined && mean < atWorkSessions) return undefined;
  const nice = fleet.cpus === undefined ? restWithoutCpus : Math.max(1, fleet.workers) / (shareOfCpus * fleet.cpus) - 1;
  if (nice <= 0) return undefined;
  const seen =
    mean === undefined
      ? 'whether the application is at work cannot be seen'
      : `the application is at work (${Math.round(mean * 100) / 100} active sessions)`;
  return { nice, reason: `${seen}; workers rest ${Math.round(nice * 100) / 100} times as long as they work` };
}

/** Undefined before the first look. */
function meanOf(samples: readonly number[]): number | undefined {
  return samples.length === 0 ? undefined : samples.reduce((sum, one) => sum + one, 0) / samples.length;
}
