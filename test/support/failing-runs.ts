// The verbs that order and steer runs, each with statement 1, 2, … failing: a run and its record are both there or both not,
// and whatever is repeated orders no second run.
import { beginEmergency } from '../../src/control/compromise.js';
import { createPolicyVerbs } from '../../src/control/policy.js';
import { beginRetry } from '../../src/control/quarantine.js';
import { beginReencrypt, rotateAndReencrypt, type RunnerSupply } from '../../src/control/rotate-and-reencrypt.js';
import { cancelRun, limitRun, pauseAllRuns, pauseRun, resumeRun, retryRun } from '../../src/control/steer-runs.js';
import { activeId, keysSince, turned, withStandby, type FailingVerb } from './failing-verbs.js';
import type { Shop } from './shop.js';

const noSupply: RunnerSupply = { require: async () => undefined, start: async () => undefined };
const wholeRun = {
  kind: 'reencrypt',
  keyring: undefined,
  target: undefined,
  scope: undefined,
  deep: false,
  reason: 'test',
} as const;

async function endRuns(shop: Shop, state = 'cancelled'): Promise<void> {
  await shop.query(`UPDATE keyturn.run SET state = $1, finished_at = clock_timestamp() WHERE finished_at IS NULL`, [
    state,
  ]);
}

/** The only one that is unfinished. */
async function orderedRun(shop: Shop): Promise<string> {
  await endRuns(shop);
  return String(await shop.order());
}

async function noRun(shop: Shop): Promise<string> {
  await endRuns(shop);
  return lastRun(shop);
}

async function lastRun(shop: Shop): Promise<string> {
  return String((await shop.query('SELECT coalesce(max(id), 0)::int AS id FROM keyturn.run'))[0]?.['id']);
}

/** State, limits, batches and records of the runs that the condition names. */
async function runsWhere(shop: Shop, condition: string, parameter: string): Promise<string> {
  const rows = await shop.query(
    `SELECT concat_ws(' ', state, CASE WHEN emergency THEN 'emergency' END, max_rows_per_second || ' rows/s',
       (SELECT nullif(count(*), 0) || ' batch' FROM keyturn.batch b WHERE b.run_id = r.id)) || ': '
       || coalesce((SELECT string_agg(action, ' ' ORDER BY id) FROM keyturn.audit WHERE object = 'run ' || r.id), '') AS words
     FROM keyturn.run r WHERE ${condition} ORDER BY r.id`,
    [parameter],
  );
  return rows.map(({ words }) => String(words)).join(', ') || 'no run';
}

const theRun: FailingVerb['look'] = (shop, id) => runsWhere(shop, 'r.id = $1', id);
const runsAfter: FailingVerb['look'] = (shop, id) => runsWhere(shop, 'r.id > $1', id);
const unfinishedRuns: FailingVerb['look'] = (shop, id) => runsWhere(shop, 'r.finished_at IS NULL AND r.id > $1', id);

/** `key:run`, the active key and the last run of before. */
async function keysAndRuns(shop: Shop, about: string): Promise<string> {
  const [key = '', run = ''] = about.split(':');
  return `${await keysSince(shop, key)}; ${await runsAfter(shop, run)}`;
}

async function agedStandby(shop: Shop): Promise<string> {
  const run = await noRun(shop);
  await withStandby(shop);
  await shop.query(
    `UPDATE keyturn.data_key SET activated_at = activated_at - interval '90 days' WHERE state = 'active' AND purpose = 1`,
  );
  return `${await activeId(shop)}:${run}`;
}

const ordered = 'pending: run.create';

export const failingRuns: readonly FailingVerb[] = [
  {
    verb: 'reencrypt',
    prepare: noRun,
    run: (context) => beginReencrypt(context, wholeRun, noSupply),
    look: runsAfter,
    stages: ['no run', ordered],
    isRepeatable: true,
  },
  {
    verb: 'the rotation of a schedule',
    prepare: withStandby,
    run: (context) => createPolicyVerbs(context).rotate({ keyring: 'customers', reason: 'test', since: new Date() }),
    look: keysSince,
    stages: turned,
  },
  {
    verb: 'the emergency run of key compromise',
    async prepare(shop) {
      const id = await orderedRun(shop);
      await limitRun(shop.control.context, Number(id), { rowsPerSecond: 50, reason: 'test' });
      return id;
    },
    run: (context) =>
      beginEmergency(context, 'customers', [{ state: 'decrypt_only' }], { reason: 'test', supply: noSupply }),
    look: theRun,
    stages: ['pending 50 rows/s: run.create run.limit', 'pending emergency: run.create run.limit run.limit'],
  },
  {
    verb: 'run pause',
    prepare: orderedRun,
    run: (context, id) => pauseRun(context, Number(id), 'test'),
    look: theRun,
    stages: [ordered, 'pausing: run.create run.pausing'],
    isRepeatable: true,
  },
  {
    verb: 'run pause --all',
    async prepare(shop) {
      const before = await noRun(shop);
      await shop.order();
      await shop.order({ kind: 'verify' });
      return before;
    },
    run: (context) => pauseAllRuns(context, 'test'),
    look: unfinishedRuns,
    stages: [`${ordered}, ${ordered}`, 'pausing: run.create run.pausing, pausing: run.create run.pausing'],
    isRepeatable: true,
  },
  {
    verb: 'run resume',
    async prepare(shop) {
      const id = await orderedRun(shop);
      await pauseRun(shop.control.context, Number(id), 'test');
      return id;
    },
    run: (context, id) => resumeRun(context, Number(id), 'test'),
    look: theRun,
    stages: ['pausing: run.create run.pausing', 'pending: run.create run.pausing run.pending'],
    isRepeatable: true,
  },
  {
    verb: 'run cancel',
    prepare: orderedRun,
    run: (context, id) => cancelRun(context, Number(id), 'test'),
    look: theRun,
    stages: [ordered, 'cancelling: run.create run.cancelling'],
    isRepeatable: true,
  },
  {
    verb: 'run limit',
    prepare: orderedRun,
    run: (context, id) => limitRun(context, Number(id), { rowsPerSecond: 50, reason: 'test' }),
    look: theRun,
    stages: [ordered, 'pending 50 rows/s: run.create run.limit'],
  },
  {
    verb: 'run retry',
    async prepare(shop) {
      const id = await orderedRun(shop);
      await endRuns(shop, 'completed_with_failures');
      return id;
    },
    run: (context, id) => retryRun(context, Number(id), { reason: 'test' }),
    look: runsAfter,
    stages: ['no run', ordered],
  },
  {
    verb: 'quarantine retry',
    async prepare(shop) {
      const id = await orderedRun(shop);
      await shop.query(
        `WITH visited AS (INSERT INTO keyturn.batch (run_id, pass, target_id, kind)
           SELECT $1, 1, id, 'reencrypt' FROM keyturn.target LIMIT 1 RETURNING id, target_id)
         INSERT INTO keyturn.quarantine (run_id, batch_id, target_id, column_id, row_key, key_id, cause)
         SELECT $1, v.id, c.target_id, c.id, '{1}', 1, 'MALFORMED'
         FROM visited v JOIN keyturn.target_column c ON c.target_id = v.target_id AND c.name = 'email'`,
        [id],
      );
      await endRuns(shop, 'completed_with_failures');
      return id;
    },
    run: (context, id) =>
      beginRetry(context, { run: Number(id), target: undefined, cause: undefined, reason: 'test' }, noSupply),
    look: runsAfter,
    stages: ['no run', 'pending 1 batch: run.create'],
  },
];

/** Makes a key each time. */
export const failingRotation: FailingVerb = {
  verb: 'key rotate --reencrypt --if-older-than',
  prepare: agedStandby,
  run: (context) =>
    rotateAndReencrypt(context, {
      keyring: 'customers',
      ifOlderThanMs: 3_600_000,
      reason: 'test',
      acceptFailures: false,
      supply: noSupply,
    }),
  look: keysAndRuns,
  stages: [...turned.map((keys) => `${keys}; no run`), `${turned.at(-1) ?? ''}; ${ordered}`],
  isRepeatable: true,
};
