// One occurrence of a schedule, as far as it goes now: rotate, wait out the gradual days, reencrypt, retire. Each step is one
// call of a verb that may be repeated after any failure; what is missing is said in words and tried again later.
import { isKeyturnError, type KeyturnError } from '../errors.js';
import { phasesOf } from '../rotation/schedule.js';
import type { Database } from '../store/database.js';
import { sqlstateOf, type Queryable } from '../store/database.js';
import { getKeyring, listRootUris } from '../store/keys.js';
import { stillLeads, type Leadership } from '../store/leadership.js';
import { getRun } from '../store/runs.js';
import {
  getOccurrence,
  moveOccurrenceIfState,
  setRunOf,
  setWaitsFor,
  type Occurrence,
  type OccurrenceMove,
} from '../store/schedules.js';

export interface PolicyOrder {
  readonly keyring: string;
  readonly reason: string;
}

/** The operator's verbs that a policy consists of; each goes on where an earlier attempt stopped. */
export interface PolicyVerbs {
  /** Activates a key, unless one was activated since. Throws what the root key's provider throws, MEMBER_BEHIND. */
  rotate(order: PolicyOrder & { readonly since: Date }): Promise<void>;
  /** Orders a run to the active key, or joins the one that does it already; answers its id. Throws RUN_STATE_REFUSED, DRY_RUN_FAILED. */
  reencrypt(order: PolicyOrder): Promise<number>;
  /** Retires every key that was replaced. Throws KEY_IN_USE, MEMBER_BEHIND, OLDER_TRANSACTION_RUNNING. */
  retireReplaced(order: PolicyOrder): Promise<void>;
  /** Throws what `retireReplaced` throws, and FORBIDDEN. */
  retireCompromised(order: PolicyOrder & { readonly keyId: number }): Promise<void>;
}

export interface PolicySupervision {
  readonly database: Database;
  readonly leadership: Leadership;
  readonly verbs: PolicyVerbs;
}

const retrySeconds = 30;
const rootTroubles: readonly string[] = ['ROOT_KEY_UNAVAILABLE', 'ROOT_KEY_REFUSED', 'MASTER_KEY_MISMATCH'];
const insufficientPrivilege = '42501';

export async function advanceOccurrence(
  supervision: PolicySupervision,
  occurrence: Occurrence,
  onEvent: (event: string, details: Readonly<Record<string, number | string>>) => void,
): Promise<void> {
  const { database } = supervision;
  let current = occurrence;
  for (;;) {
    const move = await stepOrWait(supervision, current);
    if (move === undefined) return;
    const from = current;
    if (!(await leading(supervision, (client) => moveOccurrenceIfState(client, from, move)))) return;
    onEvent(`schedule ${move.to}`, { keyring: current.keyringName, occurrence: current.id });
    current = await getOccurrence(database, current.id);
  }
}

/** The next move; undefined where it has to wait. */
async function stepOrWait(supervision: PolicySupervision, occurrence: Occurrence): Promise<OccurrenceMove | undefined> {
  try {
    return await step(supervision, occurrence);
  } catch (error) {
    if (!isKeyturnError(error) || error.code === 'DATABASE_UNAVAILABLE') throw error;
    const words = await wordsFor(supervision.database, occurrence, error);
    await leading(supervision, (client) => setWaitsFor(client, occurrence, words, retrySeconds));
    return undefined;
  }
}

async function step(supervision: PolicySupervision, occurrence: Occurrence): Promise<OccurrenceMove | undefined> {
  const { verbs } = supervision;
  const order = orderOf(occurrence);
  switch (occurrence.state) {
    case 'due':
      return { to: 'rotating' };
    case 'rotating': {
      const already = await findActivatedSince(supervision.database, occurrence);
      if (already !== undefined || !occurrence.isReady) return already;
      await verbs.rotate({ ...order, since: occurrence.period });
      return findActivatedSince(supervision.database, occurrence);
    }
    case 'gradual':
      return occurrence.isGradualOver ? { to: 'reencrypting' } : undefined;
    case 'reencrypting':
      if (occurrence.runId !== undefined) return afterRun(supervision, occurrence, occurrence.runId);
      if (occurrence.isReady) await recordRun(supervision, occurrence, await verbs.reencrypt(order));
      return undefined;
    case 'retiring':
      if (!occurrence.isReady) return undefined;
      await verbs.retireReplaced(order);
      return { to: 'done' };
    default:
      return undefined;
  }
}

function orderOf(occurrence: Occurrence): PolicyOrder {
  return { keyring: occurrence.keyringName, reason: `schedule, due ${occurrence.period.toISOString()}` };
}

/** By whomever: an operator's rotation counts as well. */
async function findActivatedSince(database: Queryable, occurrence: Occurrence): Promise<OccurrenceMove | undefined> {
  const keyring = await getKeyring(database, occurrence.keyringName);
  const active = keyring.keys.find((key) => key.state === 'active');
  if (active?.activatedAt === undefined || active.activatedAt < occurrence.period) return undefined;
  const { gradualUntil } = phasesOf(occurrence, active.activatedAt);
  return { to: 'gradual', keyId: Number(active.id), gradualUntil };
}

async function recordRun(supervision: PolicySupervision, occurrence: Occurrence, runId: number): Promise<void> {
  await leading(supervision, async (client) => {
    await setRunOf(client, occurrence, runId);
    await setWaitsFor(client, occurrence, undefined, 0);
  });
}

async function afterRun(
  supervision: PolicySupervision,
  occurrence: Occurrence,
  runId: number,
): Promise<OccurrenceMove | undefined> {
  const run = await getRun(supervision.database, runId);
  const why = run.heldBackBy === undefined ? '' : `: ${run.heldBackBy}`;
  switch (run.state) {
    case 'succeeded':
      return { to: 'retiring' };
    case 'completed_with_failures':
    case 'failed':
    case 'cancelled':
      return {
        to: 'failed',
        cause: `run ${runId} ended ${run.state.replaceAll('_', ' ')}${why}; see: keyturn run show ${runId}; then keyturn reencrypt --keyring ${occurrence.keyringName} and keyturn key retire`,
      };
    case 'pausing':
    case 'paused': {
      const words = `run ${runId} is paused${why}; go on with: keyturn run resume ${runId}`;
      await leading(supervision, (client) => setWaitsFor(client, occurrence, words, 0));
      return undefined;
    }
    default: {
      const words = run.heldBackBy === undefined ? undefined : `run ${runId}${why}`;
      await leading(supervision, (client) => setWaitsFor(client, occurrence, words, 0));
      return undefined;
    }
  }
}

async function wordsFor(database: Queryable, occurrence: Occurrence, error: KeyturnError): Promise<string> {
  const byHand = `keyturn key rotate --keyring ${occurrence.keyringName}`;
  if (rootTroubles.includes(error.code)) {
    const uris = (await listRootUris(database)).get(occurrence.keyringName) ?? [];
    return `no supervisor can open the root ${uris.join(', ')} (${error.message}); start one with it, or run: ${byHand}`;
  }
  if (sqlstateOf(error) === insufficientPrivilege)
    return `the database login of the supervisor may not change keys (${error.message}); start one as the owner, or run: ${occurrence.state === 'rotating' ? byHand : `keyturn key retire`}`;
  return error.code === 'DRY_RUN_FAILED'
    ? `${error.message}: keyturn reencrypt --keyring ${occurrence.keyringName} --accept-failures`
    : error.message;
}

/** The key step alone, by a supervisor that does not lead; the leader sees the key and goes on. */
export async function lendRoot(verbs: PolicyVerbs, occurrence: Occurrence): Promise<void> {
  try {
    await verbs.rotate({ ...orderOf(occurrence), since: occurrence.period });
  } catch (error) {
    // What is missing stands on the occurrence in the leader's words.
    if (!isKeyturnError(error)) throw error;
  }
}

async function leading<T>(
  { database, leadership }: PolicySupervision,
  work: (client: Queryable) => Promise<T>,
): Promise<T | undefined> {
  return database.transaction(async (client) => ((await stillLeads(client, leadership)) ? work(client) : undefined));
}
