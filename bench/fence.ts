// What a fence costs the application's writes: the same statements on the same table without it, with one key and with forty
// keys in it, alternated in one run, medians. A refusal never happens here, as it never does where nothing is wrong.
import { findKey, stageKey } from '../src/control/keys.js';
import { convergeFences } from '../src/engine/fence.js';
import { markFenced } from '../src/store/fences.js';
import { activateKey, lockKeyring } from '../src/store/keys.js';
import { fill, median, openBench } from './support.js';

const rounds = 7;
const rows = Number(process.env['BENCH_ROWS'] ?? 50_000);
const fences = { none: 0, 'one key': 1, 'forty keys': 40 } as const;

const bench = await openBench(['fenced']);
try {
  // Keys count from one, and each rotation leaves one behind.
  const replaced = Array.from({ length: fences['forty keys'] }, (_, at) => at + 1);
  for (const id of replaced) await replace(id + 1);
  await bench.membership.refresh('bench');
  await fill(bench, 'fenced', 1, rows);
  await bench.pool.query(`ALTER TABLE fenced ADD COLUMN note integer NOT NULL DEFAULT 0`);

  const statements = {
    'UPDATE of the encrypted column': `UPDATE fenced SET secret = secret || '\\x00'`,
    'UPDATE of another column': 'UPDATE fenced SET note = note + 1',
    INSERT: `INSERT INTO fenced SELECT id + ${rows}, secret FROM fenced`,
  } as const;
  const taken = new Map<string, number[]>();
  for (let round = 0; round < rounds; round++) {
    for (const [fence, keys] of Object.entries(fences)) {
      await raise(replaced.slice(0, keys));
      for (const [name, sql] of Object.entries(statements)) {
        await bench.pool.query('VACUUM (FULL) fenced');
        await bench.pool.query('CHECKPOINT');
        const startedAt = performance.now();
        await bench.pool.query(sql);
        const at = `${name} ${fence}`;
        taken.set(at, [...(taken.get(at) ?? []), performance.now() - startedAt]);
        if (name === 'INSERT') await bench.pool.query('DELETE FROM fenced WHERE id > $1', [rows]);
      }
    }
  }
  for (const name of Object.keys(statements)) {
    const of = (fence: string): number => median(taken.get(`${name} ${fence}`) ?? []);
    const perRow = (fence: string): string => ((of(fence) * 1_000) / rows).toFixed(2);
    process.stdout.write(
      `fence: ${name}: ${perRow('none')} µs per row without, ${perRow('one key')} with one key (ratio ${(of('one key') / of('none')).toFixed(3)}), ${perRow('forty keys')} with forty (ratio ${(of('forty keys') / of('none')).toFixed(3)})\n`,
    );
  }
} finally {
  await bench.close();
}

/** A new active key, at once: nobody but this process is there to be waited for. */
async function replace(id: number): Promise<void> {
  const { context } = bench.control;
  const { keyring } = await stageKey(context, undefined, 'bench');
  await context.database.transaction(async (client) => {
    const locked = await lockKeyring(client, keyring);
    await activateKey(client, locked, findKey(locked, String(id)), 'bench');
  });
}

/** The table refuses these keys and no others. */
async function raise(keyIds: readonly number[]): Promise<void> {
  const { context } = bench.control;
  await context.database.transaction(async (client) => {
    const { rows: all } = await client.query(
      `SELECT id FROM keyturn.data_key WHERE purpose = 1 AND state = 'decrypt_only'`,
    );
    for (const [id] of all) await markFenced(client, Number(id), keyIds.includes(Number(id)), 'bench');
  });
  await convergeFences(context.database, { patienceMs: 10_000, onProgress: () => undefined });
}
