// The supervisor: one leader at a time advances every run, keeps a small window of batches in the queue and mends what got
// lost. It holds no state of its own: kill it anywhere and the next tick of another one goes on.
//
// Who is right: PostgreSQL. A batch is marked dispatched, under a new generation, before its job is sent; a job that never
// arrives is found by asking the queue about batches that nobody claims, and sent again under the next generation, so a
// late first job finds the wrong generation and is dropped. A wiped queue shows by its missing marker.
import { randomUUID } from 'node:crypto';
import { isKeyturnError } from '../errors.js';
import type { BatchQueue } from '../queue/jobs.js';
import { dispatchWindow, followUpWindow } from '../rotation/pace.js';
import { paceInForce } from '../rotation/standing.js';
import { restOf, type HeldBack, type HeldReason } from '../rotation/held-back.js';
import {
  countOut,
  dispatchDue,
  expireLeases,
  listUnclaimed,
  returnIfStillDispatched,
  type DispatchedBatch,
} from '../store/batches.js';
import type { Database } from '../store/database.js';
import {
  giveUpLeadership,
  holdLeadership,
  leadershipSeconds,
  stillLeads,
  type Leadership,
} from '../store/leadership.js';
import { listMembers, removeForgottenMembers } from '../store/members.js';
import { readPace } from '../store/pace.js';
import { listUnfinishedRuns, setHeldBack, type Run } from '../store/runs.js';
import { advanceRun } from './advance-run.js';
import { startPacing } from './pacing.js';

/** Between two ticks where nothing happens. */
const tickMs = 500;
/** After a tick that found something changed; the pauses grow from here, so that the steps of a small run follow each other. */
const firstTickMs = 100;
const tickGrowth = 1.5;
const reconcileMs = 5_000;
/** A dispatched batch that nobody took for so long is asked about. */
const unclaimedSeconds = 5;

export interface SupervisorOptions {
  readonly database: Database;
  /** Of its own for the gauges of pacing; without it nothing slows the workers down. */
  readonly gauged: Database | undefined;
  readonly queue: BatchQueue;
  /** Kept in the queue; its absence there means the queue was wiped. */
  readonly marker: string;
  /** Where this process answers, for `status`. */
  readonly healthUrl?: string | undefined;
  readonly onTrouble: (error: unknown) => void;
  readonly onEvent: (event: string, details: Readonly<Record<string, number | string>>) => void;
}

export interface Supervisor {
  /** As of the last tick; undefined while another one leads. */
  readonly leadership: Leadership | undefined;
  readonly isLeading: boolean;
  /** Unfinished runs that do not go on as they might, as of the last tick. */
  readonly heldBack: ReadonlyMap<number, HeldReason>;
  /** Monotonic milliseconds: when the last tick began. */
  readonly tickedAtMs: number;
  /** Gives up the lead after the tick in hand. Safe twice. */
  stop(): Promise<void>;
}

export function startSupervisor(options: SupervisorOptions): Supervisor {
  const { database, queue } = options;
  const holder = randomUUID();
  let leadership: Leadership | undefined;
  let heldAtMs = -Infinity;
  let tickedAtMs = performance.now();
  let reconciledAtMs = -Infinity;
  let heldBack: ReadonlyMap<number, HeldReason> = new Map();
  /** Batches the queue did not know on the last reconciliation; returned when it still does not. */
  let suspects = new Set<string>();
  /** What the last tick found, to tell whether anything happens. */
  let found = '';

  /** Whether something has happened since the last tick. */
  async function tick(): Promise<boolean> {
    const tokenBefore = leadership?.fencingToken;
    const askedAtMs = performance.now();
    leadership = await holdLeadership(database, holder, options.healthUrl);
    if (leadership === undefined) {
      heldBack = new Map();
      return false;
    }
    heldAtMs = askedAtMs;
    if (leadership.fencingToken !== tokenBefore)
      options.onEvent('supervisor leads', { fencingToken: leadership.fencingToken });
    const runs = await listUnfinishedRuns(database);
    const resting = new Map<number, HeldBack>();
    for (const run of runs) {
      const rest = restOf(run, runs, run.readAt);
      if (rest !== undefined) resting.set(run.id, rest);
    }
    const held = new Map<number, HeldReason>();
    for (const run of runs) {
      const by = await advance(leadership, run, resting.get(run.id));
      if (by !== undefined) held.set(run.id, by.reason);
    }
    heldBack = held;
    for (const batch of await whileLeading(leadership, expireLeases)) options.onEvent('lease expired', { batch });
    const out = await dispatch(leadership, [...resting.keys()]);
    if (performance.now() - reconciledAtMs >= reconcileMs) {
      reconciledAtMs = performance.now();
      await reconcile(leadership);
    }
    const before = found;
    found = JSON.stringify([out, runs.map(({ id, state, pass, round }) => [id, state, pass, round])]);
    return found !== before;
  }

  /** A run that cannot go on, say because its table changed, must not keep the others from being looked after. */
  async function advance(lead: Leadership, run: Run, rest: HeldBack | undefined): Promise<HeldBack | undefined> {
    try {
      return await advanceRun({ database, leadership: lead }, run, rest);
    } catch (error) {
      if (!isKeyturnError(error) || error.code === 'DATABASE_UNAVAILABLE') throw error;
      options.onTrouble(error);
      await setHeldBack(database, run, error.message);
      return { reason: 'trouble', words: error.message };
    }
  }

  /** Answers how many batches are out then, by shape. */
  async function dispatch(lead: Leadership, resting: readonly number[]): Promise<{ range: number; list: number }> {
    const workers = (await listMembers(database)).filter((member) => member.isLive && member.kind === 'worker').length;
    const out = await countOut(database);
    const free = {
      range: Math.max(0, dispatchWindow(workers) - out.range),
      list: Math.max(0, followUpWindow(workers) - out.list),
    };
    const pace = await readPace(database);
    const places = Math.max(0, (paceInForce(pace).targetWorkers ?? Infinity) - out.range - out.list);
    let ranges = 0;
    const batches = await whileLeading(lead, async (client) => {
      const due = await dispatchDue(client, Math.min(free.range, places), { shape: 'range', resting });
      ranges = due.length;
      return [...due, ...(await dispatchDue(client, Math.min(free.list, places - ranges), { shape: 'list', resting }))];
    });
    if (batches.length > 0) await queue.send(batches.map(jobOf));
    return { range: out.range + ranges, list: out.list + batches.length - ranges };
  }

  /** What the queue lost goes back to pending, after it was missing twice in a row. */
  async function reconcile(lead: Leadership): Promise<void> {
    const isWiped = (await queue.findMarker()) !== options.marker;
    if (isWiped) {
      await queue.placeMarker(options.marker);
      options.onEvent('queue marker placed', {});
    }
    const missing = new Set<string>();
    for (const batch of await listUnclaimed(database, unclaimedSeconds)) {
      const name = `${batch.id}-${batch.generation}`;
      if (await queue.isOutstanding(jobOf(batch))) continue;
      if (!isWiped && !suspects.has(name)) {
        missing.add(name);
        continue;
      }
      const returned = await whileLeading(lead, async (client) =>
        (await returnIfStillDispatched(client, batch)) ? [batch] : [],
      );
      if (returned.length > 0) options.onEvent('lost job found', { batch: batch.id });
    }
    suspects = missing;
    await removeForgottenMembers(database);
  }

  async function whileLeading<T>(
    lead: Leadership,
    work: (client: Parameters<typeof stillLeads>[0]) => Promise<readonly T[]>,
  ): Promise<readonly T[]> {
    return database.transaction(async (client) => ((await stillLeads(client, lead)) ? work(client) : []));
  }

  const pacing =
    options.gauged &&
    startPacing({ database: options.gauged, leadership: () => leadership, onTrouble: options.onTrouble });
  let isStopped = false;
  let wake: () => void = () => undefined;
  const loop = (async () => {
    let pauseMs = tickMs;
    while (!isStopped) {
      const startedAtMs = performance.now();
      tickedAtMs = startedAtMs;
      try {
        pauseMs = (await tick()) ? firstTickMs : Math.min(tickMs, pauseMs * tickGrowth);
      } catch (error) {
        pauseMs = tickMs;
        options.onTrouble(error);
        // A queue that is away must not keep runs and leases from being looked after; the next tick tries it again.
        if (!isKeyturnError(error)) throw error;
      }
      await new Promise<void>((resolve) => {
        wake = resolve;
        setTimeout(resolve, Math.max(50, pauseMs - (performance.now() - startedAtMs)));
      });
    }
  })();

  return {
    get leadership() {
      return leadership;
    },
    // A leader that cannot reach the database has a lease that runs out like any other's.
    get isLeading() {
      return leadership !== undefined && performance.now() - heldAtMs < leadershipSeconds * 1_000;
    },
    get heldBack() {
      return heldBack;
    },
    get tickedAtMs() {
      return tickedAtMs;
    },
    async stop() {
      isStopped = true;
      wake();
      await Promise.all([loop, pacing?.stop()]);
      if (leadership === undefined) return;
      const held = leadership;
      leadership = undefined;
      await giveUpLeadership(database, held).catch(options.onTrouble);
    },
  };
}

function jobOf(batch: DispatchedBatch): { batchId: number; generation: number } {
  return { batchId: batch.id, generation: batch.generation };
}
