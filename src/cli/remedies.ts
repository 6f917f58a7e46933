// What an operator can do about cells that failed, by cause. A cause is a code of the engine; what is not listed here came
// from the database.

const remedies: Readonly<Record<string, string>> = {
  NOT_AN_ENVELOPE:
    'the value is not encrypted, or not by keyturn: write it again through the library, or set it to NULL',
  MALFORMED: 'the envelope was cut or altered: restore the value from a backup, or write it again through the library',
  AUTHENTICATION_FAILED:
    'the envelope was altered, or copied here from another row, column or tenant: write the value again through the library; if the key or tenant of its row was changed on purpose, keyturn rebind',
  UNKNOWN_KEY:
    'no key with this id was ever here: the value comes from another cluster, or the key tables from an older backup',
  KEY_CHECK_DIFFERS: 'another key has this id here: the value comes from another cluster',
  ALGORITHM_DIFFERS: 'the key of this id has another algorithm: the value comes from another cluster, or was altered',
  KEY_DESTROYED:
    'its key was destroyed, so nothing can decrypt it any more: write the value again through the library, or set it to NULL',
  VERIFICATION_FAILED:
    'the new envelope did not decrypt to the same value and was not written: repeat it, and suspect the memory of the machine',
  CONFLICTED_TOO_OFTEN: 'the application rewrote it at every visit: keyturn quarantine retry when it is quieter',
  TIMEOUT:
    'writing or reading the row took longer than 5 s, each time: look at the triggers of the table and at the size of the row, then keyturn quarantine retry',
};

export function remedyFor(cause: string): string {
  const known = remedies[cause];
  if (known !== undefined) return known;
  const sqlstate = /^REFUSED_(\w{5})$/.exec(cause)?.[1];
  if (sqlstate === undefined) return 'see the audit and log of the worker';
  if (sqlstate === '22001') return 'the column is too short for the new envelope: make it text';
  return `the database refused the new envelope (SQLSTATE ${sqlstate}): look at the constraints and triggers of the table`;
}
