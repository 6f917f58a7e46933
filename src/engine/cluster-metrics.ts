// The leading supervisor's reading of the cluster into metrics, when it is scraped. A scrape must never load the database:
// however many scrapers ask, it is read at most once in five seconds, and a reading that failed is not repeated sooner.
import { algorithmNames, encryptionLimits } from '../crypto/algorithms.js';
import { doesRest, type HeldReason } from '../rotation/held-back.js';
import { isWorking } from '../rotation/run.js';
import { paceInForce, paceReason } from '../rotation/standing.js';
import type { BatchQueue } from '../queue/jobs.js';
import type { Database } from '../store/database.js';
import {
  readHoldingNumbers,
  readKeyringNumbers,
  readLazyNumbers,
  readMemberNumbers,
  readOldestDispatchedSeconds,
  readQuarantineNumbers,
  readRunNumbers,
  type RunNumbers,
} from '../store/numbers.js';
import { countUnbackedKeys } from '../store/backups.js';
import { readPace } from '../store/pace.js';
import {
  metricTable,
  type MetricDefinition,
  type MetricName,
  type Metrics,
  type Sample,
} from '../telemetry/metrics.js';

const keptMs = 5_000;

export interface ClusterMetricsOptions {
  readonly database: Database;
  readonly queue: Pick<BatchQueue, 'depth'>;
  readonly metrics: Metrics;
  readonly isLeading: () => boolean;
  /** As the supervisor's last tick left it, by run. */
  readonly heldBack: () => ReadonlyMap<number, HeldReason>;
  readonly onTrouble: (error: unknown) => void;
}

export interface ClusterMetrics {
  /** Brings the metrics up to date where they are older than five seconds. Never throws. */
  refresh(): Promise<void>;
}

export function openClusterMetrics(options: ClusterMetricsOptions): ClusterMetrics {
  const { metrics } = options;
  let readAtMs = -Infinity;
  let reading: Promise<void> | undefined;

  async function read(): Promise<void> {
    const startedAtMs = performance.now();
    try {
      for (const [name, samples] of Object.entries(await readCluster(options.database, options.heldBack)))
        metrics.replace(name as MetricName, samples);
    } catch (error) {
      forget(metrics);
      metrics.add('keyturn_collect_failures_total', { source: 'database' });
      options.onTrouble(error);
    }
    try {
      metrics.set('keyturn_queue_jobs', await options.queue.depth());
    } catch (error) {
      metrics.replace('keyturn_queue_jobs', []);
      metrics.add('keyturn_collect_failures_total', { source: 'queue' });
      options.onTrouble(error);
    }
    metrics.set('keyturn_collect_seconds', (performance.now() - startedAtMs) / 1_000);
  }

  return {
    async refresh() {
      metrics.set('keyturn_leader', options.isLeading() ? 1 : 0);
      if (!options.isLeading()) {
        readAtMs = -Infinity;
        forget(metrics);
        return;
      }
      if (reading === undefined && performance.now() - readAtMs >= keptMs) {
        reading = read().finally(() => {
          readAtMs = performance.now();
          reading = undefined;
        });
      }
      await reading;
    },
  };
}

/** What is not known any more is not shown any more. */
function forget(metrics: Metrics): void {
  for (const [name, { by }] of Object.entries<MetricDefinition>(metricTable))
    if (by === 'leader') metrics.replace(name as MetricName, []);
}

type Samples = Partial<Record<MetricName, readonly Sample[]>>;

/** One statement after the other: a scrape takes one connection, not all of them. */
async function readCluster(database: Database, heldBack: () => ReadonlyMap<number, HeldReason>): Promise<Samples> {
  const runs = await readRunNumbers(database);
  const oldestSeconds = await readOldestDispatchedSeconds(database);
  const quarantine = await readQuarantineNumbers(database);
  const lazy = await readLazyNumbers(database);
  const keyrings = await readKeyringNumbers(database);
  const members = await readMemberNumbers(database);
  const holding = await readHoldingNumbers(database);
  const pace = await readPace(database);
  return {
    ...runSamples(runs, heldBack()),
    ...paceSamples(pace),
    keyturn_queue_oldest_age_seconds: [{ labels: {}, value: oldestSeconds }],
    keyturn_quarantine_cells: quarantine.map(({ cause, cells }) => ({ labels: { cause }, value: cells })),
    keyturn_lazy_upgrade_cells: lazy.map(({ keyring, cells }) => ({ labels: { keyring }, value: cells })),
    keyturn_unbacked_data_keys: [{ labels: {}, value: await countUnbackedKeys(database) }],
    keyturn_members: ['application', 'worker'].map((kind) => ({
      labels: { kind },
      value: members.find((member) => member.kind === kind)?.live ?? 0,
    })),
    keyturn_members_holding: holding.map(({ kind, keyring, generation, members: value }) => ({
      labels: { kind, keyring, generation },
      value,
    })),
    keyturn_members_behind: keyrings.map(({ keyring }) => ({
      labels: { keyring },
      value: holding
        .filter((held) => held.keyring === keyring && held.isBehind)
        .reduce((sum, held) => sum + held.members, 0),
    })),
    keyturn_keyring_generation: keyrings.map(({ keyring, generation }) => ({ labels: { keyring }, value: generation })),
    keyturn_active_key_age_seconds: keyrings.flatMap(({ keyring, activeKeyAgeSeconds: value }) =>
      value === undefined ? [] : [{ labels: { keyring }, value }],
    ),
    keyturn_oldest_key_age_seconds: keyrings.flatMap(({ keyring, oldestKeyAgeSeconds: value }) =>
      value === undefined ? [] : [{ labels: { keyring }, value }],
    ),
    keyturn_cryptoperiod_left_seconds: keyrings.flatMap(({ keyring, activeKeyAgeSeconds: age, cryptoperiodSeconds }) =>
      age === undefined ? [] : [{ labels: { keyring }, value: cryptoperiodSeconds - age }],
    ),
    keyturn_next_rotation_seconds: keyrings.flatMap(({ keyring, nextRotationSeconds: value }) =>
      value === undefined ? [] : [{ labels: { keyring }, value }],
    ),
    keyturn_key_encryptions: keyrings.map(({ keyring, encryptions }) => ({ labels: { keyring }, value: encryptions })),
    keyturn_key_limit_used_ratio: keyrings.flatMap(({ keyring, encryptions, algorithm }) => {
      const name = algorithmNames.find((known) => known === algorithm);
      const limit = name === undefined ? undefined : encryptionLimits[name];
      return limit === undefined ? [] : [{ labels: { keyring }, value: encryptions / limit.refuse }];
    }),
  };
}

type Pace = Awaited<ReturnType<typeof readPace>>;

function paceSamples(pace: Pace): Samples {
  const one = (value: number): readonly Sample[] => [{ labels: {}, value }];
  const { targetWorkers, nice } = paceInForce(pace);
  const reason = paceReason(pace);
  return {
    keyturn_pace_factor: one(targetWorkers === 0 ? 0 : 1 / (1 + nice)),
    keyturn_pace_target_workers: targetWorkers === undefined ? [] : one(targetWorkers),
    keyturn_pace_reason: reason === undefined ? [] : [{ labels: { reason: withoutNumbers(reason) }, value: 1 }],
    keyturn_pace_age_seconds: pace === undefined ? [] : one(pace.ageSeconds),
  };
}

/** A label that changed with every measurement would be a new series each time. */
function withoutNumbers(words: string): string {
  return words.replaceAll(/\d+(?:[.,]\d+)*/g, 'N').slice(0, 200);
}

const unfinishedStates = ['pending', 'running', 'verifying', 'pausing', 'paused', 'cancelling'] as const;
const batchStates = ['pending', 'dispatched', 'running', 'done'] as const;

function runSamples(runs: readonly RunNumbers[], heldBack: ReadonlyMap<number, HeldReason>): Samples {
  const ofRun = (run: RunNumbers): Sample['labels'] => ({ run: run.id, keyring: run.keyring, kind: run.kind });
  const working = runs.filter((run) => isWorking(run.state));
  const rests = (run: RunNumbers): boolean => doesRest(heldBack.get(run.id));
  const atWork = working.filter((run) => !rests(run));
  return {
    keyturn_runs: unfinishedStates.map((state) => ({
      labels: { state },
      value: runs.filter((run) => run.state === state).length,
    })),
    keyturn_run_rows: runs.flatMap((run) =>
      Object.entries(run.rows).map(([outcome, value]) => ({ labels: { ...ofRun(run), outcome }, value })),
    ),
    keyturn_run_rows_left: runs.map((run) => ({ labels: ofRun(run), value: rowsLeft(run) })),
    keyturn_run_rows_per_second: working.map((run) => ({ labels: ofRun(run), value: run.rowsPerSecond })),
    keyturn_run_eta_seconds: working
      .filter((run) => run.rowsPerSecond > 0)
      .map((run) => ({ labels: ofRun(run), value: rowsLeft(run) / run.rowsPerSecond })),
    keyturn_run_idle_seconds: runs
      .filter((run) => run.state !== 'paused' && !rests(run))
      .map((run) => ({ labels: ofRun(run), value: run.idleSeconds })),
    keyturn_run_held: runs.flatMap((run) => {
      const reason = heldBack.get(run.id);
      return reason === undefined ? [] : [{ labels: { ...ofRun(run), reason }, value: 1 }];
    }),
    keyturn_batches: batchStates.map((state) => ({
      labels: { state },
      value: atWork.reduce((sum, run) => sum + run.batches[state], 0),
    })),
  };
}

/** The estimate may have been low; what is planned and not done is left all the same, so 0 only means that little is. */
function rowsLeft(run: RunNumbers): number {
  return Math.max(0, run.passEstimatedRows - run.passRows);
}
