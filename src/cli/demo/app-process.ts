// The frame of the writer and the reader: an application process that opens Keyturn through the public library, does
// what the demo asks over IPC, and ends when the demo lets go of it or dies.
import { randomInt } from 'node:crypto';
import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises';
import pg from 'pg';
import { isKeyturnError, openKeyturn, type Column } from '../../index.js';
import { columnNames, tableName, type ColumnName } from './customers.js';
import { logVariable, type Answer, type AppTasks, type Crowd, type Question } from './messages.js';

export interface App {
  readonly pool: pg.Pool;
  column(name: ColumnName): Column;
}

export interface AppWithLog extends App {
  /** Where acknowledged writes are logged. */
  readonly log: string;
}

/** Opens the application, then serves `tasks` until the demo disconnects. */
export async function runApp<Counts>(name: string, startTasks: (app: AppWithLog) => AppTasks<Counts>): Promise<void> {
  const gone = new Promise<void>((resolve) => process.once('disconnect', resolve));
  try {
    const keyturn = await openKeyturn({ name });
    const pool = new pg.Pool({ connectionString: process.env['DATABASE_URL'], max: 4, application_name: name });
    pool.on('error', () => undefined);
    const columns = new Map(columnNames.map((column) => [column, keyturn.column(tableName, column)]));
    const app: AppWithLog = {
      pool,
      log: process.env[logVariable] ?? '',
      column(column) {
        const found = columns.get(column);
        if (found === undefined) throw new Error(`no column ${column}: the map is built from all names`);
        return found;
      },
    };
    serve(startTasks(app));
    tell({ kind: 'ready' });
    if (process.connected) await gone;
    await keyturn.close();
    // Traffic that was not told to end stops here.
    process.exit(0);
  } catch (error) {
    tell({ kind: 'failed', words: describe(error) });
    process.exitCode = 1;
    if (process.connected) process.disconnect();
  }
}

function serve(tasks: object): void {
  const byName = new Map<string, unknown>(Object.entries(tasks));
  process.on('message', (message) => {
    const { id, task, argument } = message as Question;
    const work = byName.get(task) as (argument: unknown) => Promise<unknown>;
    work(argument).then(
      (result) => tell({ kind: 'done', id, result }),
      (error: unknown) => tell({ kind: 'failed', words: describe(error) }),
    );
  });
}

function tell(answer: Answer): void {
  if (process.connected) process.send?.(answer);
}

/** Codes only: a driver's message may hold values (I7). */
function describe(error: unknown): string {
  if (isKeyturnError(error)) return `${error.code}: ${error.message}`;
  if (error instanceof pg.DatabaseError) return `SQLSTATE ${error.code ?? 'unknown'}`;
  return error instanceof Error ? error.constructor.name : typeof error;
}

/** Traffic in a few lanes over random rows, some of it where the demo says the workers are. */
export class Traffic {
  readonly #lanes: Promise<void>[] = [];
  readonly #settings: { readonly lanes: number; readonly pauseMs: number; readonly crowdedShare: number };
  #rows = 0;
  #crowd: Crowd | null = null;
  #isEnding = false;

  constructor(settings: { lanes: number; pauseMs: number; crowdedShare: number }) {
    this.#settings = settings;
  }

  begin(rows: number, visit: (id: number) => Promise<void>): void {
    this.#rows = rows;
    for (let lane = 0; lane < this.#settings.lanes; lane++) {
      const running = this.#run(visit);
      running.catch((error: unknown) => tell({ kind: 'failed', words: describe(error) }));
      this.#lanes.push(running);
    }
  }

  crowd(where: Crowd | null): void {
    this.#crowd = where;
  }

  /** Resolves when the visits in hand are over. */
  async end(): Promise<void> {
    this.#isEnding = true;
    await Promise.all(this.#lanes);
  }

  async #run(visit: (id: number) => Promise<void>): Promise<void> {
    while (!this.#isEnding) {
      await visit(this.#chooseRow());
      // A visit that finds nothing to do must not keep the process from everything else.
      await (this.#crowd?.isUrgent === true ? nextTurn() : delay(this.#settings.pauseMs));
    }
  }

  #chooseRow(): number {
    const crowd = this.#crowd;
    const goesThere = crowd !== null && (crowd.isUrgent || Math.random() < this.#settings.crowdedShare);
    return goesThere ? randomInt(crowd.from, crowd.upto + 1) : randomInt(1, this.#rows + 1);
  }
}
