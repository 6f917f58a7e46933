// Keyturn as an application has it: built, in a folder's node_modules beside its dependencies, with or without optional ones.
import { cpSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { bindingFolder } from './softhsm.js';

const checkout = resolve(import.meta.dirname, '../..');

export interface Installed {
  /** Loads a module of `src` from there. */
  load<T>(path: string): Promise<T>;
  readonly cli: string;
  remove(): void;
}

export interface InstallOptions {
  /** Packages that are not installed. */
  readonly without?: readonly string[];
  /** With graphene-pk11: as it is, or behind the text of a module that misbehaves. */
  readonly pkcs11?: 'as it is' | { readonly insteadOf: string };
}

/** Needs what `npm run build:children` builds. */
export function install({ without = [], pkcs11 }: InstallOptions): Installed {
  const folder = mkdtempSync(join(tmpdir(), 'keyturn-installed-'));
  const modules = join(folder, 'node_modules');
  const link = (from: string, name: string): void => symlinkSync(join(from, name), join(modules, name), 'dir');
  mkdirSync(modules);
  for (const name of readdirSync(join(checkout, 'node_modules')))
    if (!name.startsWith('.') && !without.some((absent) => absent === name || absent.startsWith(`${name}/`)))
      link(join(checkout, 'node_modules'), name);
  if (pkcs11 === 'as it is') link(bindingFolder, 'graphene-pk11');
  else if (pkcs11 !== undefined) {
    mkdirSync(join(modules, 'graphene-pk11'));
    writeFileSync(join(modules, 'graphene-pk11/package.json'), '{"name":"graphene-pk11","main":"index.js"}');
    writeFileSync(join(modules, 'graphene-pk11/index.js'), pkcs11.insteadOf);
  }
  const own = join(modules, 'keyturn');
  for (const part of ['dist/src', 'dist/workers', 'package.json'])
    cpSync(join(checkout, part), join(own, part), { recursive: true });
  return {
    load: async (path) => import(pathToFileURL(join(own, 'dist/src', path)).href),
    cli: join(own, 'dist/workers/keyturn.js'),
    remove: () => rmSync(folder, { recursive: true, force: true }),
  };
}
