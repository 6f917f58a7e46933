// What a run costs the application: p50 and p99 of a mixed load on the very table that is being reencrypted, with a run at
// default pace and without one, in alternated rounds under one supervisor, so that pacing is measured as it works for hours:
// after it knows what is usual. Then the same unpaced, against rounds of its own without a run. On a machine that stalls by
// itself the p99 of a window is that of its stalls; the middle second leaves them out.
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { activate, stageKey } from '../src/control/keys.js';
import { orderRun, showRun } from '../src/control/runs.js';
import { cancelRun, pauseRun, resumeRun } from '../src/control/steer-runs.js';
import { isFinished } from '../src/rotation/run.js';
import { readPace } from '../src/store/pace.js';
import { fill, median, openBench, rotate, type Bench } from './support.js';

const rows = Number(process.env['BENCH_ROWS'] ?? 800_000);
const perSecond = Number(process.env['BENCH_OPS'] ?? 400);
const rounds = Number(process.env['BENCH_ROUNDS'] ?? 5);
const windowMs = Number(process.env['BENCH_WINDOW_MS'] ?? 15_000);
/** After a change of phase, before its window begins: caches, the pace and the dispatched batches settle. */
const settleMs = 2_000;
/** In its first ten seconds a move does not give way (docs/pacing.md): what is measured is what comes after. */
const graceMs = 12_000;

const paces = ['default pace', 'unpaced'] as const;
type Pace = (typeof paces)[number];

interface Window {
  /** Milliseconds. */
  readonly latencies: readonly number[];
  readonly rowsPerSecond: number;
}

/** One round: a window without a run, and one with it. */
interface Round {
  readonly without: Window;
  readonly with: Window;
}

const startedAt = performance.now();
const bench = await openBench(['account']);
const children: ChildProcess[] = [];
try {
  await bench.pool.query('ALTER TABLE account RESET (autovacuum_enabled), ADD visits integer NOT NULL DEFAULT 0');
  await fill(bench, 'account', 1, rows);
  await bench.pool.query('VACUUM ANALYZE account');
  // What filling has left to be written would be taken for usual.
  await bench.pool.query('CHECKPOINT');
  await rotate(bench);
  await bench.membership.close();
  const application = startApplication(bench);
  start(bench, '../workers/reencrypt', []);
  for (const pace of paces) report(pace, await measure(bench, application, pace));
  process.stdout.write(
    `${perSecond} operations a second, ${rows.toLocaleString('en')} rows, ${rounds} rounds of ${windowMs / 1_000} s each; took ${((performance.now() - startedAt) / 1_000).toFixed(0)} s\n`,
  );
} finally {
  for (const child of children) await stop(child);
  await bench.close();
}

interface Application {
  /** Ends a window and answers its latencies. */
  nextWindow(): Promise<number[]>;
}

function startApplication(target: Bench): Application {
  const child = start(target, 'load-application', [String(perSecond), String(rows)]);
  const answers = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  return {
    async nextWindow() {
      child.stdin?.write('\n');
      return JSON.parse(String((await answers.next()).value)) as number[];
    },
  };
}

/** Under one supervisor from beginning to end. */
async function measure(target: Bench, application: Application, pace: Pace): Promise<Round[]> {
  const { context } = target.control;
  const supervisor = start(target, 'load-supervisor', [pace]);
  if (pace === 'default pace') await waitFor(() => knowsWhatIsUsual(target));
  const measureWindow = async (): Promise<Window> => {
    await delay(settleMs);
    await application.nextWindow();
    const before = await moved(target);
    await delay(windowMs);
    const latencies = await application.nextWindow();
    return { latencies, rowsPerSecond: ((await moved(target)) - before) / (windowMs / 1_000) };
  };
  const measured: Round[] = [];
  let run: number | undefined;
  for (let round = 0; round < rounds; round++) {
    const without = await measureWindow();
    run = await goOn(target, run);
    const from = await moved(target);
    await waitFor(async () => (await moved(target)) > from);
    if (round === 0) await delay(graceMs);
    measured.push({ without, with: await measureWindow() });
    const { state } = await showRun(context, run);
    if (state !== 'running')
      process.stderr.write(`bench: the run was ${state} before its window ended; give it more rows with BENCH_ROWS\n`);
    if (isFinished(state)) continue;
    await pauseRun(context, run, 'bench');
    await waitFor(
      async () => !['pausing', 'running', 'verifying'].includes((await showRun(context, Number(run))).state),
    );
  }
  if (run !== undefined && !isFinished((await showRun(context, run)).state)) await cancelRun(context, run, 'bench');
  await stop(supervisor);
  return measured;
}

/** Half a minute of samples without a run of ours, one in three seconds. */
async function knowsWhatIsUsual(target: Bench): Promise<boolean> {
  const pace = await readPace(target.database);
  return Object.keys(pace?.signals['usualMs'] ?? {}).length > 0;
}

/** Resumes the run where it has rows for two windows more; otherwise there is a new key, and a run toward it. */
async function goOn(target: Bench, run: number | undefined): Promise<number> {
  const { context } = target.control;
  const report = run === undefined ? undefined : await showRun(context, run);
  if (report?.state === 'paused' && report.pass_rows < report.pass_estimated_rows / 3) {
    await resumeRun(context, report.run_id, 'bench');
    return report.run_id;
  }
  if (report !== undefined) {
    if (!isFinished(report.state)) await cancelRun(context, report.run_id, 'bench');
    await waitFor(async () => isFinished((await showRun(context, report.run_id)).state));
    const { key } = await stageKey(context, undefined, 'bench');
    await activate(context, undefined, String(key.id), 'bench');
  }
  const ordered = await orderRun(context, {
    kind: 'reencrypt',
    keyring: undefined,
    target: 'public.account',
    scope: undefined,
    deep: false,
    reason: 'bench',
  });
  return ordered.id;
}

async function moved(target: Bench): Promise<number> {
  const { rows: sums } = await target.pool.query<{ sum: string }>(
    'SELECT coalesce(sum(rows_examined), 0) AS sum FROM keyturn.ledger',
  );
  return Number(sums[0]?.sum);
}

function report(pace: Pace, measured: readonly Round[]): void {
  const print = (line: string): boolean => process.stdout.write(`${line}\n`);
  const quantileOf = (phase: keyof Round, share: number): number =>
    quantile(
      measured.flatMap((round) => round[phase].latencies),
      share,
    );
  const ratioOf = (share: number): string => (quantileOf('with', share) / quantileOf('without', share)).toFixed(2);
  const p99 = ({ latencies }: Window): number => quantile(latencies, 0.99);
  const ratios = measured.map((round) => p99(round.with) / p99(round.without));
  const shown = (phase: keyof Round): string =>
    `p50 ${quantileOf(phase, 0.5).toFixed(2)} ms, p99 ${quantileOf(phase, 0.99).toFixed(2)} ms`;
  const rate = Math.round(median(measured.map((round) => round.with.rowsPerSecond)));
  print(`${'no run'.padEnd(12)} ${shown('without')}`);
  print(
    `${pace.padEnd(12)} ${shown('with')}; ${ratioOf(0.5)} and ${ratioOf(0.99)} times those without a run; ${rate.toLocaleString('en')} rows/s`,
  );
  // Latencies are in the order in which they were known: as many as a second has are a second.
  const ofSeconds = (phase: keyof Round): number =>
    median(
      measured.flatMap((round) => chunks(round[phase].latencies, perSecond).map((second) => quantile(second, 0.99))),
    );
  const seconds = [ofSeconds('without'), ofSeconds('with')] as const;
  print(
    `  p99 of the middle one of all seconds: ${seconds.map((ms) => ms.toFixed(2)).join(' and ')} ms, ${(seconds[1] / seconds[0]).toFixed(2)} times`,
  );
  print(
    `  p99 ratio of each round: ${ratios.map((ratio) => ratio.toFixed(2)).join(', ')}; median ${median(ratios).toFixed(2)}${pace === 'default pace' ? ' (figure: ≤ 1.25)' : ''}`,
  );
}

/** What does not fill the last one is left. */
function chunks(values: readonly number[], size: number): readonly (readonly number[])[] {
  return Array.from({ length: Math.floor(values.length / size) }, (_, at) => values.slice(at * size, (at + 1) * size));
}

function quantile(values: readonly number[], share: number): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length * share)] ?? Number.NaN;
}

function start(target: Bench, entry: string, args: readonly string[]): ChildProcess {
  const child = spawn(process.execPath, [new URL(`${entry}.js`, import.meta.url).pathname, ...args], {
    env: { ...process.env, ...target.environment() },
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  children.push(child);
  return child;
}

async function stop(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const gone = new Promise((resolve) => child.once('exit', resolve));
  // The application ends with its input, the others on the signal.
  child.stdin?.end();
  if (!child.spawnargs.some((argument) => argument.endsWith('load-application.js'))) child.kill('SIGTERM');
  await gone;
}

function delay(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

async function waitFor(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await delay(50);
}
