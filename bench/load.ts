// What a run costs the application: p50 and p99 of a mixed load on the very table that is being reencrypted, with no run,
// with a run at default pace and with the same run unpaced, in alternated rounds of one run that is paused in between.
import { spawn, type ChildProcess } from 'node:child_process';
import { createInterface } from 'node:readline';
import { orderRun, showRun } from '../src/control/runs.js';
import { pauseRun, resumeRun } from '../src/control/steer-runs.js';
import { fill, median, openBench, rotate, type Bench } from './support.js';

const rows = Number(process.env['BENCH_ROWS'] ?? 500_000);
const perSecond = Number(process.env['BENCH_OPS'] ?? 400);
const rounds = Number(process.env['BENCH_ROUNDS'] ?? 4);
const windowMs = 2_000;
/** After a change of phase, before its window begins: caches, the pace and the dispatched batches settle. */
const settleMs = 500;

const phases = ['no run', 'default pace', 'unpaced'] as const;
type Phase = (typeof phases)[number];

interface Window {
  /** Milliseconds. */
  readonly latencies: readonly number[];
  readonly rowsPerSecond: number;
}

const startedAt = performance.now();
const bench = await openBench(['account']);
const children: ChildProcess[] = [];
try {
  await bench.pool.query('ALTER TABLE account RESET (autovacuum_enabled), ADD visits integer NOT NULL DEFAULT 0');
  await fill(bench, 'account', 1, rows);
  await bench.pool.query('VACUUM ANALYZE account');
  await rotate(bench);
  await bench.membership.close();
  const measured = await measure(bench);
  report(measured);
} finally {
  for (const child of children) await stop(child);
  await bench.close();
}

async function measure(target: Bench): Promise<Record<Phase, Window[]>> {
  const { context } = target.control;
  const application = start(target, 'load-application', [String(perSecond), String(rows)]);
  const answers = createInterface({ input: application.stdout! })[Symbol.asyncIterator]();
  const nextWindow = async (): Promise<number[]> => {
    application.stdin?.write('\n');
    return JSON.parse(String((await answers.next()).value)) as number[];
  };
  start(target, '../workers/reencrypt', []);
  const run = await orderRun(context, {
    kind: 'reencrypt',
    keyring: undefined,
    target: 'public.account',
    scope: undefined,
    deep: false,
    reason: 'bench',
  });
  const measured: Record<Phase, Window[]> = { 'no run': [], 'default pace': [], unpaced: [] };
  for (let round = 0; round < rounds; round++) {
    for (const phase of phases) {
      const supervisor = start(target, 'load-supervisor', [phase]);
      const isRunning = phase !== 'no run';
      if (isRunning) {
        const { state } = await showRun(context, run.id);
        if (state === 'paused') await resumeRun(context, run.id, 'bench');
        const from = await moved(target);
        await waitFor(async () => (await moved(target)) > from);
      }
      await delay(settleMs);
      await nextWindow();
      const before = await moved(target);
      await delay(windowMs);
      const latencies = await nextWindow();
      const rowsMoved = (await moved(target)) - before;
      if (isRunning) {
        await pauseRun(context, run.id, 'bench');
        await waitFor(async () => (await showRun(context, run.id)).state === 'paused');
      }
      await stop(supervisor);
      measured[phase].push({ latencies, rowsPerSecond: rowsMoved / (windowMs / 1_000) });
    }
  }
  return measured;
}

async function moved(target: Bench): Promise<number> {
  const { rows: sums } = await target.pool.query<{ sum: string }>(
    'SELECT coalesce(sum(rows_examined), 0) AS sum FROM keyturn.ledger',
  );
  return Number(sums[0]?.sum);
}

function report(measured: Record<Phase, Window[]>): void {
  const print = (line: string): boolean => process.stdout.write(`${line}\n`);
  const shareOf = (phase: Phase, share: number): number =>
    quantile(
      measured[phase].flatMap(({ latencies }) => latencies),
      share,
    );
  for (const phase of phases) {
    const ratio = (share: number): string => (shareOf(phase, share) / shareOf('no run', share)).toFixed(2);
    const rate = median(measured[phase].map(({ rowsPerSecond }) => rowsPerSecond));
    const cost =
      phase === 'no run'
        ? ''
        : `; ${ratio(0.5)} and ${ratio(0.99)} times those without a run; ${Math.round(rate).toLocaleString('en')} rows/s`;
    print(
      `${phase.padEnd(12)} p50 ${shareOf(phase, 0.5).toFixed(2)} ms, p99 ${shareOf(phase, 0.99).toFixed(2)} ms${cost}${phase === 'default pace' ? ' (figure: p99 ≤ 1.25 times)' : ''}`,
    );
    print(
      `  p99 of each round: ${measured[phase].map(({ latencies }) => quantile(latencies, 0.99).toFixed(2)).join(', ')} ms`,
    );
  }
  print(
    `${perSecond} operations a second, ${rows.toLocaleString('en')} rows, ${rounds} rounds of ${windowMs / 1_000} s each; took ${((performance.now() - startedAt) / 1_000).toFixed(0)} s`,
  );
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
