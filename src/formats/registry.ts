// The formats a column can be registered with, by the name used in keyturn.yaml and in the registry table, and the foreign
// formats it may come from or go to. A process adds its own foreign formats before it opens a keyring.
import { KeyturnError } from '../errors.js';
import { aesGcmBase64, aesGcmBytes, aesGcmHex } from './bare-aes-gcm.js';
import type { ForeignFormat } from './foreign.js';
import type { Format } from './format.js';
import { keyturnFormat } from './keyturn.js';
import { pgcryptoFormat } from './pgcrypto.js';
import { plaintextFormat } from './plaintext.js';
import { typeormEncryptedCbc, typeormEncryptedGcm } from './typeorm-encrypted.js';

const formats: ReadonlyMap<string, Format> = new Map([keyturnFormat].map((format) => [format.name, format]));

export const formatNames: readonly string[] = [...formats.keys()];

export function formatByName(name: string): Format | undefined {
  return formats.get(name);
}

const shipped: readonly ForeignFormat[] = [
  plaintextFormat,
  typeormEncryptedCbc,
  typeormEncryptedGcm,
  pgcryptoFormat,
  aesGcmBase64,
  aesGcmHex,
  aesGcmBytes,
];

const foreignFormats = new Map(shipped.map((format) => [format.name, format]));

export function foreignFormatNames(): readonly string[] {
  return [...foreignFormats.keys()];
}

export function foreignFormatByName(name: string): ForeignFormat | undefined {
  return foreignFormats.get(name);
}

/** Throws CONFIG_INVALID for a name that another format has. */
export function addForeignFormat(format: ForeignFormat): void {
  const known = foreignFormats.get(format.name);
  if (known === format) return;
  if (known !== undefined || formats.has(format.name))
    throw new KeyturnError(
      'CONFIG_INVALID',
      `two formats are called "${format.name}"; give your own format module another name`,
    );
  foreignFormats.set(format.name, format);
}
