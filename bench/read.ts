// What decrypting and lazy upgrades cost a reader: the same reads of one row, without encryption, with it, and with lazy
// upgrades on data that is all stale and all current. Every round takes its reads in turn, each time beginning with another,
// so that the machine's moods meet all of them alike; ratios are of one run. The event loop is watched until what the reads
// have queued is written. Last, rows of 300 kB: how long the loop is kept and how much memory the upgrades take.
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { Column, DataSource, Entity, PrimaryColumn } from 'typeorm';
import { openKeyturn, type Keyturn } from '../src/app.js';
import type { ConfigFile } from '../src/config.js';
import { setLazyUpgrades } from '../src/control/lazy-upgrades.js';
import { Encrypted, installKeyturn } from '../src/orm/index.js';
import type { Target } from '../src/rotation/target.js';
import { fill, openBench, rotate, type Bench } from './support.js';

const rows = 4_000;
const readsPerRound = 400;
const rounds = 20;
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
  readonly times: number[];
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
  loop.enable();
  for (let at = 0; at < readsPerRound; at++) {
    const id = String(1 + ((round * readsPerRound + at) % rows));
    const startedAt = performance.now();
    await repository.findOneByOrFail({ id });
    way.times.push(performance.now() - startedAt);
  }
  await written();
  loop.disable();
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

async function restore(table: string, isOn: boolean): Promise<void> {
  await setLazyUpgrades(context, undefined, { isOn, rowsPerSecond: 100_000, sample: 1 }, 'bench');
  await written();
  await bench.pool.query(`UPDATE guarded g SET secret = t.secret FROM ${table} t WHERE t.id = g.id`);
  await bench.pool.query('VACUUM guarded');
}

function way(name: string, dataSource: DataSource, entity: Way['entity'], prepare: () => Promise<unknown>): Way {
  return { name, dataSource, entity, prepare, times: [], delayMs: 0 };
}

const ways = [
  way('without encryption', plain, Plain, async () => undefined),
  way('decrypting, lazy upgrades off', guarded, Guarded, () => restore('current_rows', false)),
  way('lazy upgrades on, all current', guarded, Guarded, () => restore('current_rows', true)),
  way('lazy upgrades on, all stale', guarded, Guarded, () => restore('stale_rows', true)),
];
// The first reads of a process compile what they run.
for (const one of ways) await read({ ...one, times: [] }, 0);
for (const one of ways) one.delayMs = 0;
for (let round = 0; round < rounds; round++)
  for (const [at] of ways.entries()) {
    const one = ways[(round + at) % ways.length];
    if (one !== undefined) await read(one, round);
  }

const [, decrypting] = ways;
print('read                              p50 ms    p99 ms   p50 ratio   p99 ratio   longest event loop delay ms');
for (const { name, times, delayMs } of ways) {
  const [p50, p99] = [percentile(times, 0.5), percentile(times, 0.99)];
  const against = decrypting?.times ?? [];
  const ratios = [p50 / percentile(against, 0.5), p99 / percentile(against, 0.99)];
  print(
    `${name.padEnd(31)} ${p50.toFixed(3).padStart(8)} ${p99.toFixed(3).padStart(9)} ${ratios.map((ratio) => ratio.toFixed(2).padStart(11)).join(' ')} ${delayMs.toFixed(1).padStart(16)}`,
  );
}
const { rowsUpdated, dropped } = keyturn.parts.upgrades.counts();
print(`ratios are against decrypting with lazy upgrades off; ${rowsUpdated} rows upgraded, ${dropped} offers dropped`);
await restore('current_rows', true);
print(`buffer: ${await bufferBytes()} bytes when full (1,000 rows)`);
print(await upgradeWide());
await guarded.destroy();
await plain.destroy();
await keyturn.close();
await bench.close();

function targetNamed(name: string): Target {
  const target = keyturn.parts.targets.find(({ table }) => table === name);
  if (target === undefined) throw new Error(`no target ${name}`);
  return target;
}

/** What a full buffer of rows with number keys holds, as the heap counts it. */
async function bufferBytes(): Promise<number> {
  if (globalThis.gc === undefined) return Number.NaN;
  const { upgrades } = keyturn.parts;
  const target = targetNamed('guarded');
  // A keyring that was off a moment ago takes nothing for a while.
  while (upgrades.counts().queued === 0) {
    upgrades.offer(target, ['1']);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  await written();
  globalThis.gc();
  const before = process.memoryUsage().heapUsed;
  for (let id = 1; id <= 1_000; id++) upgrades.offer(target, [String(id)]);
  globalThis.gc();
  const bytes = process.memoryUsage().heapUsed - before;
  const { queued } = upgrades.counts();
  if (queued !== 1_000) throw new Error(`the buffer took ${queued} of 1000 rows`);
  await written();
  return bytes;
}

async function upgradeWide(): Promise<string> {
  const { upgrades } = keyturn.parts;
  const before = upgrades.counts().rowsUpdated;
  globalThis.gc?.();
  const rssBefore = process.memoryUsage().rss;
  let rss = rssBefore;
  const watching = setInterval(() => {
    rss = Math.max(rss, process.memoryUsage().rss);
  }, 5);
  const loop = monitorEventLoopDelay({ resolution: 1 });
  loop.enable();
  const startedAt = performance.now();
  for (let id = 1; id <= wideRows; id++) upgrades.offer(targetNamed('wide'), [String(id)]);
  while (upgrades.counts().rowsUpdated - before < wideRows && performance.now() - startedAt < 120_000)
    await new Promise((resolve) => setTimeout(resolve, 20));
  loop.disable();
  clearInterval(watching);
  return `wide rows: ${upgrades.counts().rowsUpdated - before} of ${wideRows} rows of ${wideBytes} bytes upgraded in ${Math.round(performance.now() - startedAt)} ms, longest event loop delay ${(loop.max / 1e6).toFixed(1)} ms, resident memory +${Math.round((rss - rssBefore) / 1e6)} MB`;
}
