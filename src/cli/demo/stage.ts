// What the story needs and how it is opened: a database of its own, a folder, the operator's verbs, child processes.
// The root key is made here and lives in this process and in its children's environment, nowhere else.
import { randomBytes } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { noConfigFile, type ControlContext, type OpenControlFunction } from '../../control/context.js';
import type { Belongings } from './belongings.js';
import { createCrew, type App, type Crew, type Service } from './crew.js';
import { rootKeyVariable, shopConfig } from './customers.js';
import { openDemoDatabase, type GivenServer } from './demo-database.js';
import { logVariable } from './messages.js';
import type { Narrator } from './narrator.js';
import { createWorkspace } from './workspace.js';

export interface DemoOptions {
  readonly rows: number;
  readonly json: boolean;
  /** Leave the services running after the report, until Ctrl-C. */
  readonly keep: boolean;
  readonly environment: Record<string, string | undefined>;
  readonly openControl: OpenControlFunction;
  /** Takes away what the demo's cluster keeps in Redis. */
  readonly removeQueue: (environment: NodeJS.ProcessEnv) => Promise<void>;
  /** Absolute file names of the compiled entry points. */
  readonly entry: { readonly supervisor: string; readonly worker: string };
}

export interface Stage {
  readonly rows: number;
  readonly narrator: Narrator;
  readonly context: ControlContext;
  readonly crew: Crew;
  readonly queue: 'PostgreSQL' | 'Redis';
  startSupervisor(): Service;
  startWorker(name: string): Service;
  startApp<Counts>(name: 'writer' | 'reader'): Promise<App<Counts>>;
  /** Writes the files that a shell needs, and says what to try. */
  howToLookAround(): string;
}

export async function setStage(options: DemoOptions, belongings: Belongings, narrator: Narrator): Promise<Stage> {
  const given = await findGivenServer(options, belongings);
  const database = await narrator.step('database', 'Starting a database', () =>
    belongings.own(
      () => openDemoDatabase(given),
      (opened) => opened.remove(),
    ),
  );
  narrator.note(database.where);
  const workspace = await belongings.own(createWorkspace, (opened) => opened.remove());
  const rootKey = randomBytes(32).toString('hex');
  const inherited = inheritedFrom(options.environment);
  const usesRedis = [inherited['REDIS_URL'], inherited['REDIS_URL_FILE']].some(
    (value) => value !== undefined && value !== '',
  );
  const environmentOf = (name: string): NodeJS.ProcessEnv => ({
    ...inherited,
    ...database.urls,
    KEYTURN_CONFIG: workspace.config,
    KEYTURN_MEMBER: name,
    LOG_LEVEL: 'info',
  });
  const withRootKey = (name: string): NodeJS.ProcessEnv => ({ ...environmentOf(name), [rootKeyVariable]: rootKey });
  const control = await belongings.own(
    () =>
      options.openControl({
        environment: withRootKey('demo'),
        file: shopConfig,
        onProgress: (words) => narrator.passing(words, words),
      }),
    (opened) => opened.close(),
  );
  let isQueueUsed = false;
  // Before the crew, so that it goes when nobody of the crew is there to write to it.
  await belongings.own(
    () => undefined,
    async () => {
      if (usesRedis && isQueueUsed) await options.removeQueue(environmentOf('demo'));
    },
  );
  const crew = await belongings.own(
    () => createCrew(workspace.logs, narrator.say),
    (opened) => opened.stop(),
  );
  return {
    rows: options.rows,
    narrator,
    context: control.context,
    crew,
    queue: usesRedis ? 'Redis' : 'PostgreSQL',
    startSupervisor() {
      isQueueUsed = true;
      return crew.startService('supervisor', options.entry.supervisor, environmentOf('supervisor'));
    },
    startWorker: (name) => crew.startService(name, options.entry.worker, withRootKey(name)),
    startApp: (name) =>
      crew.startApp(name, fileURLToPath(new URL(`./${name}.js`, import.meta.url)), {
        ...withRootKey(name),
        [logVariable]: workspace.writeLog,
      }),
    howToLookAround() {
      const redis = usesRedis
        ? Object.fromEntries(
            Object.entries(inherited).flatMap(([name, value]) =>
              /^REDIS_URL(_FILE)?$/.test(name) && value !== undefined ? [[name, value]] : [],
            ),
          )
        : {};
      return lookAround(workspace.writeEnvironment(rootKey, { ...database.urls, ...redis }), workspace.logs);
    },
  };
}

/** The user's environment without what points Keyturn at another database, config or key. */
function inheritedFrom(environment: DemoOptions['environment']): NodeJS.ProcessEnv {
  return Object.fromEntries(
    Object.entries(environment).filter(
      ([name]) => !/^(KEYTURN_|DATABASE_(DIRECT_)?URL|(LOG_LEVEL|HOST|PORT)$)/.test(name),
    ),
  );
}

/** The server that DATABASE_URL, or libpq's variables, name; undefined for one of our own. */
async function findGivenServer(options: DemoOptions, belongings: Belongings): Promise<GivenServer | undefined> {
  const { environment } = options;
  if (isSet(environment['DATABASE_URL']) || isSet(environment['DATABASE_URL_FILE'])) {
    const { context } = await belongings.own(
      () => options.openControl({ environment, file: noConfigFile }),
      (opened) => opened.close(),
    );
    const url = context.config.databaseUrl?.expose() ?? '';
    return { url, directUrl: context.config.databaseDirectUrl?.expose() ?? url };
  }
  return isSet(environment['PGHOST']) ? serverOfLibpq(environment) : undefined;
}

function isSet(value: string | undefined): boolean {
  return value !== undefined && value !== '';
}

function serverOfLibpq(environment: DemoOptions['environment']): GivenServer {
  const url = new URL('postgres://localhost');
  const host = environment['PGHOST'] ?? '';
  // A path is the folder of a Unix socket, which has no place in the host part of an address.
  if (host.startsWith('/')) url.searchParams.set('host', host);
  else url.hostname = host;
  url.port = environment['PGPORT'] ?? '5432';
  url.username = encodeURIComponent(environment['PGUSER'] ?? 'postgres');
  url.password = encodeURIComponent(environment['PGPASSWORD'] ?? '');
  url.pathname = `/${encodeURIComponent(environment['PGDATABASE'] ?? 'postgres')}`;
  return { url: url.href, directUrl: url.href };
}

function lookAround(file: string, logs: string): string {
  return `
Everything still runs: the database, the supervisor, the other worker. In another terminal, from this folder:

   . ${file}

sets DATABASE_URL, KEYTURN_CONFIG and KEYTURN_ROOT_KEY_FILE (the root key is in that file, for you alone). Then try:

   npm run --silent keyturn -- status
   npm run --silent keyturn -- key list
   npm run --silent keyturn -- run list
   npm run --silent keyturn -- target census
   npm run --silent keyturn -- key rotate --reencrypt --wait
   psql "$DATABASE_URL" -c 'SELECT id, tenant_id, email FROM customer LIMIT 3'
   psql "$DATABASE_URL" -c 'SELECT * FROM keyturn.ledger ORDER BY committed_at DESC LIMIT 5'

Logs: ${logs}

Ctrl-C ends and removes all of it.`;
}
