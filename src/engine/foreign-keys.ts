// Keys of foreign formats as this process holds them: each secret is read once, when a keyring first needs it.
import type { ValueKey } from '../crypto/value-key.js';
import { KeyturnError } from '../errors.js';
import { foreignFormatByName, foreignFormatNames } from '../formats/registry.js';
import type { ForeignFormat } from '../formats/foreign.js';
import { readForeignSecret } from '../keys/foreign-secret.js';
import { foreignKeyId, type ForeignColumn } from '../keys/key-store.js';
import type { OpenForeignKey } from '../keys/open-keyring.js';

/** A foreign key is named by its text id alone; nothing reads its algorithm or commitment. */
const unused = { algorithm: 'aes-256-gcm', commitment: Buffer.alloc(32) } as const;

export function createForeignOpener(environment: Readonly<Record<string, string | undefined>>): OpenForeignKey {
  const opened = new Map<string, ValueKey>();
  return async (column) => {
    const id = foreignKeyId(column);
    const key = opened.get(id) ?? (await open(column, environment));
    opened.set(id, key);
    return key;
  };
}

/** Throws CONFIG_INVALID, or FOREIGN_SECRET_UNAVAILABLE where the secret is not there now. */
async function open(
  column: Pick<ForeignColumn, 'format' | 'secretUri'>,
  environment: Readonly<Record<string, string | undefined>>,
): Promise<ValueKey> {
  const format = getForeignFormat(column.format);
  const secret =
    column.secretUri === undefined ? Buffer.alloc(0) : await readForeignSecret(column.secretUri, environment);
  const material = format.readKey(secret);
  secret.fill(0);
  if (material === undefined)
    throw new KeyturnError(
      'CONFIG_INVALID',
      `the secret at ${column.secretUri ?? 'nowhere'} is none of format ${format.name}; expected ${format.secret ?? 'none'}`,
      { format: format.name },
    );
  return { id: foreignKeyId(column), ...unused, material };
}

/** Throws CONFIG_INVALID. */
export function getForeignFormat(name: string): ForeignFormat {
  const format = foreignFormatByName(name);
  if (format !== undefined) return format;
  throw new KeyturnError(
    'CONFIG_INVALID',
    `format "${name}" is unknown here; known: ${foreignFormatNames().join(', ')}; KEYTURN_FORMATS names modules with formats of your own`,
    { format: name },
  );
}
