// The whole machinery as an operator runs it: a supervisor and workers as processes of their own. One worker against two,
// time per row and resident memory (peak, VmHWM) at 10^5 and 10^6 rows.
import { spawn, type ChildProcess } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { orderRun, showRun } from '../src/control/runs.js';
import { isFinished } from '../src/rotation/run.js';
import { fill, openBench, rotate, type Bench } from './support.js';

const small = 100_000;
const large = Number(process.env['BENCH_LARGE_ROWS'] ?? 1_000_000);

interface Measured {
  readonly rowsPerSecond: number;
  readonly workerMegabytes: number;
  readonly supervisorMegabytes: number;
}

const bench = await openBench(['small', 'large']);
try {
  await fill(bench, 'small', 1, small);
  await fill(bench, 'large', 1, large);
  await bench.membership.close();
  const one = await measure(bench, 'small', 1);
  const two = await measure(bench, 'small', 2);
  const big = await measure(bench, 'large', 1);
  const rate = ({ rowsPerSecond }: Measured): string => Math.round(rowsPerSecond).toLocaleString('en');
  const print = (line: string): boolean => process.stdout.write(`${line}\n`);
  print(
    `one worker ${rate(one)} rows/s, two workers ${rate(two)} rows/s, ${(two.rowsPerSecond / one.rowsPerSecond).toFixed(2)} times (figure: ≥ 1.7 on an idle core; database, supervisor and workers share this machine's)`,
  );
  print(
    `time per row at ${large.toLocaleString('en')} rows against ${small.toLocaleString('en')}: ${(one.rowsPerSecond / big.rowsPerSecond).toFixed(2)} times (figure: within 0.9 to 1.1)`,
  );
  print(
    `worker memory: ${one.workerMegabytes.toFixed(0)} MB at ${small.toLocaleString('en')} rows, ${big.workerMegabytes.toFixed(0)} MB at ${large.toLocaleString('en')} (figure: ≤ 150 MB)`,
  );
  print(
    `supervisor memory: ${one.supervisorMegabytes.toFixed(0)} MB at ${small.toLocaleString('en')} rows, ${big.supervisorMegabytes.toFixed(0)} MB at ${large.toLocaleString('en')}`,
  );
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
    const { rows } = await target.pool.query<{ rows: string; seconds: number }>(
      `SELECT sum(l.rows_updated) AS rows, extract(epoch FROM max(l.committed_at) - min(b.started_at))::float8 AS seconds
       FROM keyturn.ledger l JOIN keyturn.batch b ON b.id = l.batch_id WHERE b.run_id = $1 AND b.kind = 'reencrypt'`,
      [run.id],
    );
    return {
      rowsPerSecond: Number(rows[0]?.rows) / (rows[0]?.seconds ?? Number.NaN),
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
