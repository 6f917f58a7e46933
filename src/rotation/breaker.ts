// When a run must stop and ask: one cause failing more than half of the cells of three consecutive batches points at a key
// or a setting, not at data. And what it then says: the cause, the likely reason, the next command.

export interface BatchFailures {
  readonly cellsExamined: number;
  readonly failedByCause: ReadonlyMap<string, number>;
}

const consecutiveBatches = 3;
/** Batches that were split down to a few rows are judged together with enough others to mean something. */
const fewestCells = 20;
/** More are never looked at: each has at least one cell. */
export const mostBatchesToJudge = consecutiveBatches + fewestCells;

/** `latest`: finished batches, newest first. The cause to pause with, if any. */
export function causeToPauseFor(latest: readonly BatchFailures[]): string | undefined {
  const recent: BatchFailures[] = [];
  let cells = 0;
  for (const batch of latest) {
    if (recent.length >= consecutiveBatches && cells >= fewestCells) break;
    recent.push(batch);
    cells += batch.cellsExamined;
  }
  if (recent.length < consecutiveBatches || cells < fewestCells) return undefined;
  const [first, ...others] = recent.map(dominantCause);
  return first !== undefined && others.every((cause) => cause === first) ? first : undefined;
}

function dominantCause(batch: BatchFailures): string | undefined {
  for (const [cause, cells] of batch.failedByCause) {
    if (cells * 2 > batch.cellsExamined) return cause;
  }
  return undefined;
}

interface Likely {
  readonly reason: string;
  /** What to do before the run resumes; a command where there is one. */
  readonly first: string;
}

const look = (run: number): string => `look at the rows with keyturn quarantine list --run ${run}`;

/** By code of a cell, code of a batch, or SQLSTATE. `subject` is the key where the cause names one. */
const likely: Readonly<Record<string, (run: number, subject: string) => Likely>> = {
  NOT_AN_ENVELOPE: (run) => ({
    reason: 'the column holds values in clear, or of another library',
    first: look(run),
  }),
  MALFORMED: (run) => ({
    reason: 'the column was cut, padded or converted, say by a shorter type or a dump in another encoding',
    first: look(run),
  }),
  AUTHENTICATION_FAILED: (run) => ({
    reason: 'the rows were probably copied from another table or tenant, or their key or scope column was changed',
    first: look(run),
  }),
  ALGORITHM_DIFFERS: (run) => ({
    reason: 'the rows were probably restored from another cluster, or beside key tables of another time',
    first: look(run),
  }),
  KEY_CHECK_DIFFERS: () => ({
    reason: 'the key tables were probably restored or merged, so that another key has this id',
    first: 'bring back the key tables that belong to these rows',
  }),
  UNKNOWN_KEY: () => ({
    reason: 'the rows come from another cluster, or the key tables are older than the rows',
    first: 'bring back the key tables that belong to these rows',
  }),
  KEY_DESTROYED: (run) => ({ reason: 'the rows were probably restored from an old backup', first: look(run) }),
  VERIFICATION_FAILED: () => ({
    reason: 'what was encrypted did not decrypt to the same value, which points at the memory of a machine',
    first: 'stop the workers of that machine',
  }),
  TIMEOUT: () => ({
    reason: 'every write takes too long, which points at a trigger of the table or at its disk',
    first: 'mend that',
  }),
  KEY_NOT_HELD: (_, key) => ({
    reason: `no worker could open key ${key}, whose root key they were probably not given`,
    first: 'give the workers the root keys that keyturn.yaml names',
  }),
  KEY_RETIRED: (_, key) => ({ reason: 'the key is needed', first: `keyturn key restore ${key}` }),
  KEYRING_STALE: () => ({
    reason: 'the workers do not get to read their keyring anew',
    first: 'look at their logs',
  }),
  LEASE_EXPIRED: () => ({
    reason: 'workers took the batch and did not come back: they die of it, or cannot write',
    first: 'look at their logs',
  }),
  '42501': () => ({
    reason: 'the role of the workers lacks a privilege',
    first: 'grant what keyturn init --print-sql prints',
  }),
  '42P01': () => ({ reason: 'a table that a trigger or rule needs is gone', first: 'keyturn doctor' }),
  '53100': () => ({ reason: 'the disk of the database is full', first: 'make room' }),
  '53200': () => ({ reason: 'the database is out of memory', first: 'give it some' }),
  '53300': () => ({
    reason: 'the database takes no more connections',
    first: 'raise max_connections, or stop workers',
  }),
  '25006': () => ({
    reason: 'transactions are read-only, as on a standby or after a failover',
    first: 'point DATABASE_URL at the primary',
  }),
};

/** In words, for `held_back_by`. `cause`: a code, with the key or SQLSTATE it names behind it. */
export function whyPaused(cause: string, run: number): string {
  const [code = '', subject = ''] = cause.split(' ');
  const sqlstate = /^REFUSED_(\w{5})$/.exec(code)?.[1] ?? subject;
  const known = (likely[code] ?? likely[sqlstate])?.(run, subject);
  const words = known === undefined ? 'mend it' : `${known.reason}: ${known.first}`;
  return `${cause}; ${words}, then keyturn run resume ${run}`;
}
