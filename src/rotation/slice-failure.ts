// What a slice that failed asks for, decided from its SQLSTATE and from how often it was tried. Locks of the application
// are waited for, for as long as it takes; trouble that rows cause is narrowed down to the row; trouble that concerns
// every row alike gives the batch back, and the run pauses when that does not help.

export interface FailedSlice {
  /** Undefined where no statement failed: a key, a lease, an outage. */
  readonly sqlstate: string | undefined;
  readonly rows: number;
  /** Of this slice in this visit, the failed one included. */
  readonly tries: number;
  /** How often the batch was handed back. */
  readonly attempts: number;
}

export type SliceRemedy =
  /** Again, smaller, after a short wait. */
  | 'repeat'
  /** Again at once with half of the rows, in this visit: the failing statement is quick. */
  | 'narrow'
  /** In two batches, so that the others go on: every try takes long. */
  | 'split'
  /** One row is left and it is the one. */
  | 'quarantine'
  | 'hand back';

/** Lock timeouts, deadlocks, serialisation failures: the application is at work on these rows. */
const lockStates: ReadonlySet<string> = new Set(['55P03', '40P01', '40001']);
const timeoutState = '57014';
/** Statement classes that the data of one row can cause: too long, out of range, a constraint, a raising trigger. */
const dataClasses = new Set(['22', '23', 'P0']);
/** Classes that concern every row alike: connections, rights, a full disk, shutdown, a fence against the key itself (KT). */
const generalClasses = new Set(['08', '0A', '25', '28', '3D', '3F', '42', '53', '57', 'KT']);

const maxLockTries = 5;
/** Two tries of five seconds stay within the lease of a batch. */
const maxTimeoutTries = 2;
/** A batch that was handed back so often needs somebody, or is split where its rows may be the trouble. */
export const maxAttempts = 5;

/** The data of a row is what the database refuses. */
export function isDataState(sqlstate: string): boolean {
  return dataClasses.has(sqlstate.slice(0, 2));
}

export function isLockState(sqlstate: string): boolean {
  return lockStates.has(sqlstate);
}

export function judgeSlice({ sqlstate, rows, tries, attempts }: FailedSlice): SliceRemedy {
  if (sqlstate === undefined) return 'hand back';
  if (lockStates.has(sqlstate)) return tries <= maxLockTries ? 'repeat' : 'hand back';
  if (sqlstate === timeoutState) {
    if (tries < maxTimeoutTries) return 'repeat';
    return rows > 1 ? 'split' : 'quarantine';
  }
  if (isDataState(sqlstate)) return rows > 1 ? 'narrow' : 'quarantine';
  const sqlClass = sqlstate.slice(0, 2);
  if (generalClasses.has(sqlClass) || attempts + 1 < maxAttempts) return 'hand back';
  return rows > 1 ? 'split' : 'quarantine';
}

/** The cause that a row is quarantined with when it is the one that fails. */
export function quarantineCause(sqlstate: string | undefined): string {
  return sqlstate === timeoutState ? 'TIMEOUT' : `REFUSED_${sqlstate ?? 'unknown'}`;
}
