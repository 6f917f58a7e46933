// target discover: looks at a bounded sample of every text, bytea and jsonb column in read-only transactions, and proposes a
// keyturn.yaml. Reads values and shows none (I7): names, kinds and counts alone.
import { isKeyturnError } from '../errors.js';
import { recognise, type Recognition, type Recognised } from '../formats/recognise.js';
import { configText, type ProposedColumn, type ProposedTarget } from '../rotation/target-text.js';
import { keyTags, targetTitle } from '../rotation/target.js';
import { findTable, listApplicationColumns, type ApplicationColumn } from '../store/catalog.js';
import type { Queryable } from '../store/database.js';
import { listKeyringNames } from '../store/keys.js';
import { listRegistered, type RegisteredTarget } from '../store/registry.js';
import { sampleColumns } from '../store/sample.js';
import { requireSchema } from '../store/schema.js';
import type { ControlContext } from './context.js';

export interface Discovery {
  readonly table: string;
  readonly column: string;
  /** Inside a jsonb column. */
  readonly path: readonly string[] | null;
  readonly found: Recognised;
  readonly certain: boolean;
  readonly fitting: number;
  readonly sampled: number;
  readonly registered: boolean;
}

export interface DiscoverReport {
  readonly discoveries: readonly Discovery[];
  /** Tables that this role may not read. */
  readonly unread: readonly string[];
  readonly config: string;
}

const beginSample = `BEGIN READ ONLY; SET LOCAL row_security = off; SET LOCAL statement_timeout = '5s'`;

/** `entities`: the path of the module that exports an application's data source, whose columns are listed with the findings. */
export async function discoverTargets(context: ControlContext, entities?: string): Promise<DiscoverReport> {
  const mapped = entities === undefined ? [] : await context.readEntities(entities);
  const { database } = context;
  const isInitialized = await hasSchema(database);
  const registry = isInitialized ? await listRegistered(database) : [];
  const [keyring = 'main'] = isInitialized ? await listKeyringNames(database) : [];
  const byTable = new Map<number, ApplicationColumn[]>();
  for (const column of await listApplicationColumns(database))
    byTable.set(column.tableOid, [...(byTable.get(column.tableOid) ?? []), column]);
  const discoveries: Discovery[] = [];
  const targets: ProposedTarget[] = [];
  const unread: string[] = [];
  for (const columns of byTable.values()) {
    const [first] = columns;
    if (first === undefined) continue;
    const title = targetTitle(first);
    context.onProgress(`looking at ${title}`);
    try {
      const found = await discoverTable(context, columns, registry);
      discoveries.push(...found);
      if (found.length > 0) targets.push(await proposeTarget(context, first, found, registry));
    } catch (error) {
      if (!isKeyturnError(error, 'DATABASE_ERROR')) throw error;
      unread.push(title);
    }
  }
  return { discoveries, unread, config: configText(keyring, mergeTargets(targets, mapped)) };
}

/** What entities encrypt is to be registered, whatever its values look like now. */
function mergeTargets(found: readonly ProposedTarget[], mapped: readonly ProposedTarget[]): readonly ProposedTarget[] {
  const merged = found.map((target) => {
    const columns = mapped.find(({ table }) => table === target.table)?.columns ?? [];
    const isWhole = (column: ProposedColumn, name: string): boolean =>
      column.path === undefined && column.name === name;
    return {
      ...target,
      columns: [
        ...target.columns.map((column) => {
          const wanted = columns.find(({ name }) => isWhole(column, name));
          return wanted === undefined ? column : { ...column, bind: wanted.bind ?? column.bind, isAside: false };
        }),
        ...columns.filter(({ name }) => !target.columns.some((column) => isWhole(column, name))),
      ],
    };
  });
  return [...merged, ...mapped.filter(({ table }) => !found.some((target) => target.table === table))];
}

/** A database that `init` has not seen has no registry yet. */
async function hasSchema(database: Queryable): Promise<boolean> {
  try {
    await requireSchema(database);
    return true;
  } catch (error) {
    if (isKeyturnError(error, 'NOT_INITIALIZED')) return false;
    throw error;
  }
}

async function discoverTable(
  { database }: ControlContext,
  columns: readonly ApplicationColumn[],
  registry: readonly RegisteredTarget[],
): Promise<readonly Discovery[]> {
  const samples = await database.transaction((client) => sampleColumns(client, columns), beginSample);
  return columns.flatMap((column, at) => {
    const values = samples[at] ?? [];
    const title = targetTitle(column);
    const told = (path: readonly string[] | null, recognition: Recognition | undefined): Discovery[] =>
      recognition === undefined
        ? []
        : [
            {
              table: title,
              column: column.column,
              path,
              found: recognition.found,
              certain: recognition.isCertain,
              fitting: recognition.fitting,
              sampled: recognition.sampled,
              registered: isRegistered(registry, column, path),
            },
          ];
    if (column.type !== 'jsonb') return told(null, recognise(values));
    return [...stringsOf(values)].flatMap(([path, strings]) =>
      told(JSON.parse(path) as string[], certainOnly(recognise(strings))),
    );
  });
}

/** Documents hold too many tokens and digests for guesses. */
function certainOnly(recognition: Recognition | undefined): Recognition | undefined {
  return recognition?.isCertain === true ? recognition : undefined;
}

/** The strings of JSON documents by their path, arrays left out. */
function stringsOf(documents: readonly (string | Buffer)[]): ReadonlyMap<string, readonly string[]> {
  const found = new Map<string, string[]>();
  const walk = (node: unknown, path: readonly string[]): void => {
    if (typeof node === 'string') {
      const name = JSON.stringify(path);
      found.set(name, [...(found.get(name) ?? []), node]);
    } else if (typeof node === 'object' && node !== null && !Array.isArray(node)) {
      for (const [key, member] of Object.entries(node)) walk(member, [...path, key]);
    }
  };
  for (const document of documents) walk(JSON.parse(String(document)), []);
  return found;
}

function isRegistered(
  registry: readonly RegisteredTarget[],
  column: ApplicationColumn,
  path: readonly string[] | null,
): boolean {
  return registry.some(
    (target) =>
      target.tableOid === column.tableOid &&
      target.columns.some(
        (known) => known.attribute === column.attribute && JSON.stringify(known.path ?? null) === JSON.stringify(path),
      ),
  );
}

async function proposeTarget(
  { database }: ControlContext,
  table: ApplicationColumn,
  found: readonly Discovery[],
  registry: readonly RegisteredTarget[],
): Promise<ProposedTarget> {
  const catalog = await findTable(database, { oid: table.tableOid });
  const registered = registry.find(({ tableOid }) => tableOid === table.tableOid);
  const key = (catalog?.keyAttributes ?? []).map((attribute) =>
    catalog?.columns.find((column) => column.attribute === attribute),
  );
  const isFit = key.length > 0 && key.every((column) => column !== undefined && keyTags[column.type] !== undefined);
  return {
    table: targetTitle(table),
    scope: registered?.scopeName,
    note: isFit ? undefined : 'needs a primary key of integers, uuids or text',
    columns: found.map((discovery) => proposeColumn(discovery, registered, isFit)),
  };
}

function proposeColumn(discovery: Discovery, registered: RegisteredTarget | undefined, isFit: boolean): ProposedColumn {
  const { column, path } = discovery;
  const known = registered?.columns.find(
    (candidate) => candidate.columnName === column && JSON.stringify(candidate.path ?? null) === JSON.stringify(path),
  );
  const isOurs = discovery.found === 'keyturn';
  return {
    name: column,
    path: path ?? undefined,
    bind: known?.bind,
    note: discovery.registered
      ? undefined
      : `${kinds[discovery.found]}, ${discovery.fitting} of ${discovery.sampled} values seen`,
    isAside: !isFit || !isOurs,
  };
}

const kinds: Readonly<Record<Recognised, string>> = {
  keyturn: 'envelopes that nobody registered; add bind: column if they were written so',
  fernet: 'Fernet tokens',
  pgcrypto: 'PGP messages, as pgcrypto writes them',
  cbc: 'a guess: AES-CBC, as typeorm-encrypted writes it',
  gcm: 'a guess: AES-GCM, or other random bytes',
};
