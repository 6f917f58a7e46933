// Changing the root key: its cost follows the number of data keys, and nothing else. 10, 10^3 and 10^5 data keys,
// and 10^3 data keys beside a small and a large table; medians of alternated rounds, there and back.
import { randomBytes } from 'node:crypto';
import { openControl } from '../src/app.js';
import { noConfigFile } from '../src/control/context.js';
import { rotateRoot } from '../src/control/roots.js';
import { createValueKey, generateDataKey } from '../src/crypto/data-key.js';
import { openRootKey } from '../src/keys/roots/open-root-key.js';
import { getClusterId, getKeyring } from '../src/store/keys.js';
import { median, openBench, type Bench } from './support.js';

const usualRounds = 5;
/** A change of so many keys takes most of a minute: once there and back. */
const manyKeys = 50_000;
const mostKeys = Number(process.env['BENCH_DATA_KEYS'] ?? 100_000);
const largeTable = Number(process.env['BENCH_LARGE_ROWS'] ?? 10_000_000);
/** One statement makes so many rows, so that a large table needs no transaction of minutes. */
const filledAtOnce = 1_000_000;
const places = ['env:KEYTURN_ROOT_KEY', 'env:KEYTURN_NEXT_ROOT'] as const;
const nextRoot = randomBytes(32).toString('hex');

const bench = await openBench(['crowd']);
try {
  await bench.membership.close();
  await measureWith(bench, 10);
  await measureWith(bench, 1_000);

  const beside: number[] = [];
  for (const rows of [1_000, largeTable]) {
    // What the rows hold is never looked at, which is the point.
    await bench.pool.query('TRUNCATE crowd');
    for (let from = 1; from <= rows; from += filledAtOnce)
      await bench.pool.query(
        `INSERT INTO crowd SELECT n, decode(repeat('00', 152), 'hex') FROM generate_series($1::bigint, $2::bigint) n`,
        [from, Math.min(rows, from + filledAtOnce - 1)],
      );
    await bench.pool.query('CHECKPOINT');
    beside.push(await measure(bench, usualRounds));
  }
  const [small = Number.NaN, large = Number.NaN] = beside;
  process.stdout.write(
    `root change of 1,000 data keys beside 1,000 rows ${small.toFixed(0)} ms, beside ${largeTable.toLocaleString('en')} rows ${large.toFixed(0)} ms, ${(large / small).toFixed(2)} times (figure: the same at 1,000 and 10,000,000 rows${largeTable < 10_000_000 ? '; MEASURED AT FEWER' : ''})
  the rows hold zeros in place of envelopes: a root change reads none of them\n`,
  );
  await bench.pool.query('TRUNCATE crowd');
  await measureWith(bench, mostKeys);
} finally {
  await bench.close();
}

/** Rows of data keys stay, so their number only grows. */
async function measureWith(of: Bench, keys: number): Promise<void> {
  await fillKeys(of, keys);
  const milliseconds = await measure(of, keys >= manyKeys ? 1 : usualRounds);
  process.stdout.write(
    `root change of ${keys.toLocaleString('en')} data keys ${milliseconds.toFixed(0)} ms (${((milliseconds * 1_000) / keys).toFixed(0)} µs each)\n`,
  );
}

/** There and back, so that every second change begins where the first began. */
async function measure({ environment }: Bench, rounds: number): Promise<number> {
  const taken: number[] = [];
  for (let round = 0; round < 2 * rounds; round++) {
    const control = openControl({
      environment: { ...environment(), KEYTURN_NEXT_ROOT: nextRoot },
      file: noConfigFile,
    });
    const startedAt = performance.now();
    await rotateRoot(control.context, {
      to: places[(round + 1) % 2] ?? places[0],
      keyring: undefined,
      without: [],
      reason: 'bench',
    });
    taken.push(performance.now() - startedAt);
    await control.close();
  }
  return median(taken);
}

/** Retired keys up to `count` in all, each with a true wrap under the present root key. */
async function fillKeys({ database, pool, environment }: Bench, count: number): Promise<void> {
  const cluster = await getClusterId(database);
  const root = await openRootKey('env:KEYTURN_ROOT_KEY', { cluster, env: environment() });
  const keyring = await getKeyring(database, 'bench');
  const { rows } = await pool.query('SELECT max(id)::int AS last FROM keyturn.data_key WHERE purpose = 1');
  const chunk = 10_000;
  for (let from = Number(rows[0]?.last) + 1; from <= count; from += chunk) {
    const ids = Array.from({ length: Math.min(chunk, count - from + 1) }, (_, at) => from + at);
    const made = await Promise.all(
      ids.map(async (id) => {
        const identity = { id, algorithm: keyring.algorithm, purpose: 1, cluster, scope: keyring.id } as const;
        const { commitment, material } = createValueKey(identity, generateDataKey());
        return { commitment, blob: await root.wrap(1, identity, material) };
      }),
    );
    await pool.query(
      `INSERT INTO keyturn.data_key (id, keyring_id, scope_id, version, algorithm, state, commitment)
       SELECT k.id, $1, $1, k.id, $2, 'retired', k.commitment FROM unnest($3::bigint[], $4::bytea[]) AS k(id, commitment)`,
      [keyring.id, keyring.algorithm, ids, made.map(({ commitment }) => commitment)],
    );
    await pool.query(
      'INSERT INTO keyturn.data_key_wrap (data_key_id, root_key_id, blob) SELECT w.id, 1, w.blob FROM unnest($1::bigint[], $2::bytea[]) AS w(id, blob)',
      [ids, made.map(({ blob }) => blob)],
    );
  }
  await pool.query('ANALYZE keyturn.data_key, keyturn.data_key_wrap');
}
