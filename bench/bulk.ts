// Bulk reencryption of one 100-byte bytea column against a plain SQL UPDATE that rewrites the same bytes in the same
// batches: default algorithm, verification on, synchronous_commit off on both sides, five alternated rounds, medians.
import { createCipheriv, createDecipheriv, randomBytes } from 'node:crypto';
import { nativeAddon } from '../src/crypto/native-addon.js';
import { describeMoved, fill, median, openBench, plaintextBytes, reencryptTable, rotate } from './support.js';

const rounds = 5;
const path = nativeAddon === undefined ? 'node:crypto alone' : 'native';
const rows = Number(process.env['BENCH_ROWS'] ?? 100_000);

const bench = await openBench(['moved', 'rewritten']);
try {
  for (const table of ['moved', 'rewritten']) await fill(bench, table, 1, rows);
  const ours: number[] = [];
  const limit: number[] = [];
  const bare: number[] = [];
  const breakdown: string[] = [];
  let sliceRows = 1_000;
  for (let round = 0; round < rounds; round++) {
    await compact('moved');
    await rotate(bench);
    const moved = await reencryptTable(bench, 'moved');
    ours.push(moved.milliseconds);
    sliceRows = Math.max(1, Math.round(moved.rows / moved.slices));
    bare.push(measureBareCalls());
    breakdown.push(describeMoved(moved));
    await compact('rewritten');
    limit.push(await rewrite(sliceRows));
  }
  const rate = (milliseconds: number): string => Math.round(rows / (milliseconds / 1_000)).toLocaleString('en');
  process.stdout.write(
    `bulk, ${path}: ours ${rate(median(ours))} rows/s, plain UPDATE ${rate(median(limit))} rows/s, ratio ${(median(limit) / median(ours)).toFixed(3)} (figure: ≥ ${nativeAddon === undefined ? 0.2 : 0.6})\n`,
  );
  process.stdout.write(
    `  the bare calls of node:crypto alone, decrypt + encrypt + decrypt of each value: ${median(bare).toFixed(1)} µs per row, so that on one thread the ratio cannot exceed ${(median(limit) / ((median(bare) * rows) / 1_000)).toFixed(3)}\n`,
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

/** Microseconds per value of what node:crypto must be called for, a key and nonce of its own each, and nothing around it. */
function measureBareCalls(): number {
  const values = 20_000;
  const tagLength = { authTagLength: 16 };
  const [plaintext, associatedData] = [randomBytes(plaintextBytes), randomBytes(120)];
  const uses = Array.from({ length: 1_000 }, () => ({ key: randomBytes(32), nonce: randomBytes(12) }));
  let [ciphertext, tag] = [plaintext, plaintext];
  const encrypt = (at: number): void => {
    const { key, nonce } = uses[at % uses.length] ?? { key: plaintext, nonce: plaintext };
    const cipher = createCipheriv('aes-256-gcm', key, nonce, tagLength);
    cipher.setAAD(associatedData);
    ciphertext = cipher.update(plaintext);
    cipher.final();
    tag = cipher.getAuthTag();
  };
  const decrypt = (at: number): void => {
    const { key, nonce } = uses[at % uses.length] ?? { key: plaintext, nonce: plaintext };
    const decipher = createDecipheriv('aes-256-gcm', key, nonce, tagLength);
    decipher.setAAD(associatedData);
    decipher.setAuthTag(tag);
    decipher.update(ciphertext);
    decipher.final();
  };
  const startedAt = performance.now();
  for (let at = 0; at < values; at++) {
    encrypt(at);
    decrypt(at);
    decrypt(at);
  }
  return ((performance.now() - startedAt) * 1_000) / values;
}
