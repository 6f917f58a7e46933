// An application process that overwrites cells through the library, as fast as it can. Arguments: the content of
// keyturn.yaml, which of how many writers it is, the number of customers. Each customer belongs to one writer, so its
// sequence numbers have one order. Joins as a member at once and writes from SIGUSR2 to SIGTERM; prints
// an acknowledgement behind every commit, and reads what it wrote every tenth time.
import { once } from 'node:events';
import pg from 'pg';
import { openKeyturn } from '../../src/app.js';
import type { ConfigFile } from '../../src/config.js';

const [config, mine, writers, customers] = process.argv.slice(2).map((argument) => JSON.parse(argument) as unknown) as [
  ConfigFile,
  number,
  number,
  number,
];
const keyturn = await openKeyturn({ config, name: `writer-${mine}` });
const email = keyturn.column('public.customer', 'email');
const ssn = keyturn.column('public.customer', 'profile.ssn');
const pool = new pg.Pool({ connectionString: process.env['DATABASE_URL'], max: 2 });
const owned = Array.from({ length: customers }, (_, at) => at + 1).filter((id) => id % writers === mine);
const sequences = new Map<number, number>(owned.map((id) => [id, 0]));

let isStopping = false;
process.once('SIGTERM', () => {
  isStopping = true;
});

async function write(id: number, sequence: number): Promise<void> {
  const row = { pk: id, scope: `tenant-${id % 3}` };
  const value = `${id}:${sequence}`;
  await pool.query(
    `UPDATE customer SET email = $2, profile = jsonb_set(profile, '{ssn}', to_jsonb($3::text)), version = version + 1 WHERE id = $1`,
    [id, await email.encrypt(row, value), await ssn.encrypt(row, value)],
  );
  sequences.set(id, sequence);
  process.stdout.write(`wrote ${id} ${sequence}\n`);
}

async function read(id: number): Promise<void> {
  const { rows } = await pool.query<{ email: string; ssn: string }>(
    `SELECT email, profile ->> 'ssn' AS ssn FROM customer WHERE id = $1`,
    [id],
  );
  const row = { pk: id, scope: `tenant-${id % 3}` };
  const expected = `${id}:${sequences.get(id)}`;
  const seen = await Promise.all([email.decrypt(row, rows[0]?.email ?? ''), ssn.decrypt(row, rows[0]?.ssn ?? '')]);
  if (seen.some(({ plaintext }) => plaintext !== expected))
    throw new Error(`customer ${id} does not read as it was last written`);
}

/** Every second customer of this writer, so that no two lanes write the same one. */
async function runLane(lane: number): Promise<void> {
  const ids = owned.filter((_, at) => at % 2 === lane);
  for (let turn = 0; !isStopping; turn++) {
    const id = ids[Math.floor(Math.random() * ids.length)] ?? mine;
    await write(id, (sequences.get(id) ?? 0) + 1);
    if (turn % 10 === 0) await read(id);
  }
}

const toBegin = once(process, 'SIGUSR2');
process.stdout.write(`ready: pid ${process.pid}\n`);
await toBegin;
await Promise.all([runLane(0), runLane(1)]);
await pool.end();
await keyturn.close();
process.exit(0);
