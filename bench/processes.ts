// The whole machinery as an operator runs it: a supervisor and workers as processes of their own. One worker against two,
// time per row and resident memory (peak, VmHWM) at 10^5 and 10^6 rows; alternated rounds, medians of rates, maxima of memory.
import { spawn, type ChildProcess } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { readFileSync } from 'node:fs';
import { orderRun, showRun } from '../src/control/runs.js';
import { isFinished } from '../src/rotation/run.js';
import { describeParts, fill, median, openBench, rotate, sumLedger, type Bench, type Parts } from './support.js';

const small = 100_000;
const large = Number(process.env['BENCH_LARGE_ROWS'] ?? 1_000_000);
const rounds = Number(process.env['BENCH_ROUNDS'] ?? 5);

interface Measured {
  readonly rowsPerSecond: number;
  readonly workerMegabytes: number;
  readonly supervisorMegabytes: number;
  readonly parts: Parts;
}

const bench = await openBench(['small', 'large']);
try {
  await fill(bench, 'small', 1, small);
  await fill(bench, 'large', 1, large);
  await bench.membership.close();
  const one: Measured[] = [];
  const two: Measured[] = [];
  const big: Measured[] = [];
  for (let round = 0; round < rounds; round++) {
    one.push(await measure(bench, 'small', 1));
    two.push(await measure(bench, 'small', 2));
    big.push(await measure(bench, 'large', 1));
  }
  const rateOf = (measured: readonly Measured[]): number => median(measured.map(({ rowsPerSecond }) => rowsPerSecond));
  const rate = (measured: readonly Measured[]): string => Math.round(rateOf(measured)).toLocaleString('en');
  const most = (measured: readonly Measured[], part: 'workerMegabytes' | 'supervisorMegabytes'): string =>
    Math.max(...measured.map((each) => each[part])).toFixed(0);
  const print = (line: string): boolean => process.stdout.write(`${line}\n`);
  const [few, many] = [small.toLocaleString('en'), large.toLocaleString('en')];
  print(
    `one worker ${rate(one)} rows/s, two workers ${rate(two)} rows/s, ${(rateOf(two) / rateOf(one)).toFixed(2)} times (figure: ≥ 1.7 on an idle core; database, supervisor and workers share this machine's ${availableParallelism()})`,
  );
  print(
    `time per row at ${many} rows against ${few}: ${(rateOf(one) / rateOf(big)).toFixed(2)} times (figure: within 0.9 to 1.1)`,
  );
  print(
    `worker memory: ${most(one, 'workerMegabytes')} MB at ${few} rows, ${most(big, 'workerMegabytes')} MB at ${many} (figure: ≤ 150 MB)`,
  );
  print(
    `supervisor memory: ${most(one, 'supervisorMegabytes')} MB at ${few} rows, ${most(big, 'supervisorMegabytes')} MB at ${many}`,
  );
  for (const [who, measured] of [
    ['one worker', one],
    ['two workers', two],
    [`one worker, ${many} rows`, big],
  ] as const)
    for (const { parts, rowsPerSecond } of measured)
      print(`  ${who}: ${Math.round(rowsPerSecond).toLocaleString('en')} rows/s; ${describeParts(parts)}`);
} finally {
  await bench.close();
}

async function measure(target: Bench, table: string, workers: number): Promise<Measured> {
  await target.pool.query(`VACUUM (FULL, ANALYZE) ${table}`);
  await target.pool.query('CHECKPOINT');
  await rotate(target);
  const supervisor = start(target, 'supervisor');
  const started = Array.from({ length: workers }, () => start(target, 'reencrypt'));
  try {
    await waitFor(
      async () =>
        (
          await target.pool.query(
            `SELECT 1 FROM keyturn.member WHERE kind = 'worker' AND heartbeat_at > clock_timestamp() - interval '45 s'`,
          )
        ).rowCount === workers,
    );
    const run = await orderRun(target.control.context, {
      kind: 'reencrypt',
      keyring: undefined,
      target: `public.${table}`,
      scope: undefined,
      deep: false,
      reason: 'bench',
    });
    await waitFor(async () => isFinished((await showRun(target.control.context, run.id)).state));
    const { state } = await showRun(target.control.context, run.id);
    if (state !== 'succeeded') throw new Error(`run ${run.id} ended as ${state}`);
    const { rows } = await target.pool.query<{ seconds: number; ids: string[] }>(
      `SELECT extract(epoch FROM max(l.committed_at) - min(b.started_at))::float8 AS seconds, array_agg(DISTINCT b.id::text) AS ids
       FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id WHERE b.run_id = $1 AND b.kind = 'reencrypt'`,
      [run.id],
    );
    const parts = await sumLedger(target, rows[0]?.ids ?? []);
    return {
      parts,
      rowsPerSecond: parts.rows / (rows[0]?.seconds ?? Number.NaN),
      workerMegabytes: Math.max(...started.map(peakMegabytes)),
      supervisorMegabytes: peakMegabytes(supervisor),
    };
  } finally {
    for (const child of [...started, supervisor]) child.kill('SIGTERM');
    await Promise.all(
      [...started, supervisor].map(
        (child) =>
          new Promise((resolve) => (child.exitCode === null ? child.once('exit', resolve) : resolve(undefined))),
      ),
    );
  }
}

function start(target: Bench, entry: string): ChildProcess {
  return spawn(process.execPath, [new URL(`../workers/${entry}.js`, import.meta.url).pathname], {
    env: { ...process.env, ...target.environment() },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}

function peakMegabytes(child: ChildProcess): number {
  const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
  return Number(/VmHWM:\s+(\d+) kB/.exec(status)?.[1]) / 1_024;
}

async function waitFor(condition: () => Promise<boolean>): Promise<void> {
  while (!(await condition())) await new Promise((resolve) => setTimeout(resolve, 100));
}
