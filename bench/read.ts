// What decrypting and lazy upgrades cost a reader: the same reads of one row, without encryption, with it, and with lazy
// upgrades on data that is all stale and all current. Every round takes its reads in turn, each time beginning with another,
// so that the machine's moods meet all of them alike; ratios are of one run. The event loop is watched until what the reads
// have queued is written, for a second at most. Last, rows of 300 kB: how long the loop is kept and how much memory the
// upgrades take, beside the same values rewritten with the driver alone.
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { Column, DataSource, Entity, PrimaryColumn } from 'typeorm';
import { openKeyturn, type Keyturn } from '../src/app.js';
import type { ConfigFile } from '../src/config.js';
import { setLazyUpgrades } from '../src/control/lazy-upgrades.js';
import { Encrypted, installKeyturn } from '../src/orm/index.js';
import type { Target } from '../src/rotation/target.js';
import { readLazySettings } from '../src/store/lazy-upgrades.js';
import { fill, median, openBench, rotate, type Bench } from './support.js';

const rows = 4_000;
/** Enough for upgrades at the default rate to come to their steady pace. */
const readsPerRound = 6_000;
const rounds = 11;
const anyRate = 100_000;
const wideRows = 200;
const wideBytes = 300_000;

@Entity('plain')
class Plain {
  @PrimaryColumn({ type: 'bigint' })
  id!: string;

  @Column({ type: 'bytea' })
  secret!: Buffer;
}

@Entity('guarded')
class Guarded {
  @PrimaryColumn({ type: 'bigint' })
  id!: string;

  @Encrypted({ type: 'buffer' })
  secret!: Buffer;
}

/** One way of reading: its data source, its entity, and what makes its rows ready before a round. */
interface Way {
  readonly name: string;
  readonly dataSource: DataSource;
  readonly entity: typeof Plain | typeof Guarded;
  prepare(): Promise<unknown>;
  /** Of each round, in milliseconds. */
  readonly rounds: number[][];
  delayMs: number;
}

async function connect(bench: Bench, entity: Way['entity'], keyturn?: Keyturn): Promise<DataSource> {
  const dataSource = new DataSource({ type: 'postgres', url: bench.url, entities: [entity] });
  await dataSource.initialize();
  if (keyturn !== undefined) await installKeyturn(dataSource, keyturn);
  return dataSource;
}

async function read(way: Way, round: number): Promise<void> {
  await way.prepare();
  const loop = monitorEventLoopDelay({ resolution: 1 });
  const repository = way.dataSource.getRepository<Plain | Guarded>(way.entity);
  const times: number[] = [];
  loop.enable();
  for (let at = 0; at < readsPerRound; at++) {
    const id = String(1 + ((round * readsPerRound + at) % rows));
    const startedAt = performance.now();
    await repository.findOneByOrFail({ id });
    times.push(performance.now() - startedAt);
  }
  await Promise.race([written(), new Promise((resolve) => setTimeout(resolve, 1_000))]);
  loop.disable();
  way.rounds.push(times);
  way.delayMs = Math.max(way.delayMs, loop.max / 1e6);
}

/** What was queued is written or dropped. */
async function written(): Promise<void> {
  const { upgrades } = keyturn.parts;
  while (upgrades.counts().queued > 0) await new Promise((resolve) => setTimeout(resolve, 20));
}

function percentile(times: readonly number[], share: number): number {
  return times.toSorted((one, other) => one - other)[Math.floor((times.length - 1) * share)] ?? 0;
}

/** Of each round against the same round of the other way, the middle: what a machine does in minutes meets both alike. */
function ratio(rounds: readonly number[][], others: readonly number[][], share: number): number {
  return median(rounds.map((times, round) => percentile(times, share) / percentile(others[round] ?? [], share)));
}

function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

const bench = await openBench(['guarded', 'wide']);
await bench.pool.query('CREATE TABLE plain (id bigint PRIMARY KEY, secret bytea)');
await bench.pool.query('INSERT INTO plain SELECT id, sha512(id::text::bytea) FROM generate_series(1, $1::int) id', [
  rows,
]);
await fill(bench, 'guarded', 1, rows);
await bench.pool.query('CREATE TABLE stale_rows AS SELECT * FROM guarded');
await fill(bench, 'wide', 1, wideRows, wideBytes);
await rotate(bench);
await bench.pool.query('DELETE FROM guarded');
await fill(bench, 'guarded', 1, rows);
await bench.pool.query('CREATE TABLE current_rows AS SELECT * FROM guarded');
await bench.pool.query('ANALYZE');

const config: ConfigFile = {
  keyrings: { bench: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: ['public.guarded', 'public.wide'].map((table) => ({ table, keyring: 'bench', columns: { secret: {} } })),
};
const keyturn = await openKeyturn({ config, environment: bench.environment(), name: 'reader' });
const [plain, guarded] = [await connect(bench, Plain), await connect(bench, Guarded, keyturn)];
const { context } = bench.control;
/** As a new keyring has it. */
const { rowsPerSecond: defaultRate } = await readLazySettings(bench.database, 'bench');

async function restore(table: string, isOn: boolean, rowsPerSecond: number): Promise<void> {
  // A keyring that is switched off with rows waiting would take none for a while after it is on again.
  await setLazyUpgrades(context, undefined, { isOn: true, rowsPerSecond: anyRate, sample: 1 }, 'bench');
  await written();
  await setLazyUpgrades(context, undefined, { isOn, rowsPerSecond, sample: 1 }, 'bench');
  await bench.pool.query(`UPDATE guarded g SET secret = t.secret FROM ${table} t WHERE t.id = g.id`);
  await bench.pool.query('VACUUM guarded');
}

function way(name: string, dataSource: DataSource, entity: Way['entity'], prepare: () => Promise<unknown>): Way {
  return { name, dataSource, entity, prepare, rounds: [], delayMs: 0 };
}

function decrypting(): Way {
  return way('decrypting, lazy upgrades off', guarded, Guarded, () => restore('current_rows', false, defaultRate));
}

/** Prints each way with its ratios against the first. */
async function compare(ways: readonly [Way, ...Way[]]): Promise<void> {
  // The first reads of a process compile what they run.
  for (const one of ways) await read({ ...one, rounds: [] }, 0);
  for (const one of ways) one.delayMs = 0;
  for (let round = 0; round < rounds; round++)
    for (const [at] of ways.entries()) {
      const one = ways[(round + at) % ways.length];
      if (one !== undefined) await read(one, round);
    }
  print('read                              p50 ms    p99 ms   p50 ratio   p99 ratio   longest event loop delay ms');
  for (const { name, rounds: measured, delayMs } of ways) {
    const columns = [0.5, 0.99].map((share) => median(measured.map((times) => percentile(times, share))).toFixed(3));
    const ratios = [0.5, 0.99].map((share) => ratio(measured, ways[0].rounds, share).toFixed(2));
    print(
      `${name.padEnd(31)} ${columns.map((text) => text.padStart(8)).join('  ')} ${ratios.map((text) => text.padStart(11)).join(' ')} ${delayMs.toFixed(1).padStart(16)}`,
    );
  }
}

await compare([
  decrypting(),
  way('without encryption', plain, Plain, async () => undefined),
  way('lazy upgrades on, all current', guarded, Guarded, () => restore('current_rows', true, defaultRate)),
  way('lazy upgrades on, all stale', guarded, Guarded, () => restore('stale_rows', true, defaultRate)),
]);
print(`at any rate, for what a higher limit than the default of ${defaultRate} rows a second costs:`);
await compare([
  decrypting(),
  way('lazy upgrades on, all stale', guarded, Guarded, () => restore('stale_rows', true, anyRate)),
]);
const { rowsUpdated, dropped } = keyturn.parts.upgrades.counts();
print(`${rowsUpdated} rows upgraded, ${dropped} offers dropped`);
await restore('current_rows', true, anyRate);
print(`buffer: ${await bufferBytes()} bytes when full (1,000 rows)`);
print(await rewriteWide());
print(await upgradeWide());
print(await rewriteWide());
await guarded.destroy();
await plain.destroy();
await keyturn.close();
await bench.close();

function targetNamed(name: string): Target {
  const target = keyturn.parts.targets.find(({ table }) => table === name);
  if (target === undefined) throw new Error(`no target ${name}`);
  return target;
}

/** What a full buffer of rows with number keys holds, as the heap counts it: the middle of five looks. */
async function bufferBytes(): Promise<number> {
  const gc = globalThis.gc;
  if (gc === undefined) return Number.NaN;
  const { upgrades } = keyturn.parts;
  const target = targetNamed('guarded');
  // A keyring that was off a moment ago takes nothing for a while.
  while (upgrades.counts().queued === 0) {
    upgrades.offer(target, ['1']);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  const looks: number[] = [];
  for (let look = 0; look < 5; look++) {
    await written();
    gc();
    const before = process.memoryUsage().heapUsed;
    for (let id = 1; id <= 1_000; id++) upgrades.offer(target, [String(id)]);
    gc();
    looks.push(process.memoryUsage().heapUsed - before);
    const { queued } = upgrades.counts();
    if (queued !== 1_000) throw new Error(`the buffer took ${queued} of 1000 rows`);
  }
  await written();
  return median(looks);
}

/** How long the event loop was kept at most, and how much resident memory was added, while `work` was done. */
async function watch(work: () => Promise<unknown>): Promise<string> {
  globalThis.gc?.();
  const rssBefore = process.memoryUsage().rss;
  let rss = rssBefore;
  const watching = setInterval(() => {
    rss = Math.max(rss, process.memoryUsage().rss);
  }, 5);
  const loop = monitorEventLoopDelay({ resolution: 1 });
  loop.enable();
  const startedAt = performance.now();
  await work();
  loop.disable();
  clearInterval(watching);
  return `${Math.round(performance.now() - startedAt)} ms, longest event loop delay ${(loop.max / 1e6).toFixed(1)} ms, resident memory +${Math.round((rss - rssBefore) / 1e6)} MB`;
}

/** The same values read and conditionally written with the driver alone: what the event loop is kept by without Keyturn. */
async function rewriteWide(): Promise<string> {
  const watched = await watch(async () => {
    for (let id = 1; id <= wideRows; id++) {
      const startedAt = performance.now();
      const { rows: found } = await bench.pool.query<{ secret: Buffer }>('SELECT secret FROM wide WHERE id = $1', [id]);
      const secret = found[0]?.secret;
      await bench.pool.query('UPDATE wide SET secret = $2 WHERE id = $1 AND secret = $3', [id, secret, secret]);
      await new Promise((resolve) => setTimeout(resolve, performance.now() - startedAt));
    }
  });
  return `the same with the driver alone, without Keyturn: ${watched}`;
}

async function upgradeWide(): Promise<string> {
  const { upgrades } = keyturn.parts;
  const before = upgrades.counts().rowsUpdated;
  const watched = await watch(async () => {
    const giveUpMs = performance.now() + 120_000;
    for (let id = 1; id <= wideRows; id++) upgrades.offer(targetNamed('wide'), [String(id)]);
    while (upgrades.counts().rowsUpdated - before < wideRows && performance.now() < giveUpMs)
      await new Promise((resolve) => setTimeout(resolve, 20));
  });
  return `wide rows: ${upgrades.counts().rowsUpdated - before} of ${wideRows} rows of ${wideBytes} bytes upgraded in ${watched}`;
}
