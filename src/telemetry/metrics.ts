// The metrics: one documented table (docs/metrics.md says the same, and a test compares them) and a registry of its own with
// those that a worker or a supervisor shows. Labels are names of ours: kinds, states, causes, keyrings and run numbers; never
// a tenant, a fingerprint or a primary key (I7). Base units, counters end in `_total`.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, Gauge, Histogram, Registry } from 'prom-client';

export type MetricRole = 'worker' | 'supervisor';

export interface MetricDefinition {
  readonly type: 'counter' | 'gauge' | 'histogram';
  /** Who shows it. What the supervisor shows of the cluster, only the leading one shows. */
  readonly by: 'worker' | 'supervisor' | 'leader' | 'both';
  readonly labels: readonly string[];
  readonly help: string;
  readonly buckets?: readonly number[];
}

const sliceBuckets = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 5];
const run = ['run', 'keyring', 'kind'] as const;

export const metricTable = {
  keyturn_process_info: {
    type: 'gauge',
    by: 'both',
    labels: ['role', 'version'],
    help: 'Always 1; says which program of which version answers.',
  },
  keyturn_resident_memory_bytes: { type: 'gauge', by: 'both', labels: [], help: 'Resident memory of the process.' },
  keyturn_event_loop_delay_seconds: {
    type: 'gauge',
    by: 'both',
    labels: ['rank'],
    help: 'How late the event loop was since the last scrape; rank p50, p99 or max.',
  },

  keyturn_rows_total: {
    type: 'counter',
    by: 'worker',
    labels: ['kind', 'outcome'],
    help: 'Rows that this worker settled, by kind of batch and outcome.',
  },
  keyturn_cells_total: {
    type: 'counter',
    by: 'worker',
    labels: ['kind', 'outcome'],
    help: 'Cells that this worker settled, by kind of batch and outcome.',
  },
  keyturn_bytes_total: {
    type: 'counter',
    by: 'worker',
    labels: ['kind'],
    help: 'Bytes of the stored values that this worker read and settled; counting by header reads none.',
  },
  keyturn_batches_total: {
    type: 'counter',
    by: 'worker',
    labels: ['kind', 'end'],
    help: 'Visits of this worker to batches, by how they ended: done, released, stopped or lost.',
  },
  keyturn_jobs_dropped_total: {
    type: 'counter',
    by: 'worker',
    labels: [],
    help: 'Jobs that came late or twice, or whose run no longer works, and were dropped.',
  },
  keyturn_slice_seconds: {
    type: 'histogram',
    by: 'worker',
    labels: ['kind', 'step'],
    help: 'Duration of the steps of a slice: read, crypto and write.',
    buckets: sliceBuckets,
  },
  keyturn_held_generation: {
    type: 'gauge',
    by: 'worker',
    labels: ['keyring'],
    help: 'Generation of the keyring that this worker holds.',
  },

  keyturn_leader: {
    type: 'gauge',
    by: 'supervisor',
    labels: [],
    help: '1 while this supervisor leads, 0 while another one does.',
  },
  keyturn_lease_expiries_total: {
    type: 'counter',
    by: 'supervisor',
    labels: [],
    help: 'Batches taken back from workers that fell silent.',
  },
  keyturn_lost_jobs_total: {
    type: 'counter',
    by: 'supervisor',
    labels: [],
    help: 'Batches sent again because the queue had lost their job.',
  },
  keyturn_collect_failures_total: {
    type: 'counter',
    by: 'supervisor',
    labels: ['source'],
    help: 'Readings of the cluster numbers that failed, by source: database or queue.',
  },
  keyturn_collect_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Duration of the last reading of the cluster numbers.',
  },

  keyturn_runs: {
    type: 'gauge',
    by: 'leader',
    labels: ['state'],
    help: 'Unfinished runs by state.',
  },
  keyturn_run_rows: {
    type: 'gauge',
    by: 'leader',
    labels: [...run, 'outcome'],
    help: 'Rows that an unfinished run has settled, by outcome.',
  },
  keyturn_run_rows_left: {
    type: 'gauge',
    by: 'leader',
    labels: run,
    help: 'Rows left in the current pass of an unfinished run, as estimated when the pass began.',
  },
  keyturn_run_rows_per_second: {
    type: 'gauge',
    by: 'leader',
    labels: run,
    help: 'Rows per second that all workers together settled over the last minute.',
  },
  keyturn_run_eta_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: run,
    help: 'Time left of the current pass at the rate of the last minute; absent while nothing moves.',
  },
  keyturn_run_idle_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: run,
    help: 'Time since a run last settled a slice or changed its state; absent while it is paused or rests.',
  },
  keyturn_run_held: {
    type: 'gauge',
    by: 'leader',
    labels: [...run, 'reason'],
    help: 'Always 1; says what holds an unfinished run back: hours, emergency, member, no_worker, pace, locks, trouble, paused, or the code of what Keyturn paused it for.',
  },
  keyturn_batches: {
    type: 'gauge',
    by: 'leader',
    labels: ['state'],
    help: 'Batches of the current passes of runs that work now, by state; those of paused and resting runs do not count.',
  },
  keyturn_queue_jobs: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Jobs in the queue, waiting or in hand.',
  },
  keyturn_queue_oldest_age_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Age of the oldest batch that was sent to the queue and that no worker has taken; 0 when there is none.',
  },
  keyturn_pace_factor: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Share of their full speed that pacing lets workers have: 1 for all of it, 0 while it holds them.',
  },
  keyturn_pace_target_workers: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Batches that pacing lets workers have at a time; absent while it sets no bound.',
  },
  keyturn_pace_reason: {
    type: 'gauge',
    by: 'leader',
    labels: ['reason'],
    help: 'Always 1; says in words what holds the workers back, with N for numbers; absent while nothing does.',
  },
  keyturn_pace_age_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Time since the pace was last measured; one that is over 15 s old lets workers go slowly.',
  },
  keyturn_members: { type: 'gauge', by: 'leader', labels: ['kind'], help: 'Live members by kind.' },
  keyturn_members_holding: {
    type: 'gauge',
    by: 'leader',
    labels: ['kind', 'keyring', 'generation'],
    help: 'Live members by the generation of a keyring that they hold.',
  },
  keyturn_members_behind: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Live members that hold an older generation of the keyring than the current one.',
  },
  keyturn_quarantine_cells: {
    type: 'gauge',
    by: 'leader',
    labels: ['cause'],
    help: 'Cells in quarantine that nobody has resolved, by cause.',
  },
  keyturn_lazy_upgrade_cells: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Cells that reads of applications have moved to the active data key.',
  },
  keyturn_unbacked_data_keys: {
    type: 'gauge',
    by: 'leader',
    labels: [],
    help: 'Data keys, those of audit seals included, that no known backup covers.',
  },
  keyturn_keyring_generation: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Current generation of the keyring.',
  },
  keyturn_active_key_age_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Time since the active data key of the keyring was activated.',
  },
  keyturn_oldest_key_age_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Time since the oldest data key that is not retired was activated.',
  },
  keyturn_cryptoperiod_left_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Time left of the cryptoperiod of the active data key; negative once it is over.',
  },
  keyturn_next_rotation_seconds: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Time until the schedule of the keyring rotates it next; absent where it has none.',
  },
  keyturn_key_encryptions: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Encryptions under the active data key, counted when processes reserve them: never too low.',
  },
  keyturn_key_limit_used_ratio: {
    type: 'gauge',
    by: 'leader',
    labels: ['keyring'],
    help: 'Share of the encryptions that the active data key may make; absent where its algorithm sets no limit.',
  },
} as const satisfies Record<string, MetricDefinition>;

export type MetricName = keyof typeof metricTable;

export type Labels = Readonly<Record<string, string | number>>;

export interface Sample {
  readonly labels: Labels;
  readonly value: number;
}

export interface Metrics {
  add(name: MetricName, labels: Labels, amount?: number): void;
  set(name: MetricName, value: number, labels?: Labels): void;
  observe(name: MetricName, labels: Labels, value: number): void;
  /** In place of all samples of a gauge: what is not named is no longer shown. */
  replace(name: MetricName, samples: readonly Sample[]): void;
  readonly contentType: string;
  /** The exposition; reads the process's own numbers. */
  text(): Promise<string>;
  stop(): void;
}

const nanosecondsPerSecond = 1e9;

/** The metrics of one process. */
export function openMetrics(role: MetricRole, version: string): Metrics {
  const registry = new Registry();
  const shown = new Map<string, Counter | Gauge | Histogram>();
  for (const [name, definition] of Object.entries<MetricDefinition>(metricTable)) {
    const isShown =
      definition.by === 'both' || definition.by === role || (definition.by === 'leader' && role === 'supervisor');
    if (isShown) shown.set(name, open(registry, name, definition));
  }
  const loopDelay = monitorEventLoopDelay({ resolution: 20 });
  loopDelay.enable();

  function find<T extends Counter | Gauge | Histogram>(name: string, type: abstract new (...args: never[]) => T): T {
    const metric = shown.get(name);
    if (metric instanceof type) return metric;
    throw new Error(`${name} is no ${type.name} of a ${role}`);
  }

  const metrics: Metrics = {
    add: (name, labels, amount = 1) => find(name, Counter).inc(labels, amount),
    set: (name, value, labels = {}) => find(name, Gauge).set(labels, value),
    observe: (name, labels, value) => find(name, Histogram).observe(labels, value),
    replace(name, samples) {
      const gauge = find(name, Gauge);
      gauge.reset();
      // A gauge without labels would show 0 after a reset, which says more than nothing.
      if (metricTable[name].labels.length === 0) gauge.remove();
      for (const { labels, value } of samples) gauge.set(labels, value);
    },
    contentType: registry.contentType,
    text() {
      metrics.set('keyturn_resident_memory_bytes', process.memoryUsage.rss());
      for (const [rank, nanoseconds] of [
        ['p50', loopDelay.percentile(50)],
        ['p99', loopDelay.percentile(99)],
        ['max', loopDelay.max],
      ] as const)
        metrics.set('keyturn_event_loop_delay_seconds', nanoseconds / nanosecondsPerSecond, { rank });
      loopDelay.reset();
      return registry.metrics();
    },
    stop: () => loopDelay.disable(),
  };
  metrics.set('keyturn_process_info', 1, { role, version });
  // Until the cluster has been read, nothing is known of it: not even a 0.
  for (const [name, definition] of Object.entries<MetricDefinition>(metricTable))
    if (definition.by === 'leader' && shown.has(name)) metrics.replace(name as MetricName, []);
  return metrics;
}

function open(
  registry: Registry,
  name: string,
  { type, help, labels, buckets }: MetricDefinition,
): Counter | Gauge | Histogram {
  const settings = { name, help, labelNames: [...labels], registers: [registry] };
  if (type === 'counter') return new Counter(settings);
  if (type === 'gauge') return new Gauge(settings);
  return new Histogram({ ...settings, ...(buckets === undefined ? {} : { buckets: [...buckets] }) });
}
