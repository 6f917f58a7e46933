// Bulk reencryption of one 100-byte bytea column against a plain SQL UPDATE that rewrites the same bytes in the same
// batches: default algorithm, verification on, synchronous_commit off on both sides, five alternated rounds, medians.
import { fill, median, openBench, reencryptTable, rotate } from './support.js';

const rounds = 5;
const rows = Number(process.env['BENCH_ROWS'] ?? 100_000);

const bench = await openBench(['moved', 'rewritten']);
try {
  for (const table of ['moved', 'rewritten']) await fill(bench, table, 1, rows);
  const ours: number[] = [];
  const limit: number[] = [];
  const breakdown: string[] = [];
  let sliceRows = 1_000;
  for (let round = 0; round < rounds; round++) {
    await compact('moved');
    await rotate(bench);
    const moved = await reencryptTable(bench, 'moved');
    ours.push(moved.milliseconds);
    sliceRows = Math.max(1, Math.round(moved.rows / moved.slices));
    const perRow = (milliseconds: number): string => ((milliseconds * 1_000) / moved.rows).toFixed(1);
    breakdown.push(
      `wall ${perRow(moved.milliseconds)} µs per row; overlapping: read ${perRow(moved.readMs)}, crypto ${perRow(moved.cryptoMs)}, write ${perRow(moved.writeMs)}; processor of this process ${perRow(moved.cpuMs)}; ${sliceRows} rows per slice`,
    );
    await compact('rewritten');
    limit.push(await rewrite(sliceRows));
  }
  const rate = (milliseconds: number): string => Math.round(rows / (milliseconds / 1_000)).toLocaleString('en');
  process.stdout.write(
    `bulk: ours ${rate(median(ours))} rows/s, plain UPDATE ${rate(median(limit))} rows/s, ratio ${(median(limit) / median(ours)).toFixed(3)} (figure: ≥ 0.2)\n`,
  );
  for (const line of breakdown) process.stdout.write(`  ${line}\n`);
} finally {
  await bench.close();
}

/** Full pages and fresh statistics before each measurement, as a table has that is rotated once a quarter. */
async function compact(table: string): Promise<void> {
  await bench.pool.query(`VACUUM (FULL, ANALYZE) ${table}`);
  await bench.pool.query('CHECKPOINT');
}

/** One connection, the slices the engine chose on average, one transaction each. */
async function rewrite(slice: number): Promise<number> {
  const client = await bench.pool.connect();
  try {
    const startedAt = performance.now();
    for (let from = 0; from < rows; from += slice) {
      await client.query('BEGIN; SET LOCAL synchronous_commit = off');
      await client.query('UPDATE rewritten SET secret = secret WHERE id > $1 AND id <= $2', [from, from + slice]);
      await client.query('COMMIT');
    }
    return performance.now() - startedAt;
  } finally {
    client.release();
  }
}
