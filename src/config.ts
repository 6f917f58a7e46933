// keyturn.yaml, checked, merged with the environment into one frozen Config. Nothing else reads the file.
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { parse } from 'yaml';
import { z } from 'zod';
import { algorithmNames, defaultAlgorithm, type AlgorithmName } from './crypto/algorithms.js';
import { readConnections, type Connections, type Environment } from './environment.js';
import { KeyturnError } from './errors.js';

export interface ColumnConfig {
  /** Column name, or `column.path` for a jsonb path. */
  readonly name: string;
  readonly column: string;
  /** jsonb path below the column; undefined for whole columns. */
  readonly path: readonly string[] | undefined;
  readonly format: string;
  readonly bind: 'row' | 'column';
}

export interface TargetConfig {
  readonly schema: string;
  readonly table: string;
  readonly keyring: string;
  readonly scopeColumn: string | undefined;
  readonly columns: readonly ColumnConfig[];
}

export interface KeyringConfig {
  readonly name: string;
  /** Root key URIs, the preferred one first. */
  readonly roots: readonly string[];
  readonly algorithm: AlgorithmName;
  /** Within so many days a rotation has to be over, the replaced key retired. */
  readonly cryptoperiodDays: number;
  /** Whether a key may be made or activated while another is in no backup. */
  readonly backup: 'warn' | 'require';
}

/** What pacing cannot find out by itself. */
export interface PaceConfig {
  /** Processors of the database server. */
  readonly cpus: number | undefined;
  /** Sources of health that may be out of sight; undefined for the usual ones. */
  readonly optional: readonly string[] | undefined;
}

export interface Config extends Connections {
  /** The file the config came from, for messages. */
  readonly source: string;
  readonly roles: {
    readonly owner?: string | undefined;
    readonly app?: string | undefined;
    readonly worker?: string | undefined;
    readonly auditor?: string | undefined;
  };
  readonly expectMembers: readonly string[];
  readonly pace: PaceConfig;
  readonly keyrings: readonly KeyringConfig[];
  readonly targets: readonly TargetConfig[];
}

export type { Environment } from './environment.js';

const identifier = z.string().min(1).max(63);
const pathSegment = z.string().min(1).max(200);
const bind = z.enum(['row', 'column']).default('row');

const columnSchema = z
  .strictObject({
    format: z
      .string()
      .refine((format) => !/[/\\]|\.[cm]?[jt]s$/.test(format), {
        message:
          'a format of your own is named by its path in KEYTURN_FORMATS of every process, not here; register the column as it is to become and move it with: keyturn adopt --from NAME (docs/adopting.md)',
      })
      .default('keyturn'),
    bind,
    paths: z
      .record(
        z.string().regex(/^[A-Za-z0-9_]+$/, 'a path name takes letters, digits and _'),
        z.array(pathSegment).min(1),
      )
      .refine((paths) => Object.keys(paths).length > 0, 'name at least one path, or leave paths: out')
      .optional(),
  })
  .nullable();

const keyringSchema = z
  .strictObject({
    root: z.string().optional(),
    roots: z.array(z.string()).min(1).max(2).optional(),
    algorithm: z.enum(algorithmNames as [AlgorithmName, ...AlgorithmName[]]).default(defaultAlgorithm),
    cryptoperiod_days: z.int().min(1).max(3_660).default(90),
    backup: z.enum(['warn', 'require']).default('warn'),
  })
  .refine((keyring) => (keyring.root === undefined) !== (keyring.roots === undefined), {
    message: 'expected either root: URI or roots: [preferred, other]',
  });

const fileSchema = z.strictObject({
  roles: z
    .strictObject({
      owner: identifier.optional(),
      app: identifier.optional(),
      worker: identifier.optional(),
      auditor: identifier.optional(),
    })
    .default({}),
  expect_members: z.array(z.string().min(1)).default([]),
  pace: z
    .strictObject({ cpus: z.int().min(1).max(10_000).optional(), optional: z.array(z.string()).optional() })
    .default({}),
  keyrings: z.record(
    z.string().regex(/^[a-z][a-z0-9_-]{0,62}$/, 'a keyring name takes a-z, 0-9, _ and -, and begins with a letter'),
    keyringSchema,
  ),
  targets: z
    .array(
      z.strictObject({
        table: z.string().min(1),
        keyring: z.string(),
        scope: identifier.optional(),
        columns: z.record(identifier, columnSchema),
      }),
    )
    .default([]),
});

type FileShape = z.output<typeof fileSchema>;
/** The shape of keyturn.yaml, for callers that pass it as an object. */
export type ConfigFile = z.input<typeof fileSchema>;

/**
 * Reads `KEYTURN_CONFIG` (default `keyturn.yaml`) unless `file` gives the path or the parsed content, and the
 * environment. Throws CONFIG_INVALID with the path of each wrong setting.
 */
export function loadConfig(environment: Environment, file?: string | ConfigFile): Config {
  const { source, content } =
    typeof file === 'object'
      ? { source: 'the given object', content: file as unknown }
      : readConfigFile(file ?? environment['KEYTURN_CONFIG'] ?? 'keyturn.yaml');
  const parsed = fileSchema.safeParse(content);
  if (!parsed.success) {
    const problems = parsed.error.issues.map(
      (issue) =>
        `${issue.path.join('.') || '(top level)'}: ${issue.code === 'invalid_key' ? issue.issues.map(({ message }) => message).join(', ') : issue.message}`,
    );
    throw new KeyturnError('CONFIG_INVALID', `${source} does not fit: ${problems.join('; ')}`, { source, problems });
  }
  return Object.freeze({
    source,
    ...readConnections(environment),
    roles: parsed.data.roles,
    expectMembers: parsed.data.expect_members,
    pace: { cpus: parsed.data.pace.cpus, optional: parsed.data.pace.optional },
    keyrings: keyringsOf(parsed.data),
    targets: targetsOf(parsed.data, source),
  });
}

/** Only what steering and status need: connections, no keyturn.yaml. */
export function loadConnectionConfig(environment: Environment): Config {
  return Object.freeze({
    source: 'the environment',
    ...readConnections(environment),
    roles: {},
    expectMembers: [],
    pace: { cpus: undefined, optional: undefined },
    keyrings: [],
    targets: [],
  });
}

function readConfigFile(path: string): { source: string; content: unknown } {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch {
    throw new KeyturnError(
      'CONFIG_INVALID',
      `no readable config at ${resolve(path)}; write a keyturn.yaml or point KEYTURN_CONFIG or --config at one`,
      { source: path },
    );
  }
  try {
    return { source: path, content: parse(text) as unknown };
  } catch (error) {
    throw new KeyturnError(
      'CONFIG_INVALID',
      `${path} is not YAML: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : 'unreadable'}`,
      { source: path },
    );
  }
}

function keyringsOf(file: FileShape): KeyringConfig[] {
  return Object.entries(file.keyrings).map(([name, keyring]) => ({
    name,
    roots: keyring.roots ?? [keyring.root ?? ''],
    algorithm: keyring.algorithm,
    cryptoperiodDays: keyring.cryptoperiod_days,
    backup: keyring.backup,
  }));
}

function targetsOf(file: FileShape, source: string): TargetConfig[] {
  const seen = new Set<string>();
  return file.targets.map((target) => {
    const { schema, table } = splitTableName(target.table, source);
    if (!Object.hasOwn(file.keyrings, target.keyring)) {
      throw new KeyturnError(
        'CONFIG_INVALID',
        `${source}: target ${target.table} names keyring "${target.keyring}"; known keyrings: ${Object.keys(file.keyrings).join(', ') || 'none'}`,
        { source },
      );
    }
    if (seen.has(`${schema}.${table}`))
      throw new KeyturnError(
        'CONFIG_INVALID',
        `${source}: table ${schema}.${table} is listed twice; list all its columns under one target`,
        { source },
      );
    seen.add(`${schema}.${table}`);
    const columns = Object.entries(target.columns).flatMap(([column, settings]) => columnsOf(column, settings));
    if (columns.length === 0)
      throw new KeyturnError('CONFIG_INVALID', `${source}: target ${target.table} lists no columns`, { source });
    const twice = columns.find((column, at) => columns.findIndex(({ name }) => name === column.name) < at);
    if (twice !== undefined)
      throw new KeyturnError(
        'CONFIG_INVALID',
        `${source}: target ${target.table} has two columns called ${twice.name}; give its path another name`,
        { source },
      );
    return { schema, table, keyring: target.keyring, scopeColumn: target.scope, columns };
  });
}

function columnsOf(column: string, settings: z.output<typeof columnSchema>): ColumnConfig[] {
  const { format, bind: binding, paths } = settings ?? { format: 'keyturn', bind: 'row' as const, paths: undefined };
  if (paths === undefined) return [{ name: column, column, path: undefined, format, bind: binding }];
  return Object.entries(paths).map(([name, path]) => ({
    name: `${column}.${name}`,
    column,
    path,
    format,
    bind: binding,
  }));
}

function splitTableName(name: string, source: string): { schema: string; table: string } {
  const parts = name.split('.');
  if (parts.length > 2 || parts.some((part) => part === '')) {
    throw new KeyturnError(
      'CONFIG_INVALID',
      `${source}: "${name}" is not a table name; expected table or schema.table`,
      { source },
    );
  }
  return parts.length === 2 ? { schema: parts[0] ?? '', table: parts[1] ?? '' } : { schema: 'public', table: name };
}
