// Keeps the pace of all workers while its supervisor leads: looks at the database's health every second, decides, and
// writes the decision where workers read it with each slice. It runs beside the supervisor's tick, on connections of its
// own, so that a database in trouble delays neither. What it has seen is kept in memory: a new leader begins anew, at full
// pace, and knows within a second what is over a limit; only what is usual for small reads and commits is handed on.
import { setTimeout as delay } from 'node:timers/promises';
import { isKeyturnError } from '../errors.js';
import { restBeside } from '../rotation/beside-application.js';
import {
  decidePace,
  forgetMs,
  initialPaceState,
  type Gauge,
  type PaceDecision,
  type PaceState,
} from '../rotation/pacing.js';
import type { Database } from '../store/database.js';
import { readFleet } from '../store/health.js';
import { stillLeads, type Leadership } from '../store/leadership.js';
import { readPace, writePace } from '../store/pace.js';
import { readPaceSettings } from '../store/pace-settings.js';
import { openGauges, type Gauges, type UsualMs } from './gauges.js';

const lookMs = 1_000;
/** Where no run works there is nothing to slow down; what is usual is still worth knowing, with every third look. */
const idleLooks = 3;
/** What is over in ten seconds is over before anybody has noticed it: only a longer move gives way to the application. */
const graceLooks = 10;

export interface PacingOptions {
  /** A pool of its own. */
  readonly database: Database;
  /** Undefined while another supervisor leads. */
  readonly leadership: () => Leadership | undefined;
  readonly onTrouble: (error: unknown) => void;
}

export interface Pacing {
  /** Rejects when it cannot go on. Where nobody listens, that ends the process: without pacing nothing would slow a run. */
  readonly ended: Promise<void>;
  /** After the look in hand. Safe twice. */
  stop(): Promise<void>;
}

interface Term {
  readonly fencingToken: number;
  readonly gauges: Gauges;
  state: PaceState;
  /** What was decided last, to be compared. */
  pace: string;
  paceChanges: number;
  /** Looks since a run was at work. */
  idle: number;
  /** Looks at which one moved rows, with less between them than what makes the next one begin anew. */
  moving: number;
}

export function startPacing({ database, leadership, onTrouble }: PacingOptions): Pacing {
  const stopping = new AbortController();
  let term: Term | undefined;

  async function look(): Promise<void> {
    const lead = leadership();
    if (lead === undefined) {
      term = undefined;
      return;
    }
    if (term?.fencingToken !== lead.fencingToken) term = await beginTerm(database, lead);
    const fleet = await readFleet(database);
    term.idle = fleet.isWorking ? 0 : term.idle + 1;
    if (term.idle > 0 && term.idle % idleLooks !== 1) return;
    const isMoving = fleet.isWorking && term.state.target !== 0;
    if (isMoving) term.moving++;
    else if (term.idle * lookMs >= forgetMs) term.moving = 0;
    const settings = await readPaceSettings(database);
    const gauges = await term.gauges.look({
      settings,
      isMoving,
      paceChanges: term.paceChanges,
    });
    const givesWay = isMoving && term.moving > graceLooks;
    const beside = givesWay ? restBeside(term.gauges.application(), { ...fleet, cpus: settings.cpus }) : undefined;
    const decision = decidePace(term.state, { gauges, ...fleet, isMoving, beside }, performance.now());
    const change = `${decision.targetWorkers} ${decision.nice}`;
    if (term.pace !== change) term.paceChanges++;
    term.pace = change;
    term.state = decision.state;
    await publish(database, lead, decision, { gauges, usualMs: term.gauges.usualMs() });
  }

  const loop = (async () => {
    while (!stopping.signal.aborted) {
      const startedAtMs = performance.now();
      try {
        await look();
      } catch (error) {
        onTrouble(error);
        if (!isKeyturnError(error)) throw error;
      }
      const wait = Math.max(50, lookMs - (performance.now() - startedAtMs));
      await delay(wait, undefined, { signal: stopping.signal }).catch(() => undefined);
    }
  })();

  return {
    ended: loop,
    stop() {
      stopping.abort();
      return loop;
    },
  };
}

/** At full pace, with what the leader before knew to be usual: where a run moves, that could not be found out anew. */
async function beginTerm(database: Database, { fencingToken }: Leadership): Promise<Term> {
  const gauges = openGauges(database, usualFrom((await readPace(database))?.signals['usualMs']));
  return { fencingToken, gauges, state: initialPaceState, pace: '', paceChanges: 0, idle: 0, moving: 0 };
}

function usualFrom(stored: unknown): UsualMs {
  const known = Object.entries(stored ?? {}).filter((entry): entry is [string, number] => typeof entry[1] === 'number');
  return Object.fromEntries(known);
}

async function publish(
  database: Database,
  lead: Leadership,
  decision: PaceDecision,
  { gauges, usualMs }: { readonly gauges: readonly Gauge[]; readonly usualMs: UsualMs },
): Promise<void> {
  await database.transaction(async (client) => {
    if (!(await stillLeads(client, lead))) return;
    await writePace(client, {
      targetWorkers: decision.targetWorkers,
      nice: decision.nice,
      reason: decision.reason,
      signals: { seen: gauges.flatMap(wordsOf), unseen: decision.unseen, usualMs },
    });
  });
}

function wordsOf(gauge: Gauge): readonly string[] {
  return 'readings' in gauge ? gauge.readings.map(({ words }) => words) : [];
}
