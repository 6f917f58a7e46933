// Foreign formats of a user's own, from the modules that KEYTURN_FORMATS names. The environment names them and not the
// registry: whoever may write a table must not choose what code a worker loads.
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { Environment } from './environment.js';
import { KeyturnError } from './errors.js';
import type { ForeignFormat } from './formats/foreign.js';
import { addForeignFormat } from './formats/registry.js';

/** Paths separated by commas; each module exports its format as `format`. Throws CONFIG_INVALID. */
export async function loadFormatModules(environment: Environment): Promise<void> {
  const paths = (environment['KEYTURN_FORMATS'] ?? '').split(',').filter((path) => path !== '');
  for (const path of paths) addForeignFormat(await loadFormat(resolve(path)));
}

async function loadFormat(path: string): Promise<ForeignFormat> {
  let loaded: unknown;
  try {
    loaded = await import(pathToFileURL(path).href);
  } catch (error) {
    const code = error instanceof Error && 'code' in error ? String(error.code) : 'an error';
    throw new KeyturnError('CONFIG_INVALID', `the format module ${path} cannot be loaded: ${code}`, { source: path });
  }
  const format = typeof loaded === 'object' && loaded !== null && 'format' in loaded ? loaded.format : undefined;
  if (isForeignFormat(format)) return format;
  throw new KeyturnError(
    'CONFIG_INVALID',
    `the format module ${path} has to export a ForeignFormat as "format"; findBrokenPromises says what it lacks`,
    { source: path },
  );
}

const functions = ['readKey', 'isValue', 'sqlIsValue', 'decrypt', 'encrypt', 'storedLength'] as const;

function isForeignFormat(value: unknown): value is ForeignFormat {
  if (typeof value !== 'object' || value === null) return false;
  const parts = value as Readonly<Record<string, unknown>>;
  return (
    typeof parts['name'] === 'string' &&
    typeof parts['authenticates'] === 'boolean' &&
    Array.isArray(parts['storages']) &&
    functions.every((name) => typeof parts[name] === 'function')
  );
}
