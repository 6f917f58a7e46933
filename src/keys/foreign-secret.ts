// Secrets of foreign formats from outside: `env:NAME` or `file:PATH`, as bytes, without the newline an editor leaves. They
// are other systems' secrets, passphrases among them, so nothing is asked of how they look.
import { readFile, stat } from 'node:fs/promises';
import { KeyturnError } from '../errors.js';

const maxSecretBytes = 4_096;
const groupOrOthers = 0o077;

const uriShape = /^(?:env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$/s;

export function isForeignSecretUri(uri: string): boolean {
  return uriShape.test(uri);
}

/** Throws CONFIG_INVALID for a URI that is none, FOREIGN_SECRET_UNAVAILABLE where nothing is there now. */
export async function readForeignSecret(
  uri: string,
  environment: Readonly<Record<string, string | undefined>>,
): Promise<Buffer> {
  if (!isForeignSecretUri(uri))
    throw new KeyturnError('CONFIG_INVALID', 'expected env:NAME or file:PATH for the secret of a foreign format');
  const location = uri.slice(uri.indexOf(':') + 1);
  if (uri.startsWith('env:')) {
    const value = environment[location];
    if (value !== undefined && value !== '') return Buffer.from(value, 'utf8');
    const path = environment[`${location}_FILE`];
    if (path !== undefined) return readSecretFile(path);
    throw unavailable(`env:${location}`, 'the variable is not set');
  }
  return readSecretFile(location);
}

async function readSecretFile(path: string): Promise<Buffer> {
  try {
    const { mode, size } = await stat(path);
    if ((mode & groupOrOthers) !== 0)
      throw unavailable(`file:${path}`, `others have access to it; run: chmod 600 '${path}'`);
    if (size > maxSecretBytes)
      throw unavailable(`file:${path}`, `it has ${size} bytes, a secret has at most ${maxSecretBytes}`);
    const content = await readFile(path);
    return content.at(-1) === 0x0a ? content.subarray(0, -1) : content;
  } catch (error) {
    if (error instanceof KeyturnError) throw error;
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'unknown error';
    throw unavailable(`file:${path}`, `opening it failed with ${code}`);
  }
}

function unavailable(source: string, reason: string): KeyturnError {
  return new KeyturnError('FOREIGN_SECRET_UNAVAILABLE', `the secret at ${source} cannot be read: ${reason}`, {
    source,
  });
}
