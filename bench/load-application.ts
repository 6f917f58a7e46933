// The application of the load benchmark, a process of its own: reads by primary key, updates of the encrypted and of
// another column, and inserts, at a fixed rate whatever the answers do (open loop). Latency counts from when a statement
// was meant to start, so a stall is seen by all that should have run in it. Each line on stdin ends a window: the
// latencies of that window go to stdout as one JSON array of milliseconds. Arguments: operations per second, rows.
import { randomBytes } from 'node:crypto';
import { createInterface } from 'node:readline';
import pg from 'pg';
import { openKeyturn } from '../src/app.js';
import type { ConfigFile } from '../src/config.js';
import { plaintextBytes } from './support.js';

const [perSecond, rows] = process.argv.slice(2).map(Number) as [number, number];

const config: ConfigFile = {
  keyrings: { bench: { root: 'env:KEYTURN_ROOT_KEY' } },
  targets: [{ table: 'public.account', keyring: 'bench', columns: { secret: {} } }],
};
const pool = new pg.Pool({ connectionString: process.env['DATABASE_URL'], max: 8, application_name: 'shop' });
const keyturn = await openKeyturn({ config, name: 'shop' });
const secret = keyturn.column('account', 'secret');

let latencies: number[] = [];
let nextId = rows;
let isOver = false;

/** Of twenty: twelve reads, three updates of each kind, two inserts. */
async function operate(turn: number): Promise<void> {
  const id = 1 + Math.floor(Math.random() * rows);
  const kind = turn % 20;
  if (kind < 12) await pool.query('SELECT secret, visits FROM account WHERE id = $1', [id]);
  else if (kind < 15) await pool.query('UPDATE account SET secret = $2 WHERE id = $1', [id, await encrypted(id)]);
  else if (kind < 18) await pool.query('UPDATE account SET visits = visits + 1 WHERE id = $1', [id]);
  else {
    const fresh = ++nextId;
    await pool.query('INSERT INTO account (id, secret) VALUES ($1, $2)', [fresh, await encrypted(fresh)]);
  }
}

async function timed(turn: number, due: number): Promise<void> {
  await operate(turn);
  latencies.push(performance.now() - due);
}

function encrypted(id: number): Promise<string | Buffer> {
  return secret.encrypt({ pk: id }, randomBytes(plaintextBytes));
}

/** Sends what is due, however late this process itself comes to it. */
async function pour(): Promise<void> {
  const pending = new Set<Promise<void>>();
  const startedAt = performance.now();
  for (let turn = 0; !isOver; turn++) {
    const due = startedAt + (turn * 1_000) / perSecond;
    const wait = due - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    const done = timed(turn, due).finally(() => pending.delete(done));
    pending.add(done);
  }
  await Promise.all(pending);
}

const poured = pour();
for await (const _ of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(latencies.map((latency) => Number(latency.toFixed(3))))}\n`);
  latencies = [];
}
isOver = true;
await poured;
await keyturn.close();
await pool.end();
