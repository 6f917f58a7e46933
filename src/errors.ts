// The one error class and the one table of codes. A code is a contract: never renamed, never reused.
// Doors and the queue branch on `kind` alone; messages are for people and carry ids and lengths, never bytes (I7).

export type ErrorKind =
  | 'invalid'
  | 'missing'
  | 'refused'
  | 'unauthenticated'
  | 'forbidden'
  | 'corrupt'
  | 'unavailable'
  | 'root_mismatch';

export const errorKinds = {
  CONFIG_INVALID: 'invalid',
  TARGET_INVALID: 'invalid',
  VALUE_INVALID: 'invalid',
  LIMIT_INVALID: 'invalid',
  SCHEDULE_INVALID: 'invalid',
  USAGE: 'invalid',
  KEY_NOT_FOUND: 'missing',
  KEYRING_NOT_FOUND: 'missing',
  DESTRUCTION_NOT_FOUND: 'missing',
  TARGET_NOT_FOUND: 'missing',
  ROW_NOT_FOUND: 'missing',
  RUN_NOT_FOUND: 'missing',
  QUARANTINE_EMPTY: 'missing',
  MEMBER_NOT_FOUND: 'missing',
  SCHEDULE_NOT_FOUND: 'missing',
  NOT_INITIALIZED: 'refused',
  KEY_STATE_REFUSED: 'refused',
  KEY_IN_USE: 'refused',
  KEY_FENCED: 'refused',
  APPROVAL_REFUSED: 'refused',
  KEY_SPENT: 'refused',
  MEMBER_BEHIND: 'refused',
  MEMBER_LIVE: 'refused',
  RUN_STATE_REFUSED: 'refused',
  COLUMN_MOVE_REFUSED: 'refused',
  ROOT_KEY_REFUSED: 'refused',
  ROOT_CHANGE_REFUSED: 'refused',
  SCHEMA_TOO_NEW: 'refused',
  SCHEMA_TOO_OLD: 'refused',
  QUEUE_MISMATCH: 'refused',
  PREFLIGHT_REFUSED: 'refused',
  DRY_RUN_FAILED: 'refused',
  OLDER_TRANSACTION_RUNNING: 'refused',
  BACKUP_REFUSED: 'refused',
  BACKUP_REQUIRED: 'refused',
  DEBUG_REFUSED: 'refused',
  UNAUTHENTICATED: 'unauthenticated',
  FORBIDDEN: 'forbidden',
  DECRYPT_FAILED: 'corrupt',
  UNWRAP_FAILED: 'corrupt',
  RUN_INCOMPLETE: 'corrupt',
  AUDIT_DAMAGED: 'corrupt',
  BACKUP_DAMAGED: 'corrupt',
  BACKUP_INCOMPLETE: 'corrupt',
  KEY_NOT_HELD: 'unavailable',
  KEYRING_STALE: 'unavailable',
  ENCRYPTIONS_NOT_RESERVED: 'unavailable',
  ROOT_KEY_UNAVAILABLE: 'unavailable',
  FOREIGN_SECRET_UNAVAILABLE: 'unavailable',
  DATABASE_UNAVAILABLE: 'unavailable',
  DATABASE_ERROR: 'unavailable',
  QUEUE_UNAVAILABLE: 'unavailable',
  NO_WORKERS: 'unavailable',
  FILE_UNAVAILABLE: 'unavailable',
  MASTER_KEY_MISMATCH: 'root_mismatch',
} as const satisfies Record<string, ErrorKind>;

export type ErrorCode = keyof typeof errorKinds;

/** Process exit code per kind; anything else thrown is a bug and exits 1. */
export const exitCodes: Readonly<Record<ErrorKind, number>> = {
  invalid: 2,
  missing: 3,
  refused: 4,
  unauthenticated: 5,
  forbidden: 5,
  corrupt: 6,
  unavailable: 7,
  root_mismatch: 8,
};

export type ErrorDetails = Readonly<Record<string, string | number | boolean | readonly string[] | undefined>>;

export class KeyturnError extends Error {
  override readonly name = 'KeyturnError';
  readonly code: ErrorCode;
  readonly kind: ErrorKind;
  readonly details: ErrorDetails;

  /** `message`: one lower-case sentence: expected, seen, next step. `cause` must be free of secrets. */
  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.code = code;
    this.kind = errorKinds[code];
    this.details = details;
  }
}

export function isKeyturnError(error: unknown, code?: ErrorCode): error is KeyturnError {
  return error instanceof KeyturnError && (code === undefined || error.code === code);
}
