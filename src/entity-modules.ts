// The encrypted columns that an application's entities ask for, from the module that exports its TypeORM data source. The ORM
// is loaded here, when somebody asks: whoever does without TypeORM need not install it.
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import type { DataSource } from 'typeorm';
import { KeyturnError } from './errors.js';
import type { ProposedTarget } from './rotation/target-text.js';

/** Reads the entities without connecting, so that nothing is synchronized or migrated. Throws CONFIG_INVALID. */
export async function readEntityTargets(path: string): Promise<readonly ProposedTarget[]> {
  const source = resolve(path);
  try {
    const dataSource = await findDataSource(await import(pathToFileURL(source).href));
    if (dataSource === undefined)
      throw new KeyturnError(
        'CONFIG_INVALID',
        `${source} exports no TypeORM DataSource; give the module that exports the one you initialize`,
        { source },
      );
    if (!dataSource.isInitialized) await dataSource.buildMetadatas();
    const { proposeTargets } = await import('./orm/describe-targets.js');
    return proposeTargets(dataSource);
  } catch (error) {
    if (error instanceof KeyturnError) throw error;
    const code = error instanceof Error && 'code' in error ? error.code : undefined;
    throw new KeyturnError(
      'CONFIG_INVALID',
      `the entities of ${source} cannot be read: ${typeof code === 'string' ? code : 'an error'}; give the module, as JavaScript, that your application starts with`,
      { source },
    );
  }
}

/** What `initialize` does once it is connected. */
type Buildable = DataSource & { buildMetadatas(): Promise<void> };

/** Under whatever name it is exported, also by a CommonJS module or as a promise. */
async function findDataSource(exported: unknown): Promise<Buildable | undefined> {
  const members = valuesOf(exported);
  for (const member of [...members, ...members.flatMap(valuesOf)]) {
    const settled: unknown = await member;
    if (isDataSource(settled)) return settled;
  }
  return undefined;
}

function valuesOf(exported: unknown): readonly unknown[] {
  return typeof exported === 'object' && exported !== null ? Object.values(exported) : [];
}

function isDataSource(value: unknown): value is Buildable {
  if (typeof value !== 'object' || value === null) return false;
  return 'entityMetadatas' in value && 'buildMetadatas' in value && typeof value.buildMetadatas === 'function';
}
